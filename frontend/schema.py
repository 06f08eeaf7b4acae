"""Requests and answers: the one place of fields, defaults and limits."""

import codecs
import json
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from filmstrip.contract import Interpolation
from filmstrip.errors import BadJson, InvalidField
from filmstrip.geometry import MAX_FRAMES, MAX_SIDE, MIN_SIDE

MAX_SEED = 2**63 - 1 - 2**20
MAX_PROMPT_CHARACTERS = 100_000
MAX_PROMPTS = 64
MAX_REF_IMAGES = 16
MAX_KEYS = 256
MAX_PIPELINES = 256
MAX_LOAD_PARAMS_CHARACTERS = 64 * 1024
_MAX_U63 = 2**63 - 1


def _a_number(value: Any) -> Any:
    """Numbers only: pydantic by itself takes true and "3" for numbers too."""
    if isinstance(value, bool | str):
        raise ValueError("a number is wanted")
    return value


def _a_bool(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def _few(value: Any) -> Any:
    """Checked before each entry is: a million bad ones would make a million errors."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} entries")
    return value


# Last in each type: limits that come after a validator are missing from the JSON schema.
NUMBER = BeforeValidator(_a_number)
Bool = Annotated[bool, BeforeValidator(_a_bool)]
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), NUMBER]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER]
Bias = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NUMBER]
ContextScale = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), NUMBER]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE), NUMBER]
Offset = Annotated[int, Field(ge=0, le=_MAX_U63), NUMBER]
Dimension = Annotated[int, Field(ge=1, le=2**32 - 1), NUMBER]
VideoDimensions = Annotated[list[Dimension], Field(min_length=4, max_length=4)]
ArrayDimensions = Annotated[list[Dimension], Field(min_length=5, max_length=5)]
StoredName = Annotated[str, Field(max_length=256)]
ImageSource = Annotated[str, Field(min_length=1)]
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
    list[Annotated[int, Field(ge=1, le=1000), NUMBER]],
    Field(min_length=1, max_length=1000, description="Strictly falling timesteps."),
    AfterValidator(_falling),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    _few_keys = model_validator(mode="before")(_few)


class WeightedPrompt(_Model):
    """A prompt and its share in the blend."""

    text: Text
    weight: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NUMBER] = 100.0


def _some_weight(prompts: list[WeightedPrompt]) -> list[WeightedPrompt]:
    if not any(prompt.weight > 0 for prompt in prompts):
        raise ValueError("one weight at least must be above 0")
    return prompts


WeightedPrompts = Annotated[
    list[WeightedPrompt], Field(min_length=1, max_length=MAX_PROMPTS), AfterValidator(_some_weight)
]


class ChunkSpec(_Model):
    """What one chunk does otherwise than the request; only prompts stay in force for later chunks."""

    chunk: Annotated[int, Field(ge=0, lt=MAX_FRAMES), NUMBER] = Field(description="Index of the chunk, from 0.")
    text: Text | None = Field(None, description="New prompt; excludes `prompts`.")
    prompts: WeightedPrompts | None = Field(None, description="New prompts to blend; excludes `text`.")
    prompt_interpolation_method: Interpolation | None = None
    transition_target_prompts: WeightedPrompts | None = Field(None, description="Prompts to move to, chunk by chunk.")
    transition_num_steps: Annotated[int, Field(ge=0, le=MAX_FRAMES), NUMBER] | None = Field(
        None, description="Chunks that the transition takes; 0 snaps. 4 where target prompts are given."
    )
    transition_method: Interpolation | None = None
    first_frame_image: ImageSource | None = Field(None, description="Asset or data URL that the chunk starts with.")
    last_frame_image: ImageSource | None = Field(None, description="Asset or data URL that the chunk ends with.")
    vace_ref_images: Annotated[list[ImageSource], Field(max_length=MAX_REF_IMAGES)] | None = None
    seed: Seed | None = None
    noise_scale: Share | None = None
    kv_cache_attention_bias: Bias | None = None
    reset_cache: Bool = False
    noise_controller: Bool | None = None
    manage_cache: Bool | None = None
    denoising_steps: DenoisingSteps | None = None
    lora_scales: LoraScales | None = None
    vace_context_scale: ContextScale | None = None
    vace_use_input_video: Bool | None = None
    vace_temporally_locked: Bool = Field(
        True, description="Arrays of another length are trimmed or padded to the chunk; false: resampled."
    )
    vace_frames_shape: ArrayDimensions | None = Field(None, description="[1, C, T, H, W] of float32 in the blob.")
    vace_frames_offset: Offset | None = Field(None, description="Bytes from the start of the blob.")
    vace_masks_shape: ArrayDimensions | None = Field(None, description="[1, 1, T, H, W] of float32 in the blob.")
    vace_masks_offset: Offset | None = Field(None, description="Bytes from the start of the blob.")
    input_video_shape: VideoDimensions | None = Field(None, description="[T, H, W, C] of uint8 in the blob.")
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


class GenerateRequest(_Model):
    """The body of POST /api/v1/generate; its values hold for every chunk that has no ChunkSpec of its own."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    pipeline_id: Annotated[str, Field(min_length=1, max_length=256)]
    prompt: PromptOrPrompts = Field(description="A text, or weighted texts to blend.")
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES), NUMBER] = 64
    height: Side | None = Field(None, description="null: the pipeline's own, or the input's.")
    width: Side | None = Field(None, description="null: the pipeline's own, or the input's.")
    seed: Seed = 42
    noise_scale: Share = Field(0.7, description="Share of noise, video-to-video only.")
    manage_cache: Bool = True
    noise_controller: Bool | None = None
    kv_cache_attention_bias: Bias | None = None
    prompt_interpolation_method: Interpolation = Interpolation.LINEAR
    vace_context_scale: ContextScale = 1.0
    vace_use_input_video: Bool | None = None
    denoising_steps: DenoisingSteps | None = None
    lora_scales: LoraScales | None = None
    input_path: StoredName | None = Field(None, description="From /generate/upload.")
    data_blob_path: StoredName | None = Field(None, description="From /generate/upload-data.")
    pre_processor_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    post_processor_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    chunk_specs: Annotated[list[ChunkSpec], Field(max_length=MAX_FRAMES, fail_fast=True)] | None = None


