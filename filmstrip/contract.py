"""The contract between the frontend and a Triton model: tensors, chunk parameters, what a pipeline says of itself.

One request makes one chunk. It carries the chunk's parameters as JSON (`CHUNK`) and the chunk's arrays as
optional tensors; the answer carries the frames and a JSON report of stage timings. START and END of a
generation are Triton's sequence flags. What a pipeline is and can do stands in the `parameters` of its
`config.pbtxt`, so that the frontend knows no model by name.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np


class Mode(StrEnum):
    """What a chunk's frames are made from: noise (text) or an input video."""

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
"""Models take seeds below this: each latent frame's is added to it, and the sum is a signed 64-bit integer."""


# -- A chunk's parameters -----------------------------------------------------------------------------------


class Prompt(NamedTuple):
    """A prompt and its weight, 0..100, among those it is blended with."""

    text: str
    weight: float = 100.0


@dataclass(frozen=True)
class Transition:
    """Where a chunk stands in a move from the embedding in force to the blend of the target prompts.

    Attributes:
        target: prompts to arrive at.
        num_steps: chunks that the transition takes; 0 snaps to the target.
        step: this chunk's place in it, 0 where it starts.
        method: how the embeddings on the way are made.
    """

    target: tuple[Prompt, ...]
    num_steps: int
    step: int
    method: Interpolation


