"""What a server sends, as typed values: its answers to calls, and the events of a generation.

pydantic reads them all; what another program sends is an error. The server declares its own answers in
`frontend/schema.py`, more strictly: a client also has to understand servers of other versions. Keys that this version
does not know are kept in answers and left out of events.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from filmstrip.errors import ERRORS, FilmstripError, GenerationCancelled, ModelError, UnexpectedAnswer
from filmstrip.wire import VideoShape


def _four(shape: Any) -> Any:
    if isinstance(shape, list) and len(shape) != 4:  # VideoShape itself takes three
        raise ValueError("must be [frames, height, width, channels]")
    return shape


def _positive(shape: VideoShape) -> VideoShape:
    if min(shape) < 1:
        raise ValueError("must be positive")
    return shape


AnswerShape = Annotated[VideoShape, BeforeValidator(_four), AfterValidator(_positive)]
"""[F, H, W, C] as an answer holds it."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


# -- Answers -----------------------------------------------------------------------------------------------------


class UploadedVideo(_Answer):
    """An input video that the server holds: `input_path` goes into the request.

    Attributes:
        input_path: the server's name for it.
        num_frames: its frames.
        shape: [F, H, W, C].
        fps: frames per second; None if it was uploaded as raw frames.
        poster: its first frame as a data URL of at most 32 KiB; likewise.
    """

    input_path: str
    num_frames: int
    shape: AnswerShape
    fps: float | None = None
    poster: str | None = None


class UploadedData(_Answer):
    """A blob that the server holds: `data_blob_path` goes into the request."""

    data_blob_path: str
    size_bytes: int


class UploadedAsset(_Answer):
    """An image that the server holds: `path` goes into the image fields of a request."""

    path: str


class PipelineFeatures(_Answer):
    """What a pipeline supports; docs/api.md says what each feature means."""

    frame_processor: bool = False
    seed: bool = False
    prompts: bool = False
    noise: bool = False
    cache: bool = False
    denoising_steps: bool = False
    vace: bool = False
    loras: list[str] = []


class PipelineInfo(_Answer):
    """What a pipeline is and can do; what the server does not know before it has loaded the pipeline is None.

    Attributes:
        id: goes into `pipeline_id` of a request.
        modes: what it generates frames from: "text", "video" or both.
        chunk_size: pixel frames of a chunk.
        first_chunk_size: pixel frames of the first chunk in text mode.
        granularity: height and width must be multiples of it.
        height: native height in pixels; None for a pipeline that keeps the size of its input.
        width: native width in pixels; likewise.
        sizes: (height, width) pairs that it supports; empty if it supports every multiple of the granularity.
        max_references: maximum number of reference images per chunk; None for the API's own limit.
        features: what it supports.
        defaults: its own defaults, for display.
        loaded: whether it is loaded.
        state: "ready", "loading", "unloaded" or "failed".
        reason: why it failed or is not loaded.
    """

    id: str
    modes: list[str] | None = None
    chunk_size: int | None = None
    first_chunk_size: int | None = None
    granularity: int | None = None
    height: int | None = None
    width: int | None = None
    sizes: list[tuple[int, int]] | None = None
    max_references: int | None = None
    features: PipelineFeatures | None = None
    defaults: dict[str, Any] | None = None
    loaded: bool = True
    state: str = Field(default="", validate_default=True)
    reason: str | None = None

    @field_validator("state", mode="before")
    @classmethod
    def _state_of_loaded(cls, state: object, info: ValidationInfo) -> object:
        """Some servers only say whether it is loaded."""
        if state not in ("", None):
            return state
        return "ready" if info.data.get("loaded", True) else "unloaded"

    @property
    def native_size(self) -> tuple[int, int] | None:
        """(height, width) of its frames by default; None for a pipeline that keeps the size of its input."""
        return (self.height, self.width) if self.height and self.width else None


class PipelineList(_Answer):
    """The pipelines of a server."""

    pipelines: list[PipelineInfo]


class LoadAnswer(_Answer):
    """The answer to a request to load pipelines.

    Attributes:
        status: "loading" or "loaded".
        ignored: load parameters that have no effect, sorted.
    """

    status: str
    ignored: list[str] = []


