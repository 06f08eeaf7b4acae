"""Requests and answers: all fields with their defaults and limits.

In an optional field, null, an empty string and an empty list mean that the field is not set. Prompt texts are the
exception: an empty string is a prompt. A key that no field has is refused unless its value is null.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from filmstrip.contract import Features, Interpolation, PipelineSpec
from filmstrip.errors import BadJson, InvalidField
from filmstrip.geometry import MAX_DECODED_SIDE, MAX_FRAMES, MAX_IMAGE_SIDE, MAX_REQUEST_SIDE, MIN_SIDE
from filmstrip.models import State
from filmstrip.request_fields import MAX_PAGE, MAX_SEED

RANDOM_SEED = -1
MAX_PROMPT_CHARACTERS = 100_000
MAX_PROMPTS = 64
MAX_REF_IMAGES = 16
MAX_KEYS = 256
MAX_PIPELINES = 256
MAX_LORAS = 256
MAX_LOAD_PARAMS_CHARACTERS = 64 * 1024
_MAX_U63 = 2**63 - 1
_MAX_EXACT_FLOAT = 2**53


def _a_number(value: Any) -> Any:
    """Numbers only: by default, pydantic also accepts true and "3"."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number")
    return value


def _a_whole_number(value: Any) -> Any:
    """Also whole floats, up to the size from which they skip integers."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) <= _MAX_EXACT_FLOAT):
        raise ValueError("must be a whole number, written with digits alone")
    return _a_number(value)


def _a_bool(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _few(value: Any) -> Any:
    """Checked before the entries are: a million bad ones would produce a million errors."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} entries")
    return value


# Last in each type: limits that come after a validator are missing from the JSON schema.
NUMBER = BeforeValidator(_a_number)
INTEGER = BeforeValidator(_a_whole_number)
Bool = Annotated[bool, BeforeValidator(_a_bool)]
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), INTEGER]
RequestSeed = Annotated[int, Field(ge=RANDOM_SEED, le=MAX_SEED), INTEGER]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER]
Bias = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NUMBER]
ContextScale = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), NUMBER]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_REQUEST_SIDE), INTEGER]
Offset = Annotated[int, Field(ge=0, le=_MAX_U63), INTEGER]
Dimension = Annotated[int, Field(ge=1, le=2**32 - 1), INTEGER]
VideoDimensions = Annotated[list[Dimension], Field(min_length=4, max_length=4)]
ArrayDimensions = Annotated[list[Dimension], Field(min_length=5, max_length=5)]
PipelineId = Annotated[str, Field(min_length=1, max_length=256)]
StoredName = Annotated[str, Field(max_length=256)]
ImageName = Annotated[str, Field(min_length=1)]
"""The name of an asset, or a data URL."""
_RefImages = Annotated[list[ImageName], Field(max_length=MAX_REF_IMAGES)]
_NumSteps = Annotated[int, Field(ge=0, le=MAX_FRAMES), INTEGER]
LoraScale = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False), NUMBER]
LoraScales = Annotated[
    dict[Annotated[str, Field(max_length=4096)], LoraScale],
    BeforeValidator(_few),
]


def _falling(steps: list[int]) -> list[int]:
    if any(later >= earlier for earlier, later in pairwise(steps)):
        raise ValueError("the steps must fall strictly")
    return steps


