"""Files of weights as trainers and hubs leave them: each gives the same tensors, or is refused with what to do."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: see docs/export.md")

from torch import Tensor

from export.checkpoint import load_networks, read_weights
from export.config import parse_config
from export.errors import BadCheckpoint
from export.modules.transformer import CausalTransformer, TextKv
from export.tensor_files import Notes, WeightChoice, Weights, WeightSet, unscaled, weight_files
from export.weight_names import unwrapped_name, wan_names
from tests.models.export.checkpoints import write_checkpoint
from tests.models.export.configs import TINY, tiny
from tests.models.export.networks import normal, random_weights

SMALL = {"num_layers": 1, "vace_layers": [], "vae": {"type": "tae", "base_dim": 4, "z_dim": 4, "num_res_blocks": 1}}
WEIGHTS = random_weights(CausalTransformer(tiny(**SMALL)), TextKv(tiny(**SMALL)))


def behind(prefix: str, weights: Mapping[str, Tensor] = WEIGHTS) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def within_blocks(part: str) -> Weights:
    """As FSDP wraps: the model, and each block."""
    return {f"model.{part}{name.replace('blocks.0.', f'blocks.0.{part}')}": value for name, value in WEIGHTS.items()}


HALVES = {name: value / 2 for name, value in WEIGHTS.items()}

NESTS: dict[str, Any] = {
    "flat": WEIGHTS,
    "generator": {"generator": behind("model.")},
    "generator_ema": {"generator_ema": behind("model.")},
    "model": {"model": WEIGHTS},
    "a name nobody knows": {"checkpoint": {"net": {"weights": WEIGHTS}}},
    "training": {
        "generator": behind("model."),
        "critic": behind("model.", HALVES),
        "generator_optimizer": {"state": {0: {"exp_avg": normal(3)}}, "param_groups": [{"lr": 1.0}]},
        "step": 600,
    },
    "Lightning": {"state_dict": behind("model."), "epoch": 1, "hyper_parameters": argparse.Namespace(lr=0.1)},
    "FSDP": {"generator": within_blocks("_fsdp_wrapped_module.")},
    "compiled": {"state_dict": behind("_orig_mod.")},
    "DataParallel": {"model": behind("module.")},
    "checkpointed blocks": within_blocks("_checkpoint_wrapped_module."),
    "ComfyUI": behind("model.diffusion_model."),
    "networks side by side": {**behind("generator.model."), **behind("critic.model.", HALVES)},
    "with what code computes": {**WEIGHTS, "freqs": torch.zeros(4, dtype=torch.complex128)},
    "parameters": {name: torch.nn.Parameter(value) for name, value in WEIGHTS.items()},
}


def test_a_nest_is_found_by_what_it_holds(tmp_path: Path, subtests: pytest.Subtests):
    for number, (name, content) in enumerate(NESTS.items()):
        with subtests.test(name):
            path = tmp_path / f"{number}.pt"
            torch.save(content, path)
            read = wan_names(read_weights(path))
            assert read.keys() == WEIGHTS.keys()
            assert all(torch.equal(read[key], value) for key, value in WEIGHTS.items())


def test_formats_of_torch_are_one(tmp_path: Path, subtests: pytest.Subtests):
    for suffix in (".pt", ".pth", ".bin", ".ckpt"):
        for zipped in (True, False):
            with subtests.test(suffix=suffix, zipped=zipped):
                path = tmp_path / f"w{suffix}"
                torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
                assert read_weights(path).keys() == WEIGHTS.keys()


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path):
    for suffix in (".bin", ".ckpt", ".pt"):
        path = tmp_path / f"w{suffix}"
        torch.save({"state_dict": WEIGHTS, "extra": Payload(tmp_path / "ran")}, path)
        with pytest.raises(BadCheckpoint, match="would run code") as caught:
            read_weights(path)
        assert not (tmp_path / "ran").exists()
        assert "weights_only" not in str(caught.value)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(BadCheckpoint, match="download it again") as caught:
            read_weights(path)
        assert "weights_only" not in str(caught.value)


# -- Trained weights and their average ------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A checkpoint whose file has both."""
    write_checkpoint(tmp_path, **SMALL)
    saved = torch.load(tmp_path / "base.pt")["generator"]
    average = {name: value / 2 for name, value in saved.items()}
    torch.save({"generator": saved, "generator_ema": average, "critic": saved, "step": 1}, tmp_path / "base.pt")
    return tmp_path


def bias(folder: Path, choice: WeightChoice | None = None, notes: Notes | None = None) -> Tensor:
    return load_networks(folder, choice, notes).transformer.blocks[0].ffn[0].bias.detach()


