"""Tells which network a file's weights belong to, by their names alone: dimensions may be any."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from export.config import CheckpointConfig, TaeConfig, TextEncoderConfig, VaeConfig
from export.errors import BadCheckpoint, abbreviate
from export.lora import is_lora_key
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.tensor_files import Notes, TensorSet, WeightChoice, choose_set, weight_names
from export.weight_names import unwrapped, wan_names, wan_text_encoder_names, wan_vae_names


class Kind(StrEnum):
    """What a file can be."""

    TRANSFORMER = "transformer"
    VACE = "VACE branch"
    VAE = "VAE"
    TAE = "tiny autoencoder"
    TEXT_ENCODER = "text encoder"
    LORA = "LoRA"


@dataclass(frozen=True)
class Recognition:
    """What a set of tensors is.

    Attributes:
        kind: None if it is nothing that we know.
        known: how many of its tensors belong to that network.
        unknown: names of the others.
        missing: names that the network needs and the set lacks, with # for numbers.
    """

    kind: Kind | None
    known: int = 0
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether every tensor is one of the network's, so that the file is all or a part of it."""
        return self.kind is not None and self.known > 0 and not self.unknown


def recognise(tensors: Mapping[str, Tensor]) -> Recognition:
    """Tell what a set of tensors is: the network that most of their names belong to."""
    lora_keys = [name for name in tensors if is_lora_key(name)]
    if 2 * len(lora_keys) > len(tensors):
        return Recognition(Kind.LORA, len(lora_keys))
    return max((_compare(kind, tensors) for kind in _NAMES), key=lambda found: (found.known, -len(found.missing)))


def num_known(kind: Kind) -> Callable[[Mapping[str, Tensor]], int]:
    """A function that counts the tensors of a set that a network has."""
    if kind is Kind.LORA:
        return lambda tensors: sum(is_lora_key(name) for name in tensors)
    return lambda tensors: _compare(kind, tensors).known


def best_set(
    path: Path, sets: Sequence[TensorSet], choice: WeightChoice, notes: Notes
) -> tuple[TensorSet, Recognition]:
    """The set of a file that is a network we know, and what it is.

    Raises:
        BadCheckpoint: several sets fit, and nothing says which is meant.
    """
    found = [recognise(one.tensors) for one in sets]
    most = max(found, key=lambda one: one.known)
    if most.kind is None or not most.known:
        return sets[0], replace(found[0], kind=None)
    chosen = choose_set(path, sets, num_known(most.kind), choice, notes)
    return chosen, recognise(chosen.tensors)


# -- The names of networks ------------------------------------------------------------------------------------

SMALLEST = CheckpointConfig.model_validate(
    {
        "dim": 8,
        "ffn_dim": 8,
        "num_heads": 1,
        "num_layers": 1,
        "in_channels": 4,
        "out_channels": 4,
        "freq_dim": 2,
        "text_len": 4,
        "eps": 1e-6,
        "latent_frames_per_chunk": 1,
        "window": 2,
        "sink": 0,
        "timestep_shift": 1.0,
        "text_steps": (1000.0,),
        "video_steps": (1000.0,),
        "position_embedding": True,
        "vace_layers": (0,),
    },
    by_alias=False,
    by_name=True,
)
"""The smallest transformer with everything that one may have."""
_ENCODER = TextEncoderConfig(vocab_size=4, dim=8, head_dim=4, ffn_dim=8, num_layers=1, num_heads=2)


def _transformer_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return wan_names(weights)


def _vae_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return wan_vae_names(weights, VaeConfig())


_NAMES: dict[Kind, Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = {
    Kind.TRANSFORMER: _transformer_names,
    Kind.VACE: _transformer_names,
    Kind.VAE: _vae_names,
    Kind.TAE: unwrapped,
    Kind.TEXT_ENCODER: wan_text_encoder_names,
}


def _compare(kind: Kind, tensors: Mapping[str, Tensor]) -> Recognition:
    allowed, required = _patterns()[kind]
    try:
        named = _NAMES[kind](dict.fromkeys(weight_names(tensors), _NOTHING))
    except BadCheckpoint:
        return Recognition(None)
    patterns = {name: _pattern(name) for name in named}
    unknown = tuple(name for name, pattern in patterns.items() if pattern not in allowed)
    missing = tuple(sorted(required - set(patterns.values())))
    return Recognition(kind, len(named) - len(unknown), unknown, missing)


_NOTHING = torch.zeros(1)


@cache
def _patterns() -> dict[Kind, tuple[frozenset[str], frozenset[str]]]:
    """For each network the names that it may have, and those that it needs, with # for numbers."""
    with torch.device("meta"):
        transformer = _parameter_patterns(CausalTransformer(SMALLEST), TextKv(SMALLEST))
        branch = _parameter_patterns(VaceBranch(SMALLEST), TextKv(SMALLEST, vace=True))
        vae = _parameter_patterns(VaeEncoder(VaeConfig(dim=4)), VaeDecoder(VaeConfig(dim=4)))
        tae = _parameter_patterns(TaeEncoder(TaeConfig(dim=4)), TaeDecoder(TaeConfig(dim=4)))
        encoder = _parameter_patterns(TextEncoder(_ENCODER, 4))
    vace = frozenset(name for name in branch if name.startswith("vace_"))
    needed = frozenset(name for name in transformer if not name.startswith("position_embedding."))
    return {
        # A whole model with VACE is a transformer, too; the branch comes alone as a module file.
        Kind.TRANSFORMER: (transformer | vace, needed),
        Kind.VACE: (vace, vace),
        Kind.VAE: (vae, vae),
        Kind.TAE: (tae, tae),
        Kind.TEXT_ENCODER: (encoder, encoder),
    }


def _parameter_patterns(*modules: nn.Module) -> frozenset[str]:
    return frozenset(_pattern(name) for module in modules for name, _ in module.named_parameters())


def _pattern(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


# -- What else there is ---------------------------------------------------------------------------------------

_OTHERS = (
    (r"(^|\.)(img_emb|[kv]_img|add_[kv]_proj|image_embedder)\.", "an image-to-video model of Wan; only text-to-video"),
    (r"(^|\.)(encoder|decoder)\.(downsamples|upsamples)\.\d+\.(downsamples|upsamples)\.", "Wan2.2's VAE; Wan2.1's"),
    (r"(^|\.)(face_adapter|motion_encoder|pose_patch_embedding)\.", "a model of Wan-Animate; only text-to-video"),
    (r"(^|_|\.)(down_blocks|input_blocks|mid_block|middle_block)[_.]\d", "of Stable Diffusion's kind; Wan's"),
    (r"(^|_|\.)(double_blocks|single_blocks|single_transformer_blocks)[_.]\d", "of FLUX's kind; Wan's"),
    (r"(^|\.)(vision_model|text_model|visual)\.", "a CLIP model, which text-to-video does not use; Wan's"),
)


def why_unknown(tensors: Mapping[str, Tensor], found: Recognition) -> str:
    """Why a set of tensors can't be used, in a few words."""
    for pattern, what in _OTHERS:
        if any(re.search(pattern, name) for name in tensors):
            return f"it is {what} is supported"
    if found.kind is None or not found.known:
        return f"its names are those of no network we know: {abbreviate(tensors)}"
    return f"it looks like a {found.kind}, but has other weights, too: {abbreviate(found.unknown)}"