DenoisingSteps = Annotated[
    list[Annotated[int, Field(ge=1, le=1000), INTEGER]],
    Field(min_length=1, max_length=1000, description="Strictly falling timesteps."),
    AfterValidator(_falling),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    _prompt_texts: ClassVar[frozenset[str]] = frozenset()
    """Optional fields in which an empty string is a value."""

    @model_validator(mode="before")
    @classmethod
    def _without_unset(cls, value: Any) -> Any:
        """Drop keys with unset values, so that their fields have their defaults and count as not set."""
        if not isinstance(_few(value), dict):
            return value
        return {name: entry for name, entry in value.items() if not cls._is_unset(name, entry)}

    @classmethod
    def _is_unset(cls, name: str, value: Any) -> bool:
        field = cls.model_fields.get(name)
        if field is None or field.is_required():
            return field is None and value is None
        return value is None or value == [] or (value == "" and name not in cls._prompt_texts)


@dataclass(frozen=True)
class Needs:
    """Marks a field with the feature that a pipeline needs to support it; without one, every pipeline does.

    Attributes:
        feature: a field of `Features`.
        generic: generic clients always send the field, so a pipeline without the feature accepts and ignores it.
    """

    feature: str
    generic: bool = False


class WeightedPrompt(_Model):
    """A prompt and its share in the blend."""

    text: Text
    weight: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NUMBER] = 100.0


def _some_weight(prompts: list[WeightedPrompt]) -> list[WeightedPrompt]:
    if not any(prompt.weight > 0 for prompt in prompts):
        raise ValueError("at least one weight must be above 0")
    return prompts


WeightedPrompts = Annotated[
    list[WeightedPrompt], Field(min_length=1, max_length=MAX_PROMPTS), AfterValidator(_some_weight)
]


class ChunkOptions(_Model):
    """What a request sets for all its chunks, and a ChunkSpec for one; `options_for` merges them.

    A ChunkSpec has the same fields, where None stands for the request's value.
    """

    seed: Annotated[RequestSeed, Needs("seed", generic=True)] = Field(
        42, description="-1: a random one, which `complete` names."
    )
    noise_scale: Annotated[Share, Needs("noise", generic=True)] = Field(
        0.7, description="Share of noise, video-to-video only."
    )
    manage_cache: Annotated[Bool, Needs("cache", generic=True)] = True
    noise_controller: Annotated[Bool | None, Needs("noise", generic=True)] = None
    kv_cache_attention_bias: Annotated[Bias | None, Needs("cache")] = None
    prompt_interpolation_method: Interpolation = Interpolation.LINEAR
    vace_context_scale: Annotated[ContextScale, Needs("vace")] = 1.0
    vace_use_input_video: Annotated[Bool | None, Needs("vace")] = None
    denoising_steps: Annotated[DenoisingSteps | None, Needs("denoising_steps", generic=True)] = None
    lora_scales: Annotated[LoraScales | None, Needs("loras")] = None


if TYPE_CHECKING:

    class _ChunkOverrides(ChunkOptions): ...

else:
    _ChunkOverrides = create_model(
        "_ChunkOverrides",
        __base__=_Model,
        **{name: (field.rebuild_annotation() | None, None) for name, field in ChunkOptions.model_fields.items()},
    )


class _ChunkStart(_Model):
    """The chunk and what it starts with; a base of its own because fields are checked base by base."""

    _prompt_texts = frozenset({"text"})

    chunk: Annotated[int, Field(ge=0, lt=MAX_FRAMES), INTEGER] = Field(description="Index of the chunk, from 0.")
    text: Text | None = Field(None, description="New prompt; excludes `prompts`.")
    prompts: WeightedPrompts | None = Field(None, description="New prompts to blend; excludes `text`.")
    transition_target_prompts: Annotated[WeightedPrompts | None, Needs("prompts")] = Field(
        None, description="Prompts to move to, chunk by chunk."
    )
    transition_num_steps: Annotated[_NumSteps | None, Needs("prompts")] = Field(
        None, description="Chunks that the transition takes; 0 snaps. 4 if target prompts are given."
    )
    transition_method: Annotated[Interpolation | None, Needs("prompts")] = None