def test_where_both_are_the_user_chooses(both: Path):
    with pytest.raises(BadCheckpoint, match=r"generator \(as trained\) and generator_ema .*--weights online or --weig"):
        bias(both)
    notes = Notes()
    online, average = (bias(both, WeightChoice(weights), notes) for weights in (WeightSet.ONLINE, WeightSet.EMA))
    assert torch.equal(online, 2 * average)
    assert any(average.tolist())
    assert notes.lines == [
        "base.pt: generator is used, not generator_ema, critic",
        "base.pt: generator_ema is used, not generator, critic",
    ]
    config = json.loads((both / "config.json").read_text())
    (both / "config.json").write_text(json.dumps({**config, "weights": "ema"}))
    assert torch.equal(bias(both), average)
    assert torch.equal(bias(both, WeightChoice(WeightSet.ONLINE)), online)


def test_a_choice_that_a_file_does_not_offer_is_refused_and_a_default_is_not(both: Path):
    saved = torch.load(both / "base.pt")
    for name, weights in (("generator", WeightSet.EMA), ("generator_ema", WeightSet.ONLINE)):
        torch.save({name: saved[name]}, both / "base.pt")
        with pytest.raises(BadCheckpoint, match=rf"{name}: use --weights"):
            bias(both, WeightChoice(weights))
        assert any(bias(both, WeightChoice(weights, is_default=True)).tolist())


def test_several_networks_that_fit_are_named(tmp_path: Path):
    torch.save({"first": WEIGHTS, "second": HALVES}, tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match="several networks that fit: first, second"):
        read_weights(tmp_path / "w.pt")


# -- 8 bits ---------------------------------------------------------------------------------------------------


