"""Weights from files: every form of names and of files gives the same module; what does not fit is named."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: see docs/export.md")

from export.checkpoint import load_into, read_weights
from export.config import parse_config
from export.errors import BadCheckpoint
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.weight_names import Weights, wan_names, wan_vae_names
from tests.models.export.configs import LONGLIVE, tiny
from tests.models.export.networks import transformer

CONFIG = tiny()

# One name of each kind in diffusers' form, and in Wan's.
DIFFUSERS = {
    "condition_embedder.time_embedder.linear_1.weight": "time_embedding.0.weight",
    "condition_embedder.time_embedder.linear_2.bias": "time_embedding.2.bias",
    "condition_embedder.time_proj.weight": "time_projection.1.weight",
    "condition_embedder.text_embedder.linear_1.weight": "text_embedding.0.weight",
    "condition_embedder.text_embedder.linear_2.weight": "text_embedding.2.weight",
    "blocks.12.attn1.to_q.weight": "blocks.12.self_attn.q.weight",
    "blocks.12.attn2.to_out.0.bias": "blocks.12.cross_attn.o.bias",
    "blocks.1.attn1.norm_q.weight": "blocks.1.self_attn.norm_q.weight",
    "blocks.1.norm2.weight": "blocks.1.norm3.weight",
    "blocks.1.ffn.net.0.proj.weight": "blocks.1.ffn.0.weight",
    "blocks.1.ffn.net.2.weight": "blocks.1.ffn.2.weight",
    "blocks.1.scale_shift_table": "blocks.1.modulation",
    "scale_shift_table": "head.modulation",
    "proj_out.weight": "head.head.weight",
    "vace_blocks.0.proj_in.weight": "vace_blocks.0.before_proj.weight",
    "vace_blocks.0.proj_out.weight": "vace_blocks.0.after_proj.weight",
    "patch_embedding.weight": "patch_embedding.weight",
}


@pytest.mark.parametrize(
    "prefix", ["", "model.", "diffusion_model.", "transformer.", "base_model.model.", "model.diffusion_model."]
)
def test_names_of_every_form_become_wans(prefix: str):
    value = torch.zeros(1)
    theirs = {prefix + name: value for name in DIFFUSERS}
    assert list(wan_names(theirs)) == list(DIFFUSERS.values())
    assert list(wan_names(dict.fromkeys(DIFFUSERS.values(), value))) == list(DIFFUSERS.values())


def test_two_names_of_one_weight_are_refused():
    with pytest.raises(BadCheckpoint, match=r"both head\.head\.weight"):
        wan_names({"proj_out.weight": torch.zeros(1), "model.head.head.weight": torch.zeros(1)})


def test_our_names_are_those_that_diffusers_knows_as_wans():
    """By diffusers' own conversion of Wan's releases, and back by ours."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
    convert = importlib.import_module("diffusers.loaders.single_file_utils")
    vae = parse_config(LONGLIVE).vae
    with torch.device("meta"):
        transformers = CausalTransformer(CONFIG), TextKv(CONFIG), VaceBranch(CONFIG), TextKv(CONFIG, vace=True)
        vaes = VaeEncoder(vae), VaeDecoder(vae)
        vace = diffusers.WanVACETransformer3DModel(num_layers=CONFIG.num_layers, vace_layers=list(CONFIG.vace_layers))
        their_vae = diffusers.AutoencoderKLWan()
    for modules, model, to_theirs, to_ours in (
        (transformers, vace, convert.convert_wan_transformer_to_diffusers, wan_names),
        (vaes, their_vae, convert.convert_wan_vae_to_diffusers, lambda weights: wan_vae_names(weights, vae)),
    ):
        weights = dict(pair for module in modules for pair in module.named_parameters())
        theirs = to_theirs(dict(weights))
        assert theirs.keys() == model.state_dict().keys()
        assert to_ours(theirs).keys() == weights.keys()


def as_safetensors(weights: Weights, folder: Path) -> Path:
    safetensors.save_file(weights, folder / "w.safetensors")
    return folder / "w.safetensors"


def as_pt(weights: Weights, folder: Path) -> Path:
    torch.save(weights, folder / "w.pt")
    return folder / "w.pt"


