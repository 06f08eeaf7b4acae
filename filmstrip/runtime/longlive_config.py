"""The numbers of a checkpoint that the runtime needs, in a file that the export writes into the model's folder."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from filmstrip.contract import first_problem
from filmstrip.model_folders import EXPORT_FILE

MAX_REFERENCES = 4
"""Largest number of reference images of a chunk that the VACE branch's engines take."""


@dataclass(frozen=True)
class LongLiveConfig:
    """The numbers of a checkpoint of the LongLive family.

    Attributes:
        latent_frames_per_chunk: latent frames that are generated together.
        window: latent frames that attention sees, sink and chunk included.
        sink: latent frames at the start that are never evicted.
        timestep_shift: of the table of sigmas.
        text_steps: default timesteps in text mode, falling.
        video_steps: default timesteps in video mode, falling.
        video_step_offset: subtracted from the first timestep in video mode.
        num_layers: of the transformer.
        num_heads: of each layer.
        head_dim: channels of a head.
        patch_size: latent frames, rows and columns of a token; the first is 1.
        text_len: tokens of a prompt.
        text_dim: channels of a text embedding.
        latent_channels: channels of the latents.
        num_vace_layers: hints of the VACE branch, 0 without one.
        vace_channels: channels of its conditioning.
        rope_theta: base of the wavelengths of the rotary positions.
        rope_positions: `absolute` if keys are cached after RoPE, `window` if before.
        spatial_factor: pixels of a side of a latent pixel.
        temporal_factor: pixel frames of a latent frame.
        sizes: [height, width] in pixels that the engines were built for.
        loras: names, in the order of the engines' `lora_scales`.
        sink_decay: share that the sink keeps of itself when frames that leave the window are folded into it; None if it
            stays as it is.
        first_text_steps: default timesteps of a chunk that resets in text mode, falling; None for `text_steps`.
        lone_references: what the VACE branch sees of a chunk that only has references: `before`, grey frames that are
            all to be generated, after the references; `in_place`, the references at the places of the chunk's own
            latent frames, then zeros. Exports of earlier versions are of the second kind.
        global_sink: whether the sink keeps the video's first frames when the prompt changes.
        context_noise: timestep of the passes that write the cache.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

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
    rope_positions: Literal["absolute", "window"]
    spatial_factor: int
    temporal_factor: int
    sizes: tuple[tuple[int, int], ...]
    loras: tuple[str, ...] = ()
    sink_decay: float | None = None
    first_text_steps: tuple[float, ...] | None = None
    lone_references: Literal["before", "in_place"] = "in_place"
    global_sink: bool = True
    context_noise: float = 0.0

    @property
    def chunk_size(self) -> int:
        """Pixel frames of a chunk."""
        return self.latent_frames_per_chunk * self.temporal_factor

    @property
    def first_chunk_size(self) -> int:
        """Pixel frames of a chunk that resets in text mode."""
        return self.chunk_size - self.temporal_factor + 1

    @property
    def granularity(self) -> int:
        """What height and width must be multiples of: pixels of a side of a token."""
        return self.spatial_factor * math.lcm(*self.patch_size[1:])

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "LongLiveConfig":
        """Read the file's text.

        Raises:
            ValueError: a field is missing, unknown or of another type, as in a file of another version of the export.
        """
        try:
            return _CONFIG.validate_json(text)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None

    @classmethod
    def read(cls, folder: Path) -> "LongLiveConfig":
        """Read the file of a model's version folder; raises as `from_json`, and OSError."""
        return cls.from_json((folder / EXPORT_FILE).read_text("utf-8-sig"))


_CONFIG = TypeAdapter(LongLiveConfig)