class ChunkSpec(_ChunkOverrides, _ChunkStart):
    """Overrides of the request for one chunk; only prompts stay in force for later chunks.

    In an optional field null, "" and [] mean unset: the request's value. `text` takes "" as the empty prompt.
    """

    seed: Seed | None = Field(None, description="As in the request, except -1.")  # type: ignore[assignment]
    reset_cache: Annotated[Bool, Needs("cache")] = False
    vace_temporally_locked: Annotated[Bool, Needs("vace")] = Field(
        True, description="Arrays of another length are trimmed or padded to the chunk; false: resampled."
    )
    vace_frames_shape: Annotated[ArrayDimensions | None, Needs("vace")] = Field(
        None, description="[1, C, F, H, W] of float32 in the blob."
    )
    vace_frames_offset: Annotated[Offset | None, Needs("vace")] = Field(
        None, description="Bytes from the start of the blob."
    )
    vace_masks_shape: Annotated[ArrayDimensions | None, Needs("vace")] = Field(
        None, description="[1, 1, F, H, W] of float32 in the blob."
    )
    vace_masks_offset: Annotated[Offset | None, Needs("vace")] = Field(
        None, description="Bytes from the start of the blob."
    )
    vace_ref_images: Annotated[_RefImages | None, Needs("vace")] = None
    first_frame_image: Annotated[ImageName | None, Needs("vace")] = Field(
        None, description="Asset or data URL that the chunk starts with."
    )
    last_frame_image: Annotated[ImageName | None, Needs("vace")] = Field(
        None, description="Asset or data URL that the chunk ends with."
    )
    input_video_shape: VideoDimensions | None = Field(None, description="[F, H, W, C] of uint8 in the blob.")
    input_video_offset: Offset | None = Field(None, description="Bytes from the start of the blob.")


def _kind_of_prompt(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


PromptOrPrompts = Annotated[
    Annotated[Text, Tag("text")] | Annotated[WeightedPrompts, Tag("list")], Discriminator(_kind_of_prompt)
]


_EXAMPLE: Any = {
    "pipeline_id": "longlive-small",
    "prompt": "a yellow circle moving left on a green background",
    "num_frames": 69,
}


class _Subject(_Model):
    """What to generate; a base of its own because fields are checked, and listed in the JSON schema, base by base."""

    pipeline_id: PipelineId
    prompt: PromptOrPrompts = Field(description="A text, or weighted texts to blend.")
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES), INTEGER] = 64
    height: Side | None = Field(None, description="null: the pipeline's own, or the input's.")
    width: Side | None = Field(None, description="null: the pipeline's own, or the input's.")


class GenerateRequest(ChunkOptions, _Subject):
    """The body of POST /api/v1/generate; its values hold for every chunk whose ChunkSpec does not override them.

    In an optional field null, "" and [] mean unset: the field's default.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    input_path: StoredName | None = Field(None, description="From /generate/upload.")
    data_blob_path: StoredName | None = Field(None, description="From /generate/upload-data.")
    pre_processor_id: PipelineId | None = None
    post_processor_id: PipelineId | None = None
    chunk_specs: Annotated[list[ChunkSpec], Field(max_length=MAX_FRAMES, fail_fast=True)] | None = None


def options_for(request: GenerateRequest, spec: ChunkSpec) -> ChunkOptions:
    """The options of one chunk: the ChunkSpec's where it sets them, else the request's."""
    names = ChunkOptions.model_fields.keys()
    overrides = {name: getattr(spec, name) for name in names & spec.model_fields_set}
    return ChunkOptions.model_construct(**{name: getattr(request, name) for name in names} | overrides)


def _json(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if len(json.dumps(value, allow_nan=False)) > MAX_LOAD_PARAMS_CHARACTERS:
        raise ValueError(f"more than {MAX_LOAD_PARAMS_CHARACTERS} characters of JSON")
    return value


class LoraToLoad(_Model):
    """A LoRA and the scale that later requests use by default."""

    model_config = ConfigDict(extra="ignore")

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    scale: LoraScale = 1.0


def _each_once(loras: list[LoraToLoad]) -> list[LoraToLoad]:
    paths = Counter(lora.path for lora in loras)
    twice = next((path for path, count in paths.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{_shown(twice)} names a LoRA twice")
    return loras


class LoadParams(_Model):
    """The load parameters that have an effect: defaults for the client's later requests."""

    model_config = ConfigDict(extra="ignore")

    height: Side | None = None
    width: Side | None = None
    seed: RequestSeed | None = None
    vace_context_scale: ContextScale | None = None
    loras: Annotated[list[LoraToLoad], Field(max_length=MAX_LORAS), AfterValidator(_each_once)] | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any] | None) -> Self:
        """Read those among any parameters."""
        return cls.model_validate({name: value for name, value in (params or {}).items() if name in cls.model_fields})

    @classmethod
    def ignored(cls, params: Mapping[str, Any] | None) -> frozenset[str]:
        """Names of the parameters that are set and have no effect; `loras.NAME` for keys of a LoRA."""
        set_values = {name: value for name, value in (params or {}).items() if value not in (None, "", [])}
        of_loras = {
            f"loras.{name}"
            for lora in set_values.get("loras", ())
            for name, value in lora.items()
            if name not in LoraToLoad.model_fields and value not in (None, "", [])
        }
        return frozenset(set_values.keys() - cls.model_fields.keys()) | of_loras