class LoraInfo(_Answer):
    """A LoRA of the loaded pipeline, and the scale that requests use unless they say otherwise."""

    path: str
    scale: float


class LoadStatus(_Answer):
    """How the last load of a client went.

    Attributes:
        status: "not_loaded", "loading", "loaded" or "error".
        pipeline_id: the requested pipeline.
        load_params: the requested parameters.
        loaded_lora_adapters: LoRAs of that pipeline.
        error: why the load failed.
    """

    status: str
    pipeline_id: str | None = None
    load_params: dict[str, Any] | None = None
    loaded_lora_adapters: list[LoraInfo] = []
    error: str | None = None


class SlotHealth(_Answer):
    """One of the server's slots: "ready", "generating", "starting" or "unavailable"."""

    name: str
    state: str


class Health(_Answer):
    """The health of a server.

    Attributes:
        status: "healthy" when a generation would be accepted, or one runs; "starting"; "unavailable".
        generating: whether a generation runs.
        degraded: ids of the pipelines that cannot run.
        slots: its slots, each of which runs one generation at a time.
    """

    status: str
    generating: bool = False
    degraded: list[str] = []
    slots: list[SlotHealth] = []


class GenerationFailure(_Answer):
    """Why a generation failed."""

    code: str
    message: str


class State(StrEnum):
    """Where a generation is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_live(self) -> bool:
        """It waits or runs."""
        return self in (State.QUEUED, State.RUNNING)


class Generation(_Answer):
    """A generation as a resource; docs/api.md says what each key means.

    Attributes:
        id: its name, unique among this client's.
        state: one of `State`; a newer server may have others.
        position: its place in the queue, 1 for the next one; None unless it waits.
        chunk: chunks generated so far.
        total_chunks: chunks of the whole generation.
        frames: pixel frames generated so far.
        num_frames: pixel frames in all.
        fps: pixel frames generated per second.
        eta_s: estimated seconds until its end; None unless it runs.
        created_at: Unix time in seconds, like the other times.
        started_at: None before it runs.
        ended_at: None before it has ended.
        expires_at: when the server forgets it and its output.
        seed: the same request with this seed gives the same video.
        unused: fields of the request that the pipeline does not use, sorted.
        error: why it failed; None otherwise.
        output_path: where its frames can be downloaded; None if there are none.
        video_shape: [F, H, W, C] of the output; likewise.
        links: paths on the server, without a proxy's prefix.
        request: what was sent; None in lists.
    """

    id: str
    state: str
    position: int | None = None
    chunk: int = 0
    total_chunks: int = 0
    frames: int = 0
    num_frames: int = 0
    fps: float | None = None
    eta_s: float | None = None
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    seed: int | None = None
    unused: list[str] = []
    error: GenerationFailure | None = None
    output_path: str | None = None
    video_shape: AnswerShape | None = None
    links: dict[str, str | None] = {}
    request: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        """It neither waits nor runs."""
        return self.state not in (State.QUEUED, State.RUNNING)


class GenerationPage(_Answer):
    """Some of the client's generations, newest first; `next` is the `after` of the next page, None if there is none."""

    generations: list[Generation]
    next: str | None = None


class PlannedChunk(_Answer):
    """A chunk of a plan: its first frame, and how many frames it adds."""

    start: int
    frames: int


class DryRunPlan(_Answer):
    """What a request would generate.

    Attributes:
        height: of the video, in pixels.
        width: likewise.
        num_chunks: number of its chunks.
        chunks: the chunks.
        unused: fields of the request that the pipeline would not use, sorted.
    """

    height: int
    width: int
    num_chunks: int
    chunks: list[PlannedChunk]
    unused: list[str] = []


class CancelAnswer(_Answer):
    """The answer to a request to cancel.

    Attributes:
        status: "cancelling" after the current chunk, "cancelled" at once, or "idle" when nothing runs.
    """

    status: str


class ErrorDetail(_Answer):
    """What the server says went wrong."""

    code: str
    message: str
    field: str | None = None


class ErrorAnswer(_Answer):
    """The body of every error answer."""

    error: ErrorDetail


# -- Events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queued:
    """The generation waits; 1 is the next one. It comes whenever the place changes, and has no number."""

    position: int


