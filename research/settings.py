"""What is trained and how: read from one file of JSON."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from export.config import (
    CheckpointConfig,
    TaeConfig,
    TextEncoderConfig,
    parse_config,
    parse_text_encoder_config,
)
from tests.support.toyworld.grammar import VOCABULARY

DEFAULT_PATH = Path(__file__).parent / "longlive-small.json"


@dataclass(frozen=True)
class OptimizerSettings:
    """Of the two optimisers, and the sequences of a step."""

    batch: int
    muon_lr: float
    adam_lr: float
    weight_decay: float


@dataclass(frozen=True)
class AutoencoderSettings(OptimizerSettings):
    """Of the autoencoder's training.

    Attributes:
        latent_frames: of each video of a step.
        object_weight: how much more a pixel of the object counts than one of the background.
        gradient_weight: of the difference between neighbours' differences.
        latent_noise: standard deviation of what is added to latents before they are decoded.
        latent_penalty: of their squares.
    """

    latent_frames: int
    object_weight: float
    gradient_weight: float
    latent_noise: float
    latent_penalty: float


@dataclass(frozen=True)
class GeneratorSettings(OptimizerSettings):
    """Of the generator's training.

    Attributes:
        object_weight: how much more a latent pixel of the object counts than one of the background.
        context_noise: the most noise that history has.
    """

    object_weight: float
    context_noise: float


@dataclass(frozen=True)
class VaceSettings(OptimizerSettings):
    """Of the VACE branch's training.

    Attributes:
        object_weight: as the generator's.
        clips: that are drawn, of all conditions, each as often as its steps come.
    """

    object_weight: float
    clips: int


@dataclass(frozen=True)
class LoraSettings:
    """Of a LoRA's training.

    Attributes:
        rank: of its matrices.
        batch: sequences of a step.
        lr: of Adam.
    """

    rank: int
    batch: int
    lr: float


@dataclass(frozen=True)
class ClipSettings:
    """How many clips of which kind; in those 'anywhere' the object does not start in the middle.

    Attributes:
        recoloured_pairs: pairs of clips of one course in other colours; anywhere, too.
    """

    num_chunks: int
    plain: int
    plain_anywhere: int
    switched: int
    switched_anywhere: int
    recoloured_pairs: int


@dataclass(frozen=True)
class Settings:
    """All of it; the first two, with `vace_values`, are what a checkpoint's files of JSON will say."""

    checkpoint_values: dict[str, Any]
    text_encoder_values: dict[str, Any]
    vace_values: dict[str, Any]
    autoencoder: AutoencoderSettings
    generator: GeneratorSettings
    vace: VaceSettings
    lora: LoraSettings
    clips: ClipSettings
    lora_clips: ClipSettings

    @property
    def checkpoint(self) -> CheckpointConfig:
        """The transformer's configuration, and the autoencoder's in it."""
        return parse_config(self.checkpoint_values)

    @property
    def with_vace(self) -> Self:
        """The same with the VACE branch in the transformer's configuration."""
        return replace(self, checkpoint_values={**self.checkpoint_values, **self.vace_values})

    @property
    def text_encoder(self) -> TextEncoderConfig:
        """The text encoder's configuration."""
        return parse_text_encoder_config(self.text_encoder_values)

    @property
    def tae(self) -> TaeConfig:
        """The autoencoder's configuration.

        Raises:
            TypeError: the file names another kind of autoencoder, which can't be trained here.
        """
        vae = self.checkpoint.vae
        if not isinstance(vae, TaeConfig):
            raise TypeError(f"vae.type must be tae to be trained, not {vae.type}")
        return vae


def read_settings(path: Path = DEFAULT_PATH) -> Settings:
    """Read a file such as `research/longlive-small.json`; the vocabulary's size comes from the grammar."""
    values = json.loads(path.read_text("utf-8-sig"))
    return Settings(
        values["checkpoint"],
        {**values["text_encoder"], "vocab_size": len(VOCABULARY)},
        values["vace_checkpoint"],
        AutoencoderSettings(**values["autoencoder"]),
        GeneratorSettings(**values["generator"]),
        VaceSettings(**values["vace"]),
        LoraSettings(**values["lora"]),
        ClipSettings(**values["clips"]),
        ClipSettings(**values["lora_clips"]),
    )