def _json(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if len(json.dumps(value, allow_nan=False)) > MAX_LOAD_PARAMS_CHARACTERS:
        raise ValueError(f"more than {MAX_LOAD_PARAMS_CHARACTERS} characters of JSON")
    return value


class LoadRequest(_Model):
    """The body of POST /api/v1/pipeline/load."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pipeline_ids": ["longlive-small"]}]})

    pipeline_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=MAX_PIPELINES)
    ]
    load_params: Annotated[dict[str, Any] | None, AfterValidator(_json)] = None


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
    shape: list[int] = Field(description="[T, H, W, C]")


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


class HealthAnswer(BaseModel):
    """Whether a generation would be accepted, or one runs."""

    status: Literal["healthy", "starting", "unavailable"]
    generating: bool
    degraded: list[str]


class LiveAnswer(BaseModel):
    """The server answers requests; whether it can generate is another question."""

    status: Literal["live"]


class FeaturesAnswer(BaseModel):
    """What a pipeline supports; see docs/api.md."""

    frame_processor: bool
    seed: bool
    prompts: bool
    noise: bool
    cache: bool
    denoising_steps: bool
    vace: bool
    loras: list[str]


class PipelineAnswer(BaseModel):
    """What a pipeline is and can do; all but its id and state is null as long as it was never loaded."""

    id: str
    modes: list[str] | None = None
    chunk_size: int | None = None
    first_chunk_size: int | None = None
    granularity: int | None = None
    height: int | None = None
    width: int | None = None
    sizes: list[tuple[int, int]] | None = None
    max_references: int | None = None
    features: FeaturesAnswer | None = None
    defaults: dict[str, Any] | None = None
    loaded: bool
    state: Literal["ready", "loading", "unloaded", "failed"]
    reason: str | None = None


class PipelinesAnswer(BaseModel):
    """The pipelines of the model repository, and its models that failed."""

    pipelines: list[PipelineAnswer]


class LoadAnswer(BaseModel):
    """The load has begun, or was done already."""

    status: Literal["loading", "loaded"]


class PipelineStatusAnswer(BaseModel):
    """How the last load went."""

    status: Literal["not_loaded", "loading", "loaded", "error"]
    pipeline_id: str | None
    load_params: dict[str, Any] | None
    loaded_lora_adapters: list[dict[str, Any]]
    error: str | None


ModelT = TypeVar("ModelT", bound=BaseModel)


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
    worst = errors[0]
    location = worst["loc"][:1] + worst["loc"][2:] if worst["loc"][:1] == ("prompt",) else worst["loc"]  # without tag
    chunk, name = _chunk_named(location, body), _field_name(location)
    if worst["type"] == "extra_forbidden":
        raise InvalidField(f"{chunk}{name}: no such field", name)
    value = worst["input"]
    shown = "" if isinstance(value, dict | list) or worst["type"] == "missing" else f", got {_shown(value)}"
    raise InvalidField(f"{chunk}{name or 'body'}: {worst['msg'].removeprefix('Value error, ')}{shown}", name or None)


def _chunk_named(location: tuple[int | str, ...], body: bytes | bytearray) -> str:
    """What a message about a field of a ChunkSpec begins with: its chunk, where it has one."""
    match location:
        case ("chunk_specs", int(position), field, *_) if field != "chunk":
            chunk = json.loads(body)["chunk_specs"][position].get("chunk")
            return f"chunk {chunk}: " if type(chunk) is int else ""
    return ""


def _field_name(location: tuple[int | str, ...]) -> str:
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{_key(part)}" if name else _key(part)
    return name


def _key(key: int | str) -> str:
    text = str(key) or "''"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(_key(value[: _SHOWN_CHARACTERS + 1]))
    return _key(str(value))


_SHOWN_CHARACTERS = 80