@dataclass(frozen=True)
class Progress:
    """A chunk is done.

    Attributes:
        chunk: the chunk's number, from 1.
        total_chunks: chunks of the whole generation, including those that resets of the cache add.
        frames: pixel frames that this chunk added to the output.
        latency: seconds it took.
        fps: frames / latency.
        slot: which of the server's slots made it; None if the server has only one.
    """

    chunk: int
    total_chunks: int
    frames: int
    latency: float
    fps: float
    slot: str | None = None


@dataclass(frozen=True)
class Preview:
    """A small image of the newest frame, after a chunk, if the request asked for previews.

    Attributes:
        chunk: the chunk's number, from 1.
        frames: pixel frames generated so far; the image shows the last of them.
        width: of the image, in pixels.
        height: likewise.
        image: a data URL of a WebP; None if it was not ready in time.
    """

    chunk: int
    frames: int
    width: int
    height: int
    image: str | None = None


@dataclass(frozen=True)
class Complete:
    """The video is complete; the last event.

    Attributes:
        output_path: where it can be downloaded.
        video_shape: [F, H, W, C].
        num_frames: F.
        num_chunks: number of its chunks.
        chunk_size: pixel frames of a chunk of the pipeline.
        seed: the same request with this seed gives the same video.
        unused: fields of the request that the pipeline does not use, sorted.
    """

    output_path: str
    video_shape: AnswerShape
    num_frames: int
    num_chunks: int
    chunk_size: int
    seed: int | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cancelled:
    """The generation was cancelled; the last event.

    Attributes:
        chunk: index, from 0, of the chunk that was not started.
        total_chunks: chunks that the complete video would have had; 0 if that was not known yet.
        frames_completed: pixel frames generated so far.
        output_path: where these can be downloaded; None if there are none.
        video_shape: their shape; None if there are none.
        seed: as in Complete.
        unused: as in Complete.
    """

    chunk: int
    total_chunks: int
    frames_completed: int
    output_path: str | None = None
    video_shape: AnswerShape | None = None
    seed: int | None = None
    unused: tuple[str, ...] = ()

    def exception(self) -> GenerationCancelled:
        """This event as an exception."""
        return GenerationCancelled(self.frames_completed, self.output_path)


@dataclass(frozen=True)
class ErrorEvent:
    """The generation failed; the last event."""

    error: str
    code: str

    def exception(self) -> FilmstripError:
        """This failure as the exception of its code; ModelError for a code that this version doesn't know."""
        return ERRORS.get(self.code, ModelError)(self.error)


Event = Queued | Progress | Preview | Complete | Cancelled | ErrorEvent
LAST_EVENTS = (Complete, Cancelled, ErrorEvent)
"""Every stream ends with one of these, and nothing follows it."""

EVENT_NAMES: dict[type[Event], str] = {
    Queued: "queued",
    Progress: "progress",
    Preview: "preview",
    Complete: "complete",
    Cancelled: "cancelled",
    ErrorEvent: "error",
}
"""The name of each event in the stream."""

_READERS: dict[str, TypeAdapter[Event]] = {name: TypeAdapter(event) for event, name in EVENT_NAMES.items()}


def parse_event(name: str, data: str) -> Event | None:
    """Read one server-sent event; None for a name that this version doesn't know.

    httpx-sse makes an empty event named "message" of a comment that follows an event with an id: None too.

    Raises:
        UnexpectedAnswer: the data are not the JSON that an event of this name carries.
    """
    reader = _READERS.get(name)
    if reader is None:
        return None
    try:
        return reader.validate_json(data, strict=True)
    except ValidationError as error:
        raise UnexpectedAnswer(f"unexpected {name} event: {first_error(error)}") from None


def completed(last: Event | None) -> Complete:
    """The last event of a generation that must be complete.

    Raises:
        FilmstripError: the generation failed.
        GenerationCancelled: it was cancelled.
    """
    if isinstance(last, Cancelled | ErrorEvent):
        raise last.exception()
    assert isinstance(last, Complete), "the stream has a last event, or raises"
    return last


def first_error(error: ValidationError) -> str:
    """The first of pydantic's errors, in one line."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where}: {found['msg']}" if where else found["msg"]
