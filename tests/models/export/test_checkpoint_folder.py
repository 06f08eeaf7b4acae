"""A checkpoint's folder, loaded whole."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from export.checkpoint import load_networks
from export.config import TaeConfig, parse_config
from export.errors import BadCheckpoint, BadConfig
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.weight_names import Weights
from tests.models.export.configs import TINY, tiny
from tests.models.export.networks import normal, random_weights

CONFIG = tiny(lora_alpha=8)


def weights_of_all() -> Weights:
    return random_weights(
        CausalTransformer(CONFIG), TextKv(CONFIG), VaceBranch(CONFIG), TextKv(CONFIG, vace=True), seed=3
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LongLive's way: a base nested under `generator`, a LoRA to merge, VACE and VAE beside it."""
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "lora_alpha": 8}))
    for name in ("lora", "vace", "vae"):
        (tmp_path / name).mkdir()
    weights = weights_of_all()
    base = {f"model.{name}": value for name, value in weights.items() if not name.startswith("vace_")}
    torch.save({"generator": base}, tmp_path / "longlive_base.pt")
    lora = {
        "base_model.model.blocks.0.ffn.0.lora_A.weight": normal(4, 48),
        "base_model.model.blocks.0.ffn.0.lora_B.weight": normal(64, 4, seed=1),
    }
    torch.save({"generator_lora": lora}, tmp_path / "lora" / "lora.pt")
    # VACE's release has the transformer that it was trained with, other weights than ours.
    other = {name: value if name.startswith("vace_") else value + 1 for name, value in weights.items()}
    torch.save(other, tmp_path / "vace" / "vace.pth")
    torch.save(random_weights(VaeEncoder(CONFIG.vae), VaeDecoder(CONFIG.vae)), tmp_path / "vae" / "Wan2.1_VAE.pth")
    return tmp_path


def test_longlives_base_lora_vace_and_vae_are_loaded(folder: Path):
    networks = load_networks(folder)
    weights = weights_of_all()
    assert networks.config == CONFIG
    assert torch.equal(networks.transformer.blocks[1].ffn[0].weight, weights["blocks.1.ffn.0.weight"].T)
    merged = weights["blocks.0.ffn.0.weight"] + 8 / 4 * (normal(64, 4, seed=1) @ normal(4, 48))
    torch.testing.assert_close(networks.transformer.blocks[0].ffn[0].weight.detach(), merged.T)
    assert networks.vace is not None
    assert networks.vace_text_kv is not None
    assert torch.equal(networks.vace.vace_blocks[1].after_proj.weight, weights["vace_blocks.1.after_proj.weight"].T)
    assert torch.equal(networks.vace.patch_embedding.weight, networks.transformer.patch_embedding.weight)
    assert torch.equal(networks.vace_text_kv.text_embedding[0].weight, networks.text_kv.text_embedding[0].weight)
    vae = random_weights(networks.vae_encoder, networks.vae_decoder)
    assert torch.equal(networks.vae_decoder.decoder.conv1.weight, vae["decoder.conv1.weight"])


def tiny_autoencoder(folder: Path, kind: str) -> Weights:
    """Put one in place of the VAE: all but its weights, which are to be saved in `vae/tae.pth`."""
    tae = {"type": kind, "dim": 4, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0], "latents_std": [1]}
    values = {**TINY, "vae": tae}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "vae" / "Wan2.1_VAE.pth").unlink()
    config = parse_config(values).vae
    assert isinstance(config, TaeConfig)
    return random_weights(TaeEncoder(config), TaeDecoder(config))


@pytest.mark.parametrize("kind", ["tae", "lighttae"])
def test_a_tiny_autoencoder_is_loaded_as_released_and_as_trained(folder: Path, kind: str):
    weights = tiny_autoencoder(folder, kind)
    # As released: the first stage's weights would double its frames, and the later ones of two are meant.
    doubled = {"decoder.5.conv.weight": torch.cat([normal(16, 16, 1, 1), weights["decoder.5.conv.weight"]])}
    for saved in ({**weights, **doubled}, weights):
        torch.save({name: value.half() for name, value in saved.items()}, folder / "vae" / "tae.pth")
        networks = load_networks(folder)
        assert isinstance(networks.vae_encoder, TaeEncoder)
        assert isinstance(networks.vae_decoder, TaeDecoder)
        parts = (networks.vae_encoder, networks.vae_decoder)
        loaded = {name: value for part in parts for name, value in part.named_parameters()}
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(value, weights[name].half().float()) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder.3.weight": None}, r"missing: encoder\.3\.weight"),
        ({"decoder.99.weight": torch.ones(1)}, r"unexpected: decoder\.99\.weight"),
        (
            {"decoder.5.conv.weight": torch.ones(48, 16, 1, 1)},
            r"decoder\.5\.conv\.weight is \[48, 16, 1, 1\], not \[16,",
        ),
        # A stage that doubles its frames needs weights for two, and no more.
        ({"decoder.9.conv.weight": torch.ones(32, 8, 1, 1)}, r"decoder\.9\.conv\.weight is \[32, 8, 1, 1\], not \[16,"),
    ],
)
def test_weights_that_are_no_tiny_autoencoders_are_named(folder: Path, changed: dict[str, object], message: str):
    weights = tiny_autoencoder(folder, "tae") | changed
    torch.save({name: value for name, value in weights.items() if value is not None}, folder / "vae" / "tae.pth")
    with pytest.raises(BadCheckpoint, match=message):
        load_networks(folder)


def test_without_vace_layers_the_checkpoint_has_no_branch(folder: Path):
    (folder / "config.json").write_text(json.dumps({**TINY, "vace_layers": []}))
    networks = load_networks(folder)
    assert networks.vace is None
    assert networks.vace_text_kv is None


def test_a_transformer_in_parts_is_one(folder: Path):
    weights = torch.load(folder / "longlive_base.pt")["generator"]
    names = sorted(weights)
    torch.save({name: weights[name] for name in names[::2]}, folder / "longlive_base.pt")
    torch.save({name: weights[name] for name in names[1::2]}, folder / "second.pth")
    load_networks(folder)
    torch.save({name: weights[name] for name in names[:3]}, folder / "third.pth")
    with pytest.raises(
        BadCheckpoint, match=r"third\.pth repeats weights of another file, starting with model\.blocks\.0"
    ):
        load_networks(folder)


@pytest.mark.parametrize(
    ("gone", "error", "message"),
    [
        ("config.json", BadConfig, "config.json can't be read"),
        ("longlive_base.pt", BadCheckpoint, "has no weights"),
        ("vae/Wan2.1_VAE.pth", BadCheckpoint, "vae has no weights"),
        ("vace/vace.pth", BadCheckpoint, "vace has no weights"),
    ],
)
def test_a_file_that_is_not_there_is_named(folder: Path, gone: str, error: type[Exception], message: str):
    (folder / gone).unlink()
    with pytest.raises(error, match=message):
        load_networks(folder)