@dataclass(frozen=True)
class ChunkParameters:
    """Everything but arrays that a model is told about one chunk.

    Attributes:
        index: the chunk's place in the generation, from 0.
        num_frames: pixel frames that the model must answer with.
        height: of the frames to answer with, in pixels; inputs of another size are resized.
        width: likewise.
        mode: what the frames are made from.
        reset: the chunk starts afresh (see `filmstrip.cache_policy`).
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

    index: int
    num_frames: int
    height: int
    width: int
    mode: Mode = Mode.VIDEO
    reset: bool = False
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
        return json.dumps(asdict(replace(self, lora_scales=dict(self.lora_scales))), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read the CHUNK tensor back.

        Raises:
            ValueError: it is not the JSON of a chunk, or has a key that this version doesn't know.
        """
        try:
            raw = _known_keys(cls, json.loads(text))
            raw["mode"] = Mode(raw.get("mode", Mode.VIDEO))
            raw["prompts"] = _prompts(raw.get("prompts", []))
            raw["prompt_interpolation_method"] = Interpolation(raw.get("prompt_interpolation_method", "linear"))
            if raw.get("transition") is not None:
                transition = _known_keys(Transition, raw["transition"])
                transition["target"] = _prompts(transition["target"])
                transition["method"] = Interpolation(transition["method"])
                raw["transition"] = Transition(**transition)
            if raw.get("denoising_steps") is not None:
                raw["denoising_steps"] = tuple(raw["denoising_steps"])
            raw["ref_image_shapes"] = tuple(tuple(shape) for shape in raw.get("ref_image_shapes", []))
            chunk = cls(**raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a chunk: {error}") from None
        counts = (chunk.index, chunk.num_frames, chunk.height, chunk.width, chunk.seed)
        if not all(type(count) is int for count in counts):
            raise ValueError(f"not a chunk: {counts} are not whole numbers")
        return chunk


def _prompts(pairs: Any) -> tuple[Prompt, ...]:
    if not all(
        isinstance(pair, list) and [type(part) for part in pair] in ([str, int], [str, float]) for pair in pairs
    ):
        raise ValueError(f"not prompts and weights: {pairs}")
    return tuple(Prompt(text, weight) for text, weight in pairs)


def _known_keys(cls: type, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{cls.__name__} wants a JSON object, got {type(raw).__name__}")
    unknown = raw.keys() - {known.name for known in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
    return dict(raw)


# -- What a pipeline says of itself -------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What a pipeline supports beyond making frames; a request that needs more is refused.

    Attributes:
        frame_processor: it maps frames to frames, so that it can be a pre- or post-processor.
        seed: its frames depend on a seed.
        prompts: its frames depend on the prompts.
        noise: noise_scale and noise_controller.
        cache: manage_cache, reset_cache and kv_cache_attention_bias.
        denoising_steps: the timesteps can be given.
        vace: VACE frames, masks, references, first and last frame images.
        loras: names of the LoRAs whose scales can be given.
    """

    frame_processor: bool = False
    seed: bool = False
    prompts: bool = False
    noise: bool = False
    cache: bool = False
    denoising_steps: bool = False
    vace: bool = False
    loras: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As the pipeline list shows it."""
        return {**asdict(self), "loras": list(self.loras)}


@dataclass(frozen=True)
class PipelineInfo:
    """What `config.pbtxt` tells of a pipeline.

    Attributes:
        id: the Triton model's name.
        modes: what it can make frames from.
        chunk_size: pixel frames of a chunk.
        first_chunk_size: pixel frames of a chunk that starts afresh in text mode.
        granularity: height and width must be multiples of it.
        height: native height in pixels, None for a pipeline that keeps its input's size.
        width: likewise.
        sizes: [height, width] pairs that it was made for; none where any multiple of the granularity will do.
        max_references: reference images of one chunk at most, None where the contract's own limit is the only one.
        latent_frames: latent frames of a chunk that goes on from another, None without latents.
        features: see `Features`.
        defaults: the pipeline's own defaults, for display (`denoising_steps`, for example).
    """

    id: str
    modes: tuple[Mode, ...]
    chunk_size: int
    first_chunk_size: int
    granularity: int = 1
    height: int | None = None
    width: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    max_references: int | None = None
    latent_frames: int | None = None
    features: Features = field(default_factory=Features)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_parameters(cls, id: str, parameters: Mapping[str, str]) -> Self | None:
        """Read the parameters of a Triton model; None where it declares no chunk size, so is no pipeline.

        Parameters that are none of ours (Triton's backends have some) are left alone.

        Raises:
            ValueError: one of ours is missing or holds another kind of value than it should.
        """
        if "chunk_size" not in parameters:
            return None
        try:
            raw = {name: _parameter(name, parameters[name]) for name in sorted(parameters.keys() & _PARAMETERS)}
            raw["features"] = _features(raw.get("features", {}))
            raw["modes"] = tuple(Mode(mode) for mode in raw["modes"])
            raw["sizes"] = tuple((height, width) for height, width in raw.get("sizes", []))
            raw["defaults"] = _defaults(raw.get("defaults", {}))
            raw.setdefault("first_chunk_size", raw["chunk_size"])
            facts = cls(id=id, **raw)
        except KeyError as error:
            raise ValueError(f"config.pbtxt of {id}: parameter {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.pbtxt of {id}: {error}") from error
        counts = (facts.chunk_size, facts.first_chunk_size, facts.granularity)
        optional = (facts.height, facts.width, facts.latent_frames, facts.max_references)
        given = (*counts, *(n for n in optional if n is not None), *(side for size in facts.sizes for side in size))
        if not facts.modes:
            raise ValueError(f"config.pbtxt of {id}: parameter 'modes' names none")
        bad = [value for value in given if not _is_count(value)]
        if bad:
            raise ValueError(
                f"config.pbtxt of {id}: sizes and numbers of frames must be whole numbers from 1 to {_LARGEST_COUNT}, "
                f"got {str(bad[0])[:80]}"
            )
        return facts

    def to_dict(self) -> dict[str, Any]:
        """As the pipeline list shows it."""
        shown = asdict(self) | {"modes": list(self.modes), "features": self.features.to_dict()}
        return {name: value for name, value in shown.items() if name != "latent_frames"}

    def chunk_frames(self, mode: Mode, *, first: bool, conditioned: bool) -> int:
        """Pixel frames of one chunk.

        Args:
            mode: of the chunk.
            first: the chunk starts afresh.
            conditioned: it has VACE frames or masks, which follow the video rule.
        """
        short = first and mode is Mode.TEXT and not conditioned
        return self.first_chunk_size if short else self.chunk_size

    def chunk_latents(self, mode: Mode, *, first: bool, conditioned: bool) -> int:
        """Latent frames of one chunk: one more where a video's first chunk is encoded from its doubled frame."""
        if self.latent_frames is None:
            return 0
        return self.latent_frames + int(first and (mode is Mode.VIDEO or conditioned))


def _parameter(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"parameter {name!r} must be JSON, got {text[:80]!r}") from None
    if not _is_plain(value):
        raise ValueError(f"parameter {name!r} has a value that no answer can carry: {text[:80]!r}")
    return value


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a JSON answer can show a value: valid text, finite numbers of usual size, few levels."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < _DEEPEST and all(_is_plain(part, depth + 1) for part in parts)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or abs(value) < 2**64


def _defaults(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"defaults must be a JSON object: {str(raw)[:80]}")
    return raw


def _features(raw: Any) -> Features:
    known = _known_keys(Features, raw)
    loras = known.pop("loras", [])
    if not all(type(value) is bool for value in known.values()):
        raise ValueError(f"features must be true or false: {str(known)[:80]}")
    if not isinstance(loras, list) or not all(isinstance(name, str) for name in loras):
        raise ValueError(f"loras must be a list of names: {str(loras)[:80]}")
    return Features(**known, loras=tuple(loras))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_COUNT


_LARGEST_COUNT = 2**20
_DEEPEST = 20  # levels of nested lists and objects in a parameter
_PARAMETERS = frozenset(known.name for known in fields(PipelineInfo)) - {"id"}


def numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The little-endian numpy type of a tensor's elements."""
    return np.dtype({"UINT8": "u1", "FP32": "<f4", "BYTES": "O"}[spec.dtype])
