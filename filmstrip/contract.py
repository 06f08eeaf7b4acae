"""The contract between the frontend and a Triton model: tensors, chunk parameters, pipeline specs.

One request makes one chunk. It carries the chunk's parameters as JSON (`CHUNK`) and the chunk's arrays as optional
tensors; the response carries the frames and a JSON report of stage timings. START and END of a generation are Triton's
sequence flags. What a pipeline is and supports is stored in the `parameters` of its `config.pbtxt`, so the frontend
knows no model by name.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, StrictBool, StrictStr, TypeAdapter, ValidationError
from pydantic_core import from_json


class Mode(StrEnum):
    """What a chunk's frames are generated from: noise (text) or an input video."""

    TEXT = "text"
    VIDEO = "video"


class Interpolation(StrEnum):
    """How prompt embeddings are blended."""

    LINEAR = "linear"
    SLERP = "slerp"


# -- Tensors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSpec:
    """Name, Triton data type and dimensions of one tensor; -1 is any length."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def config_dtype(self) -> str:
        """The data type as `config.pbtxt` spells it."""
        return "TYPE_STRING" if self.dtype == "BYTES" else f"TYPE_{self.dtype}"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self.dtype]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits the dimensions."""
        return len(shape) == len(self.dims) and all(
            want in (-1, have) for want, have in zip(self.dims, shape, strict=True)
        )


_ITEMSIZE = {"UINT8": 1, "FP32": 4}

CHUNK = TensorSpec("chunk", "BYTES", (1,))
INPUT_VIDEO = TensorSpec("input_video", "UINT8", (-1, -1, -1, 3))  # [F, H, W, C]
VACE_FRAMES = TensorSpec("vace_frames", "FP32", (1, -1, -1, -1, -1))  # [B, C, F, H, W] in -1..1
VACE_MASKS = TensorSpec("vace_masks", "FP32", (1, 1, -1, -1, -1))  # [B, 1, F, H, W] in 0..1
FIRST_FRAME_IMAGE = TensorSpec("first_frame_image", "UINT8", (-1, -1, 3))  # [H, W, C]
LAST_FRAME_IMAGE = TensorSpec("last_frame_image", "UINT8", (-1, -1, 3))  # [H, W, C]
VACE_REF_IMAGES = TensorSpec("vace_ref_images", "UINT8", (-1,))  # images of ChunkParameters.ref_image_shapes, joined

INPUTS = (CHUNK, INPUT_VIDEO, VACE_FRAMES, VACE_MASKS, FIRST_FRAME_IMAGE, LAST_FRAME_IMAGE, VACE_REF_IMAGES)

FRAMES = TensorSpec("frames", "UINT8", (-1, -1, -1, 3))  # [F, H, W, C]
REPORT = TensorSpec("report", "BYTES", (1,))

OUTPUTS = (FRAMES, REPORT)


NUM_SEEDS = 2**63 - 2**20
"""Models take seeds below this: they add the index of a latent frame, and the sum must fit into 64 signed bits."""


# -- A chunk's parameters -----------------------------------------------------------------------------------


_KNOWN_KEYS_ONLY = ConfigDict(extra="forbid")


class Prompt(NamedTuple):
    """A prompt and its weight, 0..100, among those it is blended with."""

    text: str
    weight: float = 100.0


@dataclass(frozen=True)
class Transition:
    """A chunk's place in the transition from the current embedding to the blend of the target prompts.

    Attributes:
        target: prompts at the end.
        num_steps: chunks that the transition takes; 0 snaps to the target.
        step: this chunk's place in it, 0 where it starts.
        method: how the embeddings are interpolated.
    """

    __pydantic_config__: ClassVar = _KNOWN_KEYS_ONLY

    target: tuple[Prompt, ...]
    num_steps: int
    step: int
    method: Interpolation