def _readable(params: dict[str, Any]) -> dict[str, Any]:
    LoadParams.of(params)
    return params


AnyLoadParams = Annotated[
    dict[str, Any],
    AfterValidator(_json),
    AfterValidator(_readable),
    Field(
        description="height, width, seed, vace_context_scale and loras ([{path, scale}]) become defaults of this "
        "client's later requests; others are ignored and named in the answer."
    ),
]


class PipelineToLoad(_Model):
    """One pipeline and its load parameters."""

    pipeline_id: PipelineId
    load_params: AnyLoadParams | None = None
    node_id: Any = Field(None, description="Ignored.")


_LOAD_EXAMPLES: Any = [
    {"pipeline_ids": ["longlive-small"]},
    {
        "pipelines": [
            {"node_id": "1", "pipeline_id": "longlive-small", "load_params": {"height": 64, "width": 64, "seed": 7}}
        ]
    },
]


class LoadRequest(_Model):
    """The body of POST /api/v1/pipeline/load, with either `pipeline_ids` or `pipelines`."""

    model_config = ConfigDict(json_schema_extra={"examples": _LOAD_EXAMPLES})

    pipeline_ids: Annotated[list[PipelineId], Field(max_length=MAX_PIPELINES)] | None = None
    pipelines: Annotated[list[PipelineToLoad], Field(max_length=MAX_PIPELINES)] | None = None
    load_params: AnyLoadParams | None = Field(None, description="For all pipelines that have none of their own.")
    connection_id: Any = Field(None, description="Ignored.")
    connection_info: Any = Field(None, description="Ignored.")
    user_id: Any = Field(None, description="Ignored.")

    @property
    def entries(self) -> list["LoadEntry"]:
        """Each pipeline with its load parameters."""
        if self.pipeline_ids is not None:
            return [LoadEntry(name, self.load_params, "pipeline_ids", "load_params") for name in self.pipeline_ids]
        return [
            LoadEntry(
                pipeline.pipeline_id,
                self.load_params if pipeline.load_params is None else pipeline.load_params,
                f"pipelines[{position}].pipeline_id",
                "load_params" if pipeline.load_params is None else f"pipelines[{position}].load_params",
            )
            for position, pipeline in enumerate(self.pipelines or ())
        ]

    @model_validator(mode="after")
    def _names_each_pipeline_once(self) -> Self:
        if self.pipeline_ids is not None and self.pipelines is not None:
            raise _custom("pipelines", "cannot be combined with pipeline_ids")
        if self.pipeline_ids is None and self.pipelines is None:
            raise _custom("pipeline_ids", "missing; name the pipelines to load here or in pipelines")
        params: dict[str, Any] = {}
        for entry in self.entries:
            if params.setdefault(entry.pipeline_id, entry.load_params) != entry.load_params:
                raise _custom("pipelines", f"{_shown(entry.pipeline_id)} has two different load_params")
        return self


