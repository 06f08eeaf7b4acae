"""What the runtime must know of a checkpoint: written by the export into the model's folder, read when it is loaded."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from filmstrip.model_folders import EXPORT_FILE

FILE_NAME = EXPORT_FILE

MAX_REFERENCES = 4
"""Reference images of a chunk that the engines of the VACE branch are made for."""


@dataclass(frozen=True)
class PipelineConfig:
    """The numbers of a checkpoint of the LongLive family.

    Attributes:
        latent_frames_per_chunk: latent frames that are made together.
        window: latent frames that attention sees, sink and chunk included.
        sink: latent frames at the start that are never evicted.
        timestep_shift: of the table of sigmas.
        text_steps: default timesteps in text mode, falling.
        video_steps: default timesteps in video mode, falling.
        video_step_offset: subtracted from the first timestep in video mode.
        num_layers: of the transformer.
        num_heads: of each layer.
        head_dim: numbers of a head.
        patch_size: latent frames, rows and columns of a token; the first is 1.
        text_len: tokens of a prompt.
        text_dim: numbers of a token of the text encoder.
        latent_channels: channels of the latents.
        num_vace_layers: hints of the VACE branch, 0 without one.
        vace_channels: channels of its conditioning.
        rope_theta: base of the wavelengths of the positions.
        rope_positions: `absolute`, keys cached after RoPE, or `window`, before.
        spatial_factor: pixels of a side of a latent pixel.
        temporal_factor: pixel frames of a latent frame.
        sizes: [height, width] in pixels that the engines were made for.
        loras: names, in the order of the engines' `lora_scales`.
    """

    latent_frames_per_chunk: int
    window: int
    sink: int
    timestep_shift: float
    text_steps: tuple[float, ...]
    video_steps: tuple[float, ...]
    video_step_offset: int
    num_layers: int
    num_heads: int
    head_dim: int
    patch_size: tuple[int, int, int]
    text_len: int
    text_dim: int
    latent_channels: int
    num_vace_layers: int
    vace_channels: int
    rope_theta: float
    rope_positions: str
    spatial_factor: int
    temporal_factor: int
    sizes: tuple[tuple[int, int], ...]
    loras: tuple[str, ...] = ()

    @property
    def chunk_size(self) -> int:
        """Pixel frames of a chunk."""
        return self.latent_frames_per_chunk * self.temporal_factor

    @property
    def first_chunk_size(self) -> int:
        """Pixel frames of a chunk that starts afresh in text mode."""
        return self.chunk_size - self.temporal_factor + 1

    @property
    def granularity(self) -> int:
        """What height and width must be multiples of: pixels of a side of a token."""
        return self.spatial_factor * math.lcm(*self.patch_size[1:])

    def to_json(self) -> str:
        """As the file holds it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it back.

        Raises:
            ValueError: it is of another version: a key is missing or unknown.
        """
        raw = json.loads(text)
        names = {one.name for one in fields(cls)}
        if not isinstance(raw, dict) or raw.keys() != names:
            strange = sorted(names.symmetric_difference(raw)) if isinstance(raw, dict) else ["a JSON object"]
            raise ValueError(f"{FILE_NAME} is of another version of the export: {', '.join(strange)}")
        return cls(**{name: _frozen(value) for name, value in raw.items()})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file of a model's version folder; errors as `from_json`, and OSError."""
        return cls.from_json((folder / FILE_NAME).read_text("utf-8-sig"))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