@dataclass(frozen=True)
class ChunkParameters:
    """The parameters of one chunk: everything that a model gets except arrays.

    Attributes:
        index: the chunk's place in the generation, from 0.
        num_frames: pixel frames that the model must return.
        height: of the returned frames, in pixels; inputs of another size are resized.
        width: likewise.
        mode: what the frames are generated from.
        reset: the chunk starts with empty caches.
        pad_first_frame: the first frame is encoded twice, and the frame that this adds is dropped again.
        prompts: the prompts in force before any transition.
        prompt_interpolation_method: how several prompts are blended.
        transition: set while a transition is under way.
        seed: of the generation or, where the chunk overrides it, of the chunk; 0 .. NUM_SEEDS - 1.
        noise_scale: share of noise in video mode, 0..1.
        noise_controller: let the motion of the input set the noise scale.
        kv_cache_attention_bias: factor on the attention to cached tokens outside the sink, None is 1.
        denoising_steps: falling timesteps, None for the pipeline's own.
        lora_scales: scale of each LoRA by the name it was exported under.
        vace_context_scale: factor on the hints.
        vace_use_input_video: the input video is the VACE frames and the latents are noise.
        vace_temporally_locked: arrays of another length are trimmed or padded, else resampled.
        ref_image_shapes: [H, W, C] of each image in the VACE_REF_IMAGES tensor.
    """

    __pydantic_config__: ClassVar = _KNOWN_KEYS_ONLY

    index: int
    num_frames: int
    height: int
    width: int
    mode: Mode = Mode.VIDEO
    reset: bool = False
    pad_first_frame: bool = False
    prompts: tuple[Prompt, ...] = ()
    prompt_interpolation_method: Interpolation = Interpolation.LINEAR
    transition: Transition | None = None
    seed: int = 42
    noise_scale: float = 0.7
    noise_controller: bool = False
    kv_cache_attention_bias: float | None = None
    denoising_steps: tuple[int, ...] | None = None
    lora_scales: Mapping[str, float] = field(default_factory=dict)
    vace_context_scale: float = 1.0
    vace_use_input_video: bool = False
    vace_temporally_locked: bool = True
    ref_image_shapes: tuple[tuple[int, ...], ...] = ()

    def to_json(self) -> bytes:
        """The bytes of the CHUNK tensor."""
        return _CHUNK_PARAMETERS.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> "ChunkParameters":
        """Read the CHUNK tensor back.

        Raises:
            ValueError: it is not the JSON of a chunk, or has a key that this version does not know.
        """
        try:
            return _CHUNK_PARAMETERS.validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(f"not a chunk: {first_problem(error)}") from None


_CHUNK_PARAMETERS = TypeAdapter(ChunkParameters)


