"""`python -m export inspect`: what files are, or why they are nothing we know."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: see docs/export.md")

from click.testing import CliRunner, Result
from torch import Tensor

from export.__main__ import main
from export.config import TaeConfig, VaeConfig, parse_config
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.record import ExportRecord
from tests.models.export.configs import TINY, tiny, tiny_text_encoder
from tests.models.export.networks import normal, random_weights

CONFIG = tiny(num_layers=1, vace_layers=[0])
TRANSFORMER = random_weights(CausalTransformer(CONFIG), TextKv(CONFIG))
VACE = {
    name: value
    for name, value in random_weights(VaceBranch(CONFIG), TextKv(CONFIG, vace=True)).items()
    if name.startswith("vace_")
}


def inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def report(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = inspect(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.output)


def lora(layer: str = "blocks.0.ffn.2", prefix: str = "diffusion_model.", rank: int = 2) -> dict[str, Tensor]:
    return {f"{prefix}{layer}.lora_A.weight": normal(rank, 64), f"{prefix}{layer}.lora_B.weight": normal(48, rank)}


KINDS: dict[str, tuple[Callable[[], dict[str, Tensor]], dict[str, Any]]] = {
    "transformer": (lambda: TRANSFORMER, {"layout": "Wan", "complete": True}),
    "VACE branch": (lambda: VACE, {"layout": "Wan", "complete": True}),
    "VAE": (lambda: random_weights(VaeEncoder(VaeConfig(dim=4)), VaeDecoder(VaeConfig(dim=4))), {"layout": "Wan"}),
    "tiny autoencoder": (
        lambda: random_weights(TaeEncoder(TaeConfig(dim=4)), TaeDecoder(TaeConfig(dim=4))),
        {"layout": "TAEHV", "complete": True},
    ),
    "text encoder": (
        lambda: random_weights(TextEncoder(tiny_text_encoder(num_layers=1), 6)),
        {"layout": "Wan", "complete": True},
    ),
    "LoRA": (lora, {"layout": "lora_A/lora_B", "prefix": "diffusion_model."}),
}


def test_each_network_is_recognised_whatever_its_size(tmp_path: Path, subtests: pytest.Subtests):
    for kind, (weights, expected) in KINDS.items():
        with subtests.test(kind):
            safetensors.save_file({name: value.half() for name, value in weights().items()}, tmp_path / "w.safetensors")
            found = report(tmp_path / "w.safetensors")
            assert (found["usable"], found["kind"]) == (True, kind)
            assert found["dtypes"] == {"float16": len(weights())}
            assert expected.items() <= found.items()


def test_a_training_checkpoint_is_described(tmp_path: Path):
    wrapped = {f"model._fsdp_wrapped_module.{name}": value for name, value in TRANSFORMER.items()}
    torch.save({"generator": wrapped, "generator_ema": wrapped, "critic": wrapped, "step": 5}, tmp_path / "w.pt")
    found = report(tmp_path / "w.pt")
    assert (found["nest"], found["prefix"]) == ("generator_ema", "model._fsdp_wrapped_module.")
    assert found["nests"] == dict.fromkeys(("generator", "generator_ema", "critic"), len(TRANSFORMER))
    assert found["next"].endswith("--weights ema")
    text = inspect(tmp_path / "w.pt").output
    assert "usable, a transformer" in text
    assert f"also in the file: generator ({len(TRANSFORMER)}), critic ({len(TRANSFORMER)})" in text


def test_a_part_of_a_network_is_usable(tmp_path: Path):
    names = sorted(TRANSFORMER)[:9]
    safetensors.save_file({name: TRANSFORMER[name] for name in names}, tmp_path / "model-1.safetensors")
    found = report(tmp_path / "model-1.safetensors")
    assert (found["usable"], found["complete"]) == (True, False)


UNKNOWN: dict[str, tuple[dict[str, Tensor], str]] = {
    "nothing": ({"a.b": normal(2)}, "names are those of no network we know: a.b"),
    "image-to-video": ({**TRANSFORMER, "blocks.0.cross_attn.k_img.weight": normal(2)}, "image-to-video"),
    "Wan2.2": ({"decoder.upsamples.0.upsamples.0.residual.0.gamma": normal(2)}, "Wan2.2's VAE"),
    "other weights": ({**TRANSFORMER, "blocks.0.memory.weight": normal(2)}, "other weights, too: blocks.0.memory"),
    "Stable Diffusion": (
        {f"lora_unet_down_blocks_0_attn.{part}.weight": normal(2, 2) for part in ("lora_up", "lora_down")},
        "has only keys that fit no layer",
    ),
    "DoRA": ({**lora(), "diffusion_model.blocks.0.ffn.2.dora_scale": normal(48, 1)}, "is a DoRA"),
    "NaN": ({**TRANSFORMER, "head.head.bias": torch.full((16,), torch.nan)}, "NaN or infinite"),
}


def test_what_is_unknown_says_why(tmp_path: Path, subtests: pytest.Subtests):
    for name, (weights, reason) in UNKNOWN.items():
        with subtests.test(name):
            safetensors.save_file(weights, tmp_path / "w.safetensors")
            found = report(tmp_path / "w.safetensors", code=1)
            assert found["usable"] is False
            assert reason in found["reason"]
            assert reason in inspect(tmp_path / "w.safetensors").output


def test_what_is_no_file_of_weights_is_1_and_a_wrong_option_is_2(tmp_path: Path, subtests: pytest.Subtests):
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04junk")
    for name in ("pointer.safetensors", "notes.txt", "broken.pt", "missing.pt"):
        with subtests.test(name):
            found = report(tmp_path / name, code=1)
            assert found["usable"] is False
            assert name in found["reason"]
            assert "weights_only" not in found["reason"]
    assert inspect(tmp_path / "notes.txt", "--nonsense").exit_code == 2
    assert inspect(tmp_path / "notes.txt", "--for", tmp_path / "nowhere").exit_code == 2
    assert inspect().exit_code == 2


def test_a_folder_stands_for_its_files(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "no files of weights" in report(tmp_path / "empty", code=1)["reason"]
    safetensors.save_file(lora(), tmp_path / "one.safetensors")
    (tmp_path / "._one.safetensors").write_bytes(b"\0\5\x16\7")
    torch.save(TRANSFORMER, tmp_path / "two.pt")
    found = report(tmp_path)
    assert [(Path(one["path"]).name, one["kind"]) for one in found] == [
        ("one.safetensors", "LoRA"),
        ("two.pt", "transformer"),
    ]


@pytest.fixture(params=["checkpoint", "pipeline"])
def network(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What a LoRA is compared with: a checkpoint's folder, or that of an exported pipeline."""
    values = {**TINY, "vace_layers": []}
    if request.param == "checkpoint":
        (tmp_path / "config.json").write_text(json.dumps(values))
    else:
        (tmp_path / "1").mkdir()
        ExportRecord(config=parse_config(values), checkpoint=("/x",)).write(tmp_path / "1")
    return tmp_path