class LoadEntry(NamedTuple):
    """One pipeline to load, its load parameters, and the fields of the request that name them."""

    pipeline_id: str
    load_params: dict[str, Any] | None
    id_field: str
    params_field: str


def _custom(field: str, message: str) -> ValidationError:
    """The error of one field, raised where several are looked at."""
    error = PydanticCustomError("custom", "{message}", {"message": message})
    return ValidationError.from_exception_data(field, [{"type": error, "loc": (field,), "input": []}])


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    field: str | None = None


class ErrorAnswer(BaseModel):
    """Every error of every endpoint has this shape."""

    error: ErrorDetail
    detail: str = Field(description="The message once more, for clients that read this key.")


class UploadAnswer(BaseModel):
    """The video is stored."""

    input_path: str
    num_frames: int
    shape: list[int] = Field(description="[F, H, W, C]")


class VideoUploadAnswer(UploadAnswer):
    """The video file is decoded and stored."""

    fps: float = Field(description="Frames per second.")
    poster: str = Field(description="The first frame as a small image, a data URL of at most 32 KiB.")


class BlobAnswer(BaseModel):
    """The blob is stored."""

    data_blob_path: str
    size_bytes: int


class AssetAnswer(BaseModel):
    """The image is stored."""

    path: str


class CancelAnswer(BaseModel):
    """Whether there was something to cancel."""

    status: Literal["cancelling", "idle"]


HealthStatus = Literal["healthy", "starting", "unavailable"]
SlotState = Literal["ready", "generating", "starting", "unavailable"]


class SlotAnswer(BaseModel):
    """A slot, which is one Triton and at most one generation."""

    name: str
    state: SlotState


class HealthAnswer(BaseModel):
    """Whether a generation would be accepted, or one runs."""

    status: HealthStatus
    generating: bool
    degraded: list[str] = Field(description="Pipelines that failed on any Triton.")
    slots: list[SlotAnswer]


class LiveAnswer(BaseModel):
    """The server answers requests; whether it can generate is another question."""

    status: Literal["live"]


class SessionAnswer(BaseModel):
    """A session; it never expires if the server needs no key."""

    expires_at: float | None


if TYPE_CHECKING:

    class PipelineAnswer(BaseModel):
        """A pipeline as its `PipelineSpec` declares it, and its state."""

else:
    FeaturesAnswer = create_model(
        "FeaturesAnswer",
        __doc__="What a pipeline supports; see docs/api.md.",
        **{field.name: (field.type, ...) for field in fields(Features)},
    )
    _SHOWN = {field.name: field.type for field in fields(PipelineSpec) if field.name != "latent_frames"}
    _SHOWN["features"] = FeaturesAnswer
    PipelineAnswer = create_model(
        "PipelineAnswer",
        __doc__="A pipeline and what it supports; until it is first loaded, only its id and state are known.",
        **{name: (kind | None, None) for name, kind in _SHOWN.items()} | {"id": (str, ...)},
        loaded=(bool, ...),
        state=(Literal["ready", "loading", "unloaded", "failed"], ...),
        reason=(str | None, None),
    )


class PipelinesAnswer(BaseModel):
    """The pipelines of the model repository, and its models that failed."""

    pipelines: list[PipelineAnswer]


class LoadAnswer(BaseModel):
    """The load has begun, or was done already."""

    status: Literal["loading", "loaded"]
    ignored: list[str] = Field(description="Sorted names of the load parameters that have no effect.")


class LoraAnswer(BaseModel):
    """A LoRA of the pipeline, and the scale that the client's requests use by default."""

    path: str
    scale: float


class PipelineStatusAnswer(BaseModel):
    """How the last load went."""

    status: Literal["not_loaded", "loading", "loaded", "error"]
    pipeline_id: str | None
    load_params: dict[str, Any] | None
    loaded_lora_adapters: list[LoraAnswer]
    error: str | None


