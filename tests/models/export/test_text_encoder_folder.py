"""The text encoder of a checkpoint's folder: every form of names and files gives the same module."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: see docs/export.md")

from export.checkpoint import load_networks
from export.checkpoint_files import find_tokenizer
from export.errors import BadCheckpoint, BadConfig
from export.modules.text_encoder import TextEncoder, distance_buckets
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vae import VaeDecoder, VaeEncoder
from export.weight_names import Weights, wan_text_encoder_names
from tests.models.export.configs import TINY, TINY_TEXT_ENCODER, tiny, tiny_text_encoder
from tests.models.export.networks import random_weights

CONFIG = tiny(vace_layers=[])
WEIGHTS = random_weights(TextEncoder(tiny_text_encoder(), CONFIG.text_len))

TRANSFORMERS = {
    # By Wan's names. {} is a block's number.
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
    "blocks.{}.norm1.weight": "encoder.block.{}.layer.0.layer_norm.weight",
    "blocks.{}.attn.q.weight": "encoder.block.{}.layer.0.SelfAttention.q.weight",
    "blocks.{}.attn.k.weight": "encoder.block.{}.layer.0.SelfAttention.k.weight",
    "blocks.{}.attn.v.weight": "encoder.block.{}.layer.0.SelfAttention.v.weight",
    "blocks.{}.attn.o.weight": "encoder.block.{}.layer.0.SelfAttention.o.weight",
    "blocks.{}.pos_embedding.embedding.weight": (
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "blocks.{}.norm2.weight": "encoder.block.{}.layer.1.layer_norm.weight",
    "blocks.{}.ffn.gate.0.weight": "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight",
    "blocks.{}.ffn.fc1.weight": "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight",
    "blocks.{}.ffn.fc2.weight": "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
}


def in_transformers_names(weights: Weights) -> Weights:
    names = {ours.format(block): theirs.format(block) for ours, theirs in TRANSFORMERS.items() for block in range(3)}
    return {names[name]: value for name, value in weights.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose text encoder has a configuration and no weights yet."""
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "vace_layers": []}))
    torch.save(random_weights(CausalTransformer(CONFIG), TextKv(CONFIG)), tmp_path / "base.pt")
    (tmp_path / "vae").mkdir()
    torch.save(random_weights(VaeEncoder(CONFIG.vae), VaeDecoder(CONFIG.vae)), tmp_path / "vae" / "vae.pth")
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(TINY_TEXT_ENCODER))
    return tmp_path


def as_wans_pth(folder: Path) -> None:
    torch.save(WEIGHTS, folder / "models_t5_umt5-xxl-enc-bf16.pth")


def as_transformers_pt(folder: Path) -> None:
    """As `torch.save(model.state_dict())` writes it: the embeddings twice."""
    weights = in_transformers_names(WEIGHTS)
    torch.save({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]}, folder / "encoder.pt")


def as_shards(folder: Path) -> None:
    names = list(in_transformers_names(WEIGHTS))
    for number in range(3):
        shard = {name: in_transformers_names(WEIGHTS)[name].contiguous() for name in names[number::3]}
        safetensors.save_file(shard, folder / f"model-{number + 1:05}-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def as_a_part_of_a_whole_model(folder: Path) -> None:
    """With a decoder, which goes unused, and the embeddings under one of their two names, not the usual one."""
    weights = in_transformers_names(WEIGHTS)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    others = {"decoder.final_layer_norm.weight": torch.ones(20), "lm_head.weight": torch.ones(50, 20)}
    tokenizer = {"spiece_model": torch.zeros(9, dtype=torch.uint8)}
    torch.save({**others, **weights, **tokenizer}, folder / "umt5.pt")


def as_transformers_itself_saves_it(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: see docs/export.md")
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**TINY_TEXT_ENCODER))
    model.load_state_dict(in_transformers_names(WEIGHTS), strict=False)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "write",
    [as_wans_pth, as_transformers_pt, as_shards, as_a_part_of_a_whole_model, as_transformers_itself_saves_it],
)
def test_each_form_loads_to_the_same_module(folder: Path, write: Callable[[Path], None]):
    write(folder / "text_encoder")
    loaded = load_networks(folder).text_encoder
    assert loaded is not None
    state = loaded.state_dict()
    assert state.keys() == WEIGHTS.keys()
    is_table = ("embedding.weight", "norm.weight", "norm1.weight", "norm2.weight")
    for name, value in WEIGHTS.items():
        assert torch.equal(state[name], value if name.endswith(is_table) else value.T), name


def test_bfloat16_stays_and_float16_does_not(folder: Path):
    for given, expected in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        torch.save({name: value.to(given) for name, value in WEIGHTS.items()}, folder / "text_encoder" / "w.pth")
        loaded = load_networks(folder).text_encoder
        assert loaded is not None
        assert {value.dtype for value in loaded.parameters()} == {expected}
        assert torch.equal(loaded.norm.weight, WEIGHTS["norm.weight"].to(given).to(expected))
        assert torch.equal(loaded.buckets, distance_buckets(CONFIG.text_len, 32, 128))
        assert torch.get_default_dtype() == torch.float32


def test_without_a_folder_the_checkpoint_has_no_text_encoder(folder: Path):
    (folder / "text_encoder" / "config.json").unlink()
    (folder / "text_encoder").rmdir()
    assert load_networks(folder).text_encoder is None


def test_two_different_embeddings_are_refused():
    one = torch.zeros(1)
    with pytest.raises(BadCheckpoint, match=r"both token_embedding\.weight, one of them encoder\.embed_tokens\.weight"):
        wan_text_encoder_names({"shared.weight": one, "encoder.embed_tokens.weight": one + 1})


def test_what_does_not_fit_is_named(folder: Path):
    weights = {**WEIGHTS, "blocks.0.attn.q.bias": torch.zeros(16), "norm.weight": torch.ones(19)}
    del weights["blocks.2.pos_embedding.embedding.weight"]
    torch.save(weights, folder / "text_encoder" / "w.pth")
    with pytest.raises(BadCheckpoint) as caught:
        load_networks(folder)
    assert str(caught.value) == (
        "the weights don't fit: missing: blocks.2.pos_embedding.embedding.weight; "
        "unexpected: blocks.0.attn.q.bias; wrong shape: norm.weight is [19], not [20]"
    )


def test_a_folder_without_weights_or_with_another_size_is_named(folder: Path):
    with pytest.raises(BadCheckpoint, match="text_encoder has no weights"):
        load_networks(folder)
    (folder / "text_encoder" / "config.json").write_text(json.dumps({**TINY_TEXT_ENCODER, "d_model": 16}))
    with pytest.raises(BadConfig, match=r"text_encoder/config\.json: d_model = 16"):
        load_networks(folder)


def test_the_tokenizer_is_found_in_either_folder_or_its_lack_is_explained(tmp_path: Path):
    with pytest.raises(BadCheckpoint, match=r"has no tokenizer\.json in text_encoder or tokenizer.*spiece\.model"):
        find_tokenizer(tmp_path)
    for name in ("tokenizer", "text_encoder"):  # where both are, the encoder's own is taken
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
        assert find_tokenizer(tmp_path) == tmp_path / name / "tokenizer.json"