def test_a_lora_is_compared_with_a_network(network: Path, tmp_path: Path):
    path = tmp_path / "style.safetensors"
    weights = {**lora(), **lora("blocks.1.ffn.2", rank=4), **lora("blocks.7.ffn.2"), **lora("vace_blocks.0.ffn.2")}
    safetensors.save_file({**weights, "diffusion_model.blocks.0.norm3.diff": normal(48)}, path)
    found = report(path, "--for", network)["lora"]
    assert (found["ranks"], found["num_layers"], found["network"]) == ([2, 4], 3, str(network))
    assert found["targets"] == ["blocks.#.ffn.2", "blocks.#.norm3.weight"]
    assert found["left_out"] == ["diffusion_model.blocks.7.ffn.2", "diffusion_model.vace_blocks.0.ffn.2"]
    assert "left out, not in the network: 2:" in inspect(path, "--for", network).output
    assert report(path)["lora"]["left_out"] == []  # a network of the family may have them


def test_a_lora_that_does_not_fit_a_network_is_1(network: Path, tmp_path: Path):
    path = tmp_path / "style.safetensors"
    safetensors.save_file(lora("blocks.7.ffn.2"), path)
    assert "fit no layer" in report(path, "--for", network, code=1)["reason"]
    safetensors.save_file({name: value[:, :1] for name, value in lora(rank=1).items()}, path)
    assert "for a network of another size" in report(path, "--for", network, code=1)["reason"]
    safetensors.save_file(TRANSFORMER, path)
    assert "--for compares LoRAs" in report(path, "--for", network, code=1)["reason"]
