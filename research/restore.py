"""From a checkpoint back to the states of the stages, so that a training goes on where the shipped weights stand."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.checkpoint import Networks, load_networks, read_weights
from export.config import load_text_encoder_config
from export.errors import BadCheckpoint
from research.autoencoder import FILE_NAME as AUTOENCODER
from research.autoencoder import SCALES_NAME
from research.checkpoints import first_state, write_atomically
from research.generator import FILE_NAME as GENERATOR
from research.lora import FILE_NAME as LORA
from research.lora import LORA_NAME, lora_of
from research.settings import Settings
from research.vace import FILE_NAME as VACE
from research.vace import VaceNetworks


def restore(folder: Path, checkpoint: Path, settings: Settings) -> list[Path]:
    """Write the states of all stages that a checkpoint has weights of; gives their paths.

    They begin at step 0: what optimisers knew is not in a checkpoint. A state of self-context is not made: the
    generator's has its weights.

    Raises:
        FileExistsError: the folder has something in it; clips, say, would be of another autoencoder.
        BadConfig, BadCheckpoint: the checkpoint can't be read, or is not of these settings.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder")
    networks = load_networks(checkpoint)
    _check(checkpoint, networks, settings)
    states = _states(checkpoint, networks, settings)
    folder.mkdir(parents=True, exist_ok=True)
    scales = {name: getattr(networks.config.vae, name) for name in ("latents_mean", "latents_std")}
    (folder / SCALES_NAME).write_text(json.dumps(scales))
    for name, modules in states.items():
        write_atomically(folder / name, first_state(modules, torch.Generator().manual_seed(0)))
    return [folder / name for name in states]


def _check(checkpoint: Path, networks: Networks, settings: Settings) -> None:
    config = (settings if networks.vace is None else settings.with_vace).checkpoint
    unscaled = networks.config.vae.model_copy(
        update={"latents_mean": config.vae.latents_mean, "latents_std": config.vae.latents_std}
    )
    same = networks.text_encoder is not None and networks.config.model_copy(update={"vae": unscaled}) == config
    if same:
        same = load_text_encoder_config(checkpoint / "text_encoder", text_dim=config.text_dim) == settings.text_encoder
    if not same:
        raise BadCheckpoint(f"{checkpoint} is not of these settings: its config.json or its text encoder's is another")


def _states(checkpoint: Path, networks: Networks, settings: Settings) -> dict[str, Mapping[str, nn.Module]]:
    assert networks.text_encoder is not None
    states: dict[str, Mapping[str, nn.Module]] = {
        AUTOENCODER: {"encoder": networks.vae_encoder, "decoder": networks.vae_decoder},
        GENERATOR: {
            "transformer": networks.transformer,
            "text_kv": networks.text_kv,
            "text_encoder": networks.text_encoder,
        },
    }
    if networks.vace is not None:
        states[VACE] = {"vace": _vace(networks)}
    lora = checkpoint / "loras" / f"{LORA_NAME}.safetensors"
    if lora.exists():
        weights: Mapping[str, Tensor] = read_weights(lora)
        try:
            states[LORA] = {"lora": lora_of(weights, settings)}
        except (KeyError, RuntimeError) as error:
            raise BadCheckpoint(f"{lora} is not of these settings: {error}") from None
    return states


def _vace(networks: Networks) -> VaceNetworks:
    made = VaceNetworks(networks.config)
    assert networks.vace is not None
    assert networks.vace_text_kv is not None
    made.branch.load_state_dict(networks.vace.state_dict())
    made.text_kv.load_state_dict(networks.vace_text_kv.state_dict())
    return made
