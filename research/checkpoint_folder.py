"""From a training's state to the folder of a checkpoint that `python -m export longlive` takes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoint import Networks, load_networks
from export.modules.layers import Linear
from research.autoencoder import scaled, trained_autoencoder
from research.checkpoints import load_averages
from research.generator import new_generator
from research.lora import FILE_NAME as LORA
from research.lora import LORA_NAME, trained_lora
from research.settings import Settings
from research.vace import FILE_NAME as VACE
from research.vace import trained_vace
from tests.support.toyworld.grammar import write_tokenizer


def trained_networks(folder: Path, settings: Settings, state: str) -> Networks:
    """The averaged weights of all networks, in float32.

    Args:
        folder: of the training.
        settings: of the training.
        state: name of the file with the generator's.

    Raises:
        FileNotFoundError: something is not trained yet.
    """
    final = _final_settings(settings, folder)
    encoder, decoder = trained_autoencoder(folder, settings)
    generator = new_generator(final, seed=0)
    load_averages(folder / state, generator.by_name())
    vace = trained_vace(folder, final.checkpoint) if final.checkpoint.vace_layers else None
    return Networks(
        final.checkpoint,
        generator.transformer.eval(),
        generator.text_kv.eval(),
        None if vace is None else vace.branch,
        None if vace is None else vace.text_kv,
        encoder,
        decoder,
        generator.text_encoder.eval(),
    )


def _final_settings(settings: Settings, folder: Path) -> Settings:
    """The settings with what the stages so far have measured and trained."""
    final = scaled(settings, folder)
    return final.with_vace if (folder / VACE).exists() else final


def write_checkpoint(out: Path, folder: Path, settings: Settings, state: str) -> int:
    """Write the folder of a checkpoint, its weights in float16; gives its size in bytes.

    It is read back before it counts.

    Args:
        out: where to.
        folder: of the training.
        settings: of the training.
        state: name of the file with the generator's.

    Raises:
        FileNotFoundError: something is not trained yet.
    """
    networks = trained_networks(folder, settings, state)
    text_encoder = networks.text_encoder
    assert text_encoder is not None
    for part in ("vae", "text_encoder"):
        (out / part).mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", _final_settings(settings, folder).checkpoint_values)
    _write_json(out / "text_encoder" / "config.json", settings.text_encoder_values)
    write_tokenizer(out / "text_encoder")
    branch = [part for part in (networks.vace, networks.vace_text_kv) if part is not None]
    _save(out / "model.safetensors", *branch, networks.transformer, networks.text_kv)
    _save(out / "vae" / "vae.safetensors", networks.vae_encoder, networks.vae_decoder)
    _save(out / "text_encoder" / "text_encoder.safetensors", text_encoder)
    if (folder / LORA).exists():
        (out / "loras").mkdir(exist_ok=True)
        save_file(trained_lora(folder, settings), out / "loras" / f"{LORA_NAME}.safetensors")
    load_networks(out)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _save(path: Path, *modules: nn.Module) -> None:
    """Weights in float16, linear layers [out, in] as checkpoints have them."""
    weights: dict[str, Tensor] = {}
    for module in modules:
        linear = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)}
        for name, parameter in module.named_parameters():
            value = parameter.detach().T if name in linear else parameter.detach()
            weights[name] = value.to(torch.float16, memory_format=torch.contiguous_format).contiguous()
    save_file(weights, path)


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