# -- Generations as resources ------------------------------------------------------------------------------------

_SIZE = "\0"  # what the names of images that are only sizes start with; no asset and no data URL does


OnDisconnect = Literal["continue", "cancel"]
CancelStatus = Literal["cancelling", "cancelled", "idle"]


class PreviewOptions(_Model):
    """How many previews of a generation to make, and how large."""

    every: Annotated[int, Field(ge=1, le=_MAX_U63, description="A preview after each chunk of this many."), INTEGER]
    width: Annotated[int, Field(ge=16, le=512, description="Width in pixels; frames are not enlarged."), INTEGER] = 256


class SubmitRequest(GenerateRequest):
    """The body of PUT /api/v1/generations/{id} and POST /api/v1/generations: a GenerateRequest and more.

    In an optional field null, "" and [] mean unset: the field's default.
    """

    on_disconnect: OnDisconnect = Field(
        "continue", description="cancel: it ends when nobody has followed it for FILMSTRIP_REATTACH_S."
    )
    previews: PreviewOptions | None = Field(None, description="Send `preview` events with small images.")

    def generate_request(self) -> GenerateRequest:
        """The part that decides what is generated."""
        names = GenerateRequest.model_fields.keys()
        values = {name: getattr(self, name) for name in names}
        return GenerateRequest.model_construct(_fields_set=self.model_fields_set & names, **values)


class ImageSize(BaseModel):
    """The size of an image that is not uploaded yet."""

    model_config = ConfigDict(extra="forbid")

    width: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIDE), INTEGER]
    height: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIDE), INTEGER]


def _size_as_name(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        size = ImageSize.model_validate(value)
    except ValueError:
        raise ValueError(
            f"an image that stands for another one must be width and height, whole numbers from 1 to {MAX_IMAGE_SIDE}"
        ) from None
    return f"{_SIZE}{size.width}x{size.height}"


_Image = Annotated[ImageName, BeforeValidator(_size_as_name, json_schema_input_type=str | ImageSize)]


class DryRunChunkSpec(ChunkSpec):
    """A ChunkSpec in which {"width", "height"} can stand for an image."""

    vace_ref_images: Annotated[list[_Image], Field(max_length=MAX_REF_IMAGES)] | None = None
    first_frame_image: _Image | None = None
    last_frame_image: _Image | None = None


class UploadSizes(_Model):
    """The sizes of files that are not uploaded yet."""

    input_shape: Annotated[list[Dimension], Field(min_length=4, max_length=4)] | None = Field(
        None, description="[F, H, W, C], in place of input_path."
    )
    blob_bytes: Annotated[int, Field(ge=1, le=2**63 - 1), INTEGER] | None = Field(
        None, description="In place of data_blob_path."
    )


class DryRunRequest(SubmitRequest):
    """The body of POST /api/v1/generations?dry_run=1."""

    chunk_specs: Annotated[list[DryRunChunkSpec], Field(fail_fast=True)] | None = None  # type: ignore[assignment]
    uploads: UploadSizes | None = Field(None, description="Stand for files that are not uploaded yet.")


def image_size(name: str) -> tuple[int, int] | None:
    """(height, width) of an image that is only a size; None for an asset or a data URL."""
    if not name.startswith(_SIZE):
        return None
    width, _, height = name.removeprefix(_SIZE).partition("x")
    return int(height), int(width)


class LinksAnswer(BaseModel):
    """Paths on this server, without a proxy's prefix."""

    self: str
    events: str
    cancel: str
    frames: str
    output: str | None = Field(None, description="Once there is an output, like the next ones.")
    video: str | None = None
    poster: str | None = None

    @model_serializer(mode="wrap")
    def _without_missing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: path for name, path in serialize(self).items() if path is not None}


class FailureAnswer(BaseModel):
    """Why a generation failed."""

    code: str
    message: str


