"""From a checkpoint back to the states of the stages, so that a training goes on where the shipped weights stand."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.checkpoint import read_weights
from export.checkpoint_folder import Networks, load_networks
from training.autoencoder import FILE_NAME as AUTOENCODER
from training.autoencoder import SCALES_NAME
from training.checkpoints import first_state, write_atomically
from training.generator import FILE_NAME as GENERATOR
from training.lora import FILE_NAME as LORA
from training.lora import LORA_NAME, lora_of
from training.settings import Settings
from training.vace import FILE_NAME as VACE
from training.vace import VaceNetworks


def restore(folder: Path, checkpoint: Path, settings: Settings) -> list[Path]:
    """Write the states of all stages that a checkpoint has weights of; gives their paths.

    They begin at step 0: what optimisers knew is not in a checkpoint.

    Raises:
        FileExistsError: the folder has states already.
        BadConfig, BadCheckpoint: the checkpoint can't be read, or is not of these settings.
    """
    states = _states(checkpoint, settings)
    found = [name for name in states if (folder / name).exists()]
    if found:
        raise FileExistsError(f"{folder} has {', '.join(found)} already: name another folder, or delete them")
    vae = json.loads((checkpoint / "config.json").read_text())["vae"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCALES_NAME).write_text(json.dumps({name: vae[name] for name in ("latents_mean", "latents_std")}))
    for name, modules in states.items():
        write_atomically(folder / name, first_state(modules, torch.Generator().manual_seed(0)))
    return [folder / name for name in states]


def _states(checkpoint: Path, settings: Settings) -> dict[str, Mapping[str, nn.Module]]:
    networks = load_networks(checkpoint)
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
        states[LORA] = {"lora": lora_of(weights, settings)}
    return states


def _vace(networks: Networks) -> VaceNetworks:
    made = VaceNetworks(networks.config)
    assert networks.vace is not None
    assert networks.vace_text_kv is not None
    made.branch.load_state_dict(networks.vace.state_dict())
    made.text_kv.load_state_dict(networks.vace_text_kv.state_dict())
    return made