def first_problem(error: ValidationError) -> str:
    """The first error of a validation, on one line: where it is, what is wrong, and the value."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    problem = f"{where}: {first['msg']}" if where else first["msg"]
    return problem if first["type"] == "missing" else f"{problem}, got {str(first['input'])[:80]!r}"


# -- Pipeline spec ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What a pipeline supports; a request that needs more is refused.

    Attributes:
        frame_processor: it maps frames to frames, so that it can be a pre- or post-processor.
        seed: its frames depend on a seed.
        prompts: its frames depend on the prompts.
        noise: noise_scale and noise_controller.
        cache: manage_cache, reset_cache and kv_cache_attention_bias.
        denoising_steps: a request can set the timesteps.
        vace: VACE frames, masks, references, first and last frame images.
        loras: names of the LoRAs whose scales a request can set.
    """

    __pydantic_config__: ClassVar = _KNOWN_KEYS_ONLY

    frame_processor: StrictBool = False
    seed: StrictBool = False
    prompts: StrictBool = False
    noise: StrictBool = False
    cache: StrictBool = False
    denoising_steps: StrictBool = False
    vace: StrictBool = False
    loras: tuple[StrictStr, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For the list of pipelines."""
        return {**asdict(self), "loras": list(self.loras)}


_Count = Annotated[int, Field(ge=1, le=2**20, strict=True)]


@dataclass(frozen=True)
class PipelineSpec:
    """What a pipeline declares in the `parameters` of its `config.pbtxt`; clients see most of it.

    Attributes:
        id: the Triton model's name.
        modes: what it can generate frames from.
        chunk_size: pixel frames of a chunk.
        first_chunk_size: pixel frames of a chunk that starts with empty caches in text mode.
        granularity: height and width must be multiples of it.
        height: native height in pixels, None for a pipeline that keeps its input's size.
        width: likewise.
        sizes: [height, width] pairs that it supports; empty if every multiple of the granularity is supported.
        max_references: reference images of one chunk at most, None if only the API's own limit applies.
        latent_frames: latent frames of a chunk that continues another, None without latents.
        features: see `Features`.
        defaults: the pipeline's own defaults, for display (`denoising_steps`, for example).
    """

    id: str
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)]
    chunk_size: _Count
    first_chunk_size: _Count
    granularity: _Count = 1
    height: _Count | None = None
    width: _Count | None = None
    sizes: tuple[tuple[_Count, _Count], ...] = ()
    max_references: _Count | None = None
    latent_frames: _Count | None = None
    features: Features = field(default_factory=Features)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_parameters(cls, id: str, parameters: Mapping[str, str]) -> "PipelineSpec | None":
        """Read the parameters of a Triton model; None if it declares no chunk size, so is not a pipeline.

        Parameters of other parties, such as Triton's backends, are ignored.

        Raises:
            ValueError: a parameter is missing or holds a bad value.
        """
        if "chunk_size" not in parameters:
            return None
        names = sorted(parameters.keys() & {known.name for known in fields(cls)} - {"id"})
        try:
            raw = {"id": id} | {name: _parameter(name, parameters[name]) for name in names}
            return _PIPELINE_SPEC.validate_python({"first_chunk_size": raw["chunk_size"]} | raw)
        except ValidationError as error:
            raise ValueError(f"config.pbtxt of {id}: parameter {first_problem(error)}") from None
        except ValueError as error:
            raise ValueError(f"config.pbtxt of {id}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """For the list of pipelines."""
        shown = asdict(self) | {"modes": list(self.modes), "features": self.features.to_dict()}
        return {name: value for name, value in shown.items() if name != "latent_frames"}

    def chunk_length(self, mode: Mode, *, reset: bool, has_vace_arrays: bool) -> "ChunkLength":
        """The frames of one chunk.

        A chunk that starts with empty caches and with frames, those of a video or of VACE, has the usual number of
        frames, and its first frame is encoded twice, which gives one latent frame more. One that starts with empty
        caches alone is shorter.

        Args:
            mode: of the chunk.
            reset: the chunk starts with empty caches.
            has_vace_arrays: it has VACE frames or masks.
        """
        starts_with_frames = reset and (mode is Mode.VIDEO or has_vace_arrays)
        num_frames = self.first_chunk_size if reset and not starts_with_frames else self.chunk_size
        if self.latent_frames is None:
            return ChunkLength(num_frames, 0, pad_first_frame=False)
        return ChunkLength(num_frames, self.latent_frames + starts_with_frames, pad_first_frame=starts_with_frames)


class ChunkLength(NamedTuple):
    """How many frames a chunk has.

    Attributes:
        num_frames: pixel frames.
        num_latent_frames: latent frames, 0 of a pipeline without latents.
        pad_first_frame: see `ChunkParameters`.
    """

    num_frames: int
    num_latent_frames: int
    pad_first_frame: bool


_PIPELINE_SPEC = TypeAdapter(PipelineSpec)


def _parameter(name: str, text: str) -> Any:
    try:
        value = from_json(text)
    except ValueError:
        raise ValueError(f"parameter {name!r} must be JSON, got {text[:80]!r}") from None
    if not _is_plain(value):
        raise ValueError(f"parameter {name!r} has a value that no answer can carry: {text[:80]!r}")
    return value


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether any client can read a value in an answer: finite numbers of usual size, in few levels."""
    if isinstance(value, list | dict):
        parts = value.values() if isinstance(value, dict) else value
        return depth < _MAX_DEPTH and all(_is_plain(part, depth + 1) for part in parts)
    if isinstance(value, float):
        return math.isfinite(value)  # 1e999 is not
    return value is None or isinstance(value, str) or abs(value) < 2**64


_MAX_DEPTH = 20  # nested lists and objects in a parameter


def numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The little-endian numpy type of a tensor's elements."""
    return np.dtype({"UINT8": "u1", "FP32": "<f4", "BYTES": "O"}[spec.dtype])