def scaled(form: str) -> tuple[Weights, Tensor]:
    """A file with one weight in fp8 and its scale, in the form of one of several tools; the weight it means."""
    weight = normal(6, 4)
    layer = "blocks.0.ffn.0"
    match form:
        case "ComfyUI":
            scale = weight.abs().max() / 448
            extra = {f"{layer}.scale_weight": scale, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
            extra[f"{layer}.scale_input"] = torch.ones(())
        case "ComfyUI, later":
            scale = weight.abs().max() / 448
            extra = {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": torch.zeros(9, dtype=torch.uint8)}
        case "one per channel":
            scale = weight.abs().amax(1, keepdim=True) / 448
            extra = {f"{layer}.weight_scale": scale}
        case _:
            scale = torch.tensor([[0.5, 2.0], [0.25, 1.0], [1.5, 0.125]])
            extra = {f"{layer}.weight_scale_inv": scale}
            scale = scale.repeat_interleave(2, 0).repeat_interleave(2, 1)
    eight = (weight / scale).to(torch.float8_e4m3fn)
    bias = normal(6)
    return {f"{layer}.weight": eight, f"{layer}.bias": bias, **extra}, eight.float() * scale


def test_scales_of_fp8_are_multiplied_in(tmp_path: Path, subtests: pytest.Subtests):
    for form in ("ComfyUI", "ComfyUI, later", "one per channel", "blocks"):
        with subtests.test(form):
            saved, expected = scaled(form)
            safetensors.save_file(behind("model.diffusion_model.", saved), tmp_path / "w.safetensors")
            read = wan_names(read_weights(tmp_path / "w.safetensors"))
            assert read.keys() == {"blocks.0.ffn.0.weight", "blocks.0.ffn.0.bias"}
            torch.testing.assert_close(read["blocks.0.ffn.0.weight"], expected)


def test_other_quantisations_are_refused(subtests: pytest.Subtests):
    eight = torch.zeros(4, 4, dtype=torch.float8_e4m3fn)
    cases: list[tuple[Weights, str]] = [
        ({"a.weight": eight, "a.weight_scale": torch.ones(1), "a.weight_scale_2": torch.ones(1)}, "quantised in a way"),
        ({"a.weight": eight, "a.weight_scale": torch.ones(3)}, r"scale of a\.weight is \[3\], the weight \[4, 4\]"),
        ({"a.weight": eight.float(), "a.weight_scale": torch.ones(1)}, "not 8-bit"),
        ({"a.weight": eight.to(torch.int8)}, "in int8 and has no scale"),
    ]
    for tensors, message in cases:
        with subtests.test(message), pytest.raises(BadCheckpoint, match=message):
            unscaled(Path("w.safetensors"), tensors)


def test_numbers_that_are_none_are_refused(tmp_path: Path, subtests: pytest.Subtests):
    for value, dtype in (
        (float("nan"), torch.float32),
        (float("inf"), torch.bfloat16),
        (float("nan"), torch.float8_e4m3fn),
    ):
        with subtests.test(value=value, dtype=dtype):
            bad = {**WEIGHTS, "head.head.bias": torch.full((16,), value).to(dtype)}
            safetensors.save_file(bad, tmp_path / "w.safetensors")
            with pytest.raises(BadCheckpoint, match=r"w\.safetensors has NaN or infinite values in head\.head\.bias"):
                read_weights(tmp_path / "w.safetensors")


# -- What lies about in folders -------------------------------------------------------------------------------


def test_what_is_no_file_of_weights_is_named(tmp_path: Path, subtests: pytest.Subtests):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for content, message in (
        (pointer, "Git LFS pointer, not the weights; run `git lfs pull`"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"", "empty"),
    ):
        for suffix in (".safetensors", ".pt"):
            path = tmp_path / f"w{suffix}"
            path.write_bytes(content)
            with subtests.test(message=message, suffix=suffix), pytest.raises(BadCheckpoint, match=message):
                read_weights(path)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


def test_which_files_of_a_folder_are_weights(tmp_path: Path, subtests: pytest.Subtests):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}})
    cases: list[tuple[list[str], str | None, list[str]]] = [
        (["._model.safetensors", "model.safetensors", "notes.txt"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.fp16.safetensors"], None, ["model.fp16.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], None, ["model.safetensors"]),
        ([*shards, "model.fp16.safetensors", "pytorch_model.bin"], index, shards),
        ([*shards, "models_t5.pth"], index, [*shards, "models_t5.pth"]),
    ]
    for number, (names, content, expected) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        touch(folder, *names)
        if content is not None:
            (folder / "model.safetensors.index.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
        with subtests.test(names=names):
            assert [path.name for path in weight_files(folder)] == expected


def test_an_index_that_names_missing_files_or_other_folders_is_refused(tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(BadCheckpoint, match=r"names files that are missing: model-1\.safetensors; download them too"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(BadCheckpoint, match="outside its folder"):
        weight_files(tmp_path)


def test_parts_are_taken_out_anywhere_in_a_name():
    assert unwrapped_name("model._fsdp_wrapped_module.blocks.0._orig_mod.module.q.weight") == "blocks.0.q.weight"
    assert unwrapped_name("first_stage_model.encoder.conv1.weight") == "encoder.conv1.weight"
    assert unwrapped_name("text_encoders.umt5xxl.transformer.shared.weight") == "shared.weight"


def test_a_release_with_everything_side_by_side_is_one_checkpoint(tmp_path: Path):
    """A base, its LoRA, the autoencoder and the text encoder in one folder, behind the prefixes of several tools."""
    write_checkpoint(tmp_path, **SMALL)
    expected = load_networks(tmp_path)
    lora = {"base_model.model.blocks.0.ffn.0.lora_A.default.weight": normal(2, 48)}
    lora["base_model.model.blocks.0.ffn.0.lora_B.default.weight"] = normal(64, 2, seed=1)
    torch.save({"generator_lora": lora, "critic_lora": lora, "step": 3}, tmp_path / "lora.pt")
    vae = torch.load(tmp_path / "vae" / "vae.pth")
    torch.save(behind("taehv.", vae), tmp_path / "taew.pth")
    encoder = torch.load(tmp_path / "text_encoder" / "encoder.pth")
    torch.save(behind("encoder.", encoder), tmp_path / "models_t5.pth")
    for path in (tmp_path / "vae" / "vae.pth", tmp_path / "text_encoder" / "encoder.pth"):
        path.unlink()
    (tmp_path / "vae").rmdir()
    for name in ("config.json", "tokenizer.json"):  # the encoder's is UMT5-XXL's in a release
        assert (tmp_path / "text_encoder" / name).is_file()
    notes = Notes()
    with pytest.raises(BadCheckpoint, match="text_encoder has no weights"):
        load_networks(tmp_path)
    (tmp_path / "text_encoder" / "encoder.pth").write_bytes((tmp_path / "models_t5.pth").read_bytes())
    (tmp_path / "models_t5.pth").unlink()
    loaded = load_networks(tmp_path, notes=notes)
    assert notes.lines[0] == "lora.pt: generator_lora is used, not critic_lora"
    assert "lora.pt is used as in the folder lora: it is a LoRA" in notes.lines
    delta = 256 / 2 * (normal(64, 2, seed=1) @ normal(2, 48))
    before = expected.transformer.blocks[0].ffn[0].weight
    torch.testing.assert_close(loaded.transformer.blocks[0].ffn[0].weight, before + delta.T)
    assert all(
        torch.equal(value, loaded.vae_decoder.state_dict()[name])
        for name, value in expected.vae_decoder.state_dict().items()
    )


def test_another_network_in_a_folder_is_named(tmp_path: Path):
    write_checkpoint(tmp_path, **SMALL)
    (tmp_path / "vae" / "vae.pth").unlink()
    torch.save(WEIGHTS, tmp_path / "vae" / "w.pt")
    with pytest.raises(BadCheckpoint, match=r"w\.pt is not the VAE: it is a transformer"):
        load_networks(tmp_path)
    wan22 = {"encoder.downsamples.0.downsamples.0.residual.0.gamma": normal(3)}
    torch.save(wan22, tmp_path / "vae" / "w.pt")
    with pytest.raises(BadCheckpoint, match=r"w\.pt is not the VAE: it is Wan2.2's VAE; Wan2.1's is supported"):
        load_networks(tmp_path)


def test_the_whole_video_as_a_window_is_explained():
    with pytest.raises(Exception, match=r"local_attn_size .* got -1.*write 21"):
        parse_config({**TINY, "local_attn_size": -1})