class SummaryAnswer(BaseModel):
    """A generation, without its request."""

    id: str
    state: State
    position: int | None = Field(description="1: the next one; null unless it waits.")
    chunk: int = Field(description="Chunks generated so far.")
    total_chunks: int
    frames: int = Field(description="Frames generated so far.")
    num_frames: int
    fps: float | None
    eta_s: float | None
    created_at: float = Field(description="Unix time in seconds, like the other times.")
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    seed: int = Field(description="The number used.")
    unused: list[str]
    error: FailureAnswer | None
    output_path: str | None
    video_shape: list[int] | None = Field(description="[F, H, W, C]")
    links: LinksAnswer


class GenerationAnswer(SummaryAnswer):
    """A generation."""

    request: dict[str, Any] = Field(description="What was sent, with the client's load parameters.")


class GenerationsAnswer(BaseModel):
    """Some of the client's generations, newest first."""

    generations: list[SummaryAnswer]
    next: str | None = Field(description="`after` of the next page; null if there is none.")


class CancelGenerationAnswer(BaseModel):
    """What the cancel does: `cancelled` at once, `cancelling` after the current chunk, `idle` if it had ended."""

    status: CancelStatus


class ChunkAnswer(BaseModel):
    """The frames of one chunk."""

    start: int
    frames: int


class DryRunAnswer(BaseModel):
    """What a request would generate."""

    height: int
    width: int
    num_chunks: int
    chunks: list[ChunkAnswer]
    unused: list[str]


# -- Queries ----------------------------------------------------------------------------------------------------------

ModelT = TypeVar("ModelT", bound=BaseModel)


def _a_rate(value: Any) -> Any:
    """A number, its text, or a fraction such as 30000/1001."""
    if not isinstance(value, str):
        return _a_number(value)
    if not _RATE.fullmatch(value):
        raise ValueError("must be a number or a fraction such as 30000/1001")
    numerator, _, denominator = value.partition("/")
    return float(numerator) / float(denominator or 1)


_RATE = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?(?:/[1-9][0-9]{0,8})?", re.ASCII)
Rate = Annotated[float, Field(ge=0.1, le=240, allow_inf_nan=False), BeforeValidator(_a_rate)]
"""Frames per second in a query."""
MAX_SECONDS = 10**6
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
DecodedSide = Annotated[int, Field(ge=1, le=MAX_DECODED_SIDE)]


class VideoFormat(StrEnum):
    """Formats of the video files and images that the server makes of an output."""

    MP4 = "mp4"
    WEBM = "webm"
    GIF = "gif"
    PNG = "png"


def _a_count(value: Any) -> Any:
    """Digits alone: pydantic also accepts "1_0" and " 1 "."""
    if isinstance(value, str) and not _COUNT.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
Count = Annotated[int, Field(ge=0), BeforeValidator(_a_count)]
PageLength = Annotated[int, Field(ge=1, le=MAX_PAGE), BeforeValidator(_a_count)]


class SubmitQuery(BaseModel):
    """The query of POST /api/v1/generations."""

    dry_run: Literal["0", "1"] = Field("0", description="1: only check the request and plan it.")


class ListQuery(BaseModel):
    """The query of GET /api/v1/generations."""

    state: State | None = Field(None, description="Only those.")
    limit: PageLength = Field(20, description="Most generations in the answer.")
    after: str | None = Field(None, description="Only those older than this one.")


class EventsQuery(BaseModel):
    """The query of GET /api/v1/generations/{id}/events."""

    after: Count = Field(0, description="Like Last-Event-ID, for clients that cannot set the header.")


class FramesQuery(BaseModel):
    """The query of GET /api/v1/generations/{id}/frames."""

    start: Count = Field(0, alias="from", description="The first frame.")
    stop: Count | None = Field(None, alias="to", description="The frame after the last one; all so far by default.")


