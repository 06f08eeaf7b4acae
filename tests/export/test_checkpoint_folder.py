"""A checkpoint's folder, loaded whole."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from export.checkpoint import Weights
from export.checkpoint_folder import load_networks
from export.errors import BadCheckpoint, BadConfig
from export.modules.text_kv import TextKv
from export.modules.transformer import CausalTransformer
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from tests.export.configs import TINY, tiny
from tests.export.networks import normal, random_weights

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


def test_without_vace_layers_there_is_no_branch(folder: Path):
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
    with pytest.raises(BadCheckpoint, match=r"third\.pth repeats weights of another file, model\.blocks\.0"):
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