def as_nested_pth(weights: Weights, folder: Path) -> Path:
    torch.save({"generator": {f"model.{name}": value for name, value in weights.items()}, "step": 3}, folder / "w.pth")
    return folder / "w.pth"


def as_state_dict(weights: Weights, folder: Path) -> Path:
    torch.save({"state_dict": {f"model.{name}": value for name, value in weights.items()}}, folder / "w.pt")
    return folder / "w.pt"


def as_diffusers(weights: Weights, folder: Path) -> Path:
    """Through diffusers' own module, whose names they are."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=CONFIG.num_heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.in_channels,
        out_channels=CONFIG.out_channels,
        text_dim=CONFIG.text_dim,
        freq_dim=CONFIG.freq_dim,
        ffn_dim=CONFIG.ffn_dim,
        num_layers=CONFIG.num_layers,
    )
    names = {next(iter(wan_names({name: torch.zeros(1)}))): name for name in theirs.state_dict()}
    return as_safetensors({names[name]: value for name, value in weights.items()}, folder)


@pytest.mark.parametrize("form", [as_safetensors, as_pt, as_nested_pth, as_state_dict, as_diffusers])
def test_each_form_loads_to_the_same_module(form: Callable[[Weights, Path], Path], tmp_path: Path):
    network, text_kv, weights = transformer(CONFIG)
    loaded, loaded_kv = CausalTransformer(CONFIG), TextKv(CONFIG)
    load_into(wan_names(read_weights(form(weights, tmp_path))), loaded, loaded_kv)
    for one, other in ((network, loaded), (text_kv, loaded_kv)):
        expected = one.state_dict()
        assert expected
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_linear_layers_are_stored_the_other_way_round():
    network, _, weights = transformer(CONFIG)
    assert torch.equal(network.blocks[0].ffn[0].weight, weights["blocks.0.ffn.0.weight"].T)


def test_missing_unexpected_and_misshapen_weights_are_named_and_nothing_is_copied():
    network, text_kv, weights = transformer(CONFIG)
    del weights["blocks.1.self_attn.q.bias"], weights["text_embedding.0.weight"]
    weights["blocks.7.odd"] = torch.zeros(1)
    weights["blocks.0.ffn.0.weight"] = weights["blocks.0.ffn.0.weight"].T.contiguous()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(BadCheckpoint) as caught:
        load_into({name: value + 1 for name, value in weights.items()}, network, text_kv)
    assert str(caught.value) == (
        "the weights don't fit: missing: blocks.1.self_attn.q.bias, text_embedding.0.weight; "
        "unexpected: blocks.7.odd; wrong shape: blocks.0.ffn.0.weight is [48, 64], not [64, 48]"
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_many_names_are_shortened():
    with pytest.raises(BadCheckpoint, match=r"missing: (\S+, ){7}\S+ and 69 more; unexpected: odd$"):
        load_into({"odd": torch.zeros(1)}, transformer(CONFIG)[0])


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path):
    torch.save({"generator": Path("x")}, tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match=r"w\.pt can't be read"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.npz", b"", r"w\.npz: weights must be"),
        ("w.gguf", b"GGUF", r"w\.gguf: weights must be .* quantised blocks are not supported"),
        ("w.bin", b"", r"w\.bin can't be read: the file is empty; download it again"),
        ("w.pt", b"junk", r"w\.pt can't be read"),
        ("w.safetensors", b"junk", r"w\.safetensors can't be read"),
        ("missing.pt", None, r"missing\.pt can't be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(("content", "message"), [([1], "named tensors, not list"), ({"step": 3}, "not tensors: step")])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match=message):
        read_weights(tmp_path / "w.pt")


def test_the_networks_of_the_real_size_have_the_weights_of_diffusers():
    """Names and shapes of Wan2.1-T2V-1.3B, without memory for them."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
    config = parse_config(LONGLIVE)
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
        ours, text_kv = CausalTransformer(config), TextKv(config)
        weights = wan_names(theirs.state_dict())
        load_into(weights, ours, text_kv)
    assert len(weights) == 825
    assert sum(value.numel() for value in weights.values()) == 1_418_996_800