class VideoFileQuery(BaseModel):
    """The query of a download as a video file."""

    format: VideoFormat = Field(description="A video file; png is a contact sheet.")
    fps: Rate | None = Field(None, description="Frames per second.")
    crf: int | None = Field(None, ge=0, le=51, description="Quality of mp4 and webm; 0 is best.")
    scale: int = Field(1, ge=1, le=8, description="How many times to enlarge the frames.")
    frame: int | None = Field(None, ge=0, description="With png: one frame, by its index.")


class VideoUploadQuery(BaseModel):
    """The query of an upload of a video file: which part of it, at what rate and size."""

    format: Literal["mp4", "mov", "webm", "mkv"] | None = Field(
        None, description="The body is a video file, whatever its Content-Type."
    )
    start: Seconds = Field(0, description="First second to decode.")
    end: Seconds | None = Field(None, description="Second to stop at.")
    fps: Rate | None = Field(None, description="Frames per second.")
    max_frames: int | None = Field(None, ge=1, description="Most frames to decode.")
    height: DecodedSide | None = Field(None, description="Height to scale to.")
    width: DecodedSide | None = Field(None, description="Width to scale to.")
    fit: Literal["cover", "contain", "fill"] = Field(
        "cover", description="How to fill another shape: crop, add black bars or stretch."
    )


def parse_query(model: type[ModelT], query: Mapping[str, str]) -> ModelT:
    """Read the parameters of a query; those that the model does not know are ignored, and empty ones are unset.

    Raises:
        InvalidField: a parameter is missing or invalid; the message names the first such one.
    """
    names = {field.alias or name for name, field in model.model_fields.items()}
    return validated(model, {name: value for name, value in query.items() if name in names and value})


def validated(model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """Read values that do not come as JSON.

    Raises:
        InvalidField: one is missing or invalid; the message names the first such one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    raise _refusal(errors[0], b"")


def parse(model: type[ModelT], body: bytes | bytearray) -> ModelT:
    """Read a JSON body.

    Raises:
        BadJson: it is not JSON.
        InvalidField: a field is missing, unknown or outside its limits; the message names the first such field.
    """
    try:
        return model.model_validate_json(body.removeprefix(codecs.BOM_UTF8))  # which editors on Windows write
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        raise BadJson(errors[0]["msg"])
    raise _refusal(errors[0], body)


def _refusal(error: ErrorDetails, body: bytes | bytearray) -> InvalidField:
    """Pydantic's error as ours."""
    location = error["loc"]
    if location[:1] == ("prompt",):
        location = location[:1] + location[2:]  # without the union's tag
    name = _field_name(location)
    match location:
        case ("chunk_specs", int(position), _, *_):
            chunk = json.loads(body)["chunk_specs"][position].get("chunk")
            is_short = type(chunk) is int and abs(chunk) < 10**9  # the message is for people, whatever was sent
            where = at_chunk(name, chunk) if is_short else name
        case _:
            where = name or "body"
    return InvalidField(f"{where}: {_reason(error)}", name or None)


def at_chunk(field: str, chunk: int) -> str:
    """What a message about a field of a ChunkSpec begins with."""
    return field if field.endswith("].chunk") else f"{field} (chunk {chunk})"


def _reason(error: ErrorDetails) -> str:
    message, value = error["msg"].removeprefix("Value error, "), error["input"]
    match error["type"]:
        case "extra_forbidden":
            return "unknown field"
        case "string_too_short":
            return "must not be empty"
        case "missing" | "custom":
            return message
    return message if isinstance(value, dict | list) else f"{message}, got {_shown(value)}"


def _field_name(location: tuple[int | str, ...]) -> str:
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{_key(part)}" if name else _key(part)
    return name


def _key(key: str) -> str:
    return _shortened(key) if key else "''"


def _shown(value: Any) -> str:
    """A value of JSON as the client wrote it."""
    if isinstance(value, str):
        return repr(_shortened(value))
    return _shortened(json.dumps(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


_SHOWN_CHARACTERS = 80
