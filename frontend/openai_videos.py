"""The endpoints under /v1, for clients of OpenAI's videos API: a video there is a generation here."""

import contextlib
import functools
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from quart import Blueprint, Response, request

from filmstrip.errors import (
    ERRORS,
    BadImage,
    BadVideo,
    ClientGone,
    EmptyBody,
    FilmstripError,
    InternalError,
    InvalidField,
    NotFound,
    NotReady,
    ShuttingDown,
    TooLarge,
    UnknownPipeline,
)
from filmstrip.geometry import DEFAULT_FPS, MAX_FRAMES, MAX_REQUEST_SIDE, MIN_SIDE
from filmstrip.models import State

from .auth import client_of_request
from .bodies import JSON
from .connection import will_stream
from .endpoint_helpers import answer, body_receiver, json_body
from .forms import FORM, FormFile, boundary_of
from .generations import send_video
from .images import Requester
from .jobs import GenerationView, Submission, Submitted
from .openapi import content, describe, parameter, query_parameters
from .schema import (
    MAX_SECONDS,
    NUMBER,
    ChunkSpec,
    GenerateRequest,
    OnDisconnect,
    PageLength,
    PipelineId,
    Rate,
    SubmitRequest,
    VideoFileQuery,
    VideoFormat,
    VideoUploadQuery,
    parse_query,
    validated,
)
from .state import app_state
from .store import Draft, Kind, is_name

# -- Bodies and answers -----------------------------------------------------------------------------------------------

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def _seconds(value: Any) -> Any:
    """A number, or the text of one, which OpenAI's clients send."""
    if not isinstance(value, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise ValueError("must be a number")
    return float(value)


def _size(text: str) -> str:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("must be WIDTHxHEIGHT")
    if not all(MIN_SIDE <= int(side) <= MAX_REQUEST_SIDE for side in match.groups()):
        raise ValueError(f"sides must be from {MIN_SIDE} to {MAX_REQUEST_SIDE}")
    return text


class ListVideosQuery(BaseModel):
    """The query of GET /v1/videos."""

    limit: PageLength = Field(20, description="Most videos.")
    after: str | None = Field(None, description="Only those that follow this one.")
    order: Literal["desc", "asc"] = Field("desc", description="By age.")


class ImageReference(BaseModel):
    """An image in JSON, as OpenAI's clients send it."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(description="A data URL; the server fetches nothing.")


def _image_url(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    url = value.get("image_url")
    if not isinstance(url, str) or len(value) != 1:
        raise ValueError("must have image_url, a data URL, and nothing else")
    return url


_Seconds = Annotated[
    float,
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
    NUMBER,
    BeforeValidator(_seconds, json_schema_input_type=float | str),
]
_ReferenceText = Annotated[str, BeforeValidator(_image_url, json_schema_input_type=str | ImageReference)]


@dataclass(frozen=True)
class InputReference:
    """What a video starts with, as it is stored.

    Attributes:
        image: its first frame, an asset or a data URL.
        video: its input video.
        num_frames, fps: of the input video, as far as they are known.
        own_files: what was stored for this request alone.
    """

    image: str | None = None
    video: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    own_files: tuple[str, ...] = ()


class VideoRequest(SubmitRequest):
    """The body of POST /v1/videos: OpenAI's fields, and any field of a GenerateRequest.

    In an optional field null, "" and [] mean unset: the field's default.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "longlive-small", "prompt": "a red square", "seconds": "4"}]}
    )

    pipeline_id: PipelineId | None = Field(None, description="Another name of `model`.")  # type: ignore[assignment]
    model: PipelineId | None = Field(None, description="A pipeline.")
    seconds: _Seconds | None = Field(None, description="Duration; `num_frames` takes precedence.")
    size: Annotated[str, AfterValidator(_size)] | None = Field(None, description="WIDTHxHEIGHT")
    fps: Rate | None = Field(None, description="Frames per second of the video file; 16 by default.")
    input_reference: _ReferenceText | None = Field(
        None,
        description="What the video starts with: a data URL or the name of an asset. In a form, an image file, or a "
        "video file as the input video.",
    )
    user: Any = Field(None, description="Ignored.")

    def openai_name(self, field: str, reference: InputReference) -> str:
        """What a field of the GenerateRequest is called in this request."""
        if reference.image is not None and field == f"chunk_specs[{self._first_spec}].first_frame_image":
            return "input_reference"
        if reference.video is not None and field == "input_path":
            return "input_reference"
        if field == "pipeline_id" and self.pipeline_id is None:
            return "model"
        if field in ("height", "width") and self.size is not None:
            return "size"
        if field == "num_frames" and "num_frames" not in self.model_fields_set and self.seconds is not None:
            return "seconds"
        return field

    @property
    def frame_size(self) -> tuple[int | None, int | None]:
        """Width and height; None where they are not given."""
        if self.size is None:
            return self.width, self.height
        width, height = map(int, self.size.split("x"))
        return width, height

    def starting_with(self, reference: InputReference) -> GenerateRequest:
        """The request in our own words.

        Raises:
            InvalidField: two fields contradict each other, or one is missing.
        """
        values: dict[str, Any] = {}
        if self.model is not None and self.pipeline_id not in (None, self.model):
            raise InvalidField("model: differs from pipeline_id", "model")
        values["pipeline_id"] = self.model or self.pipeline_id
        if values["pipeline_id"] is None:
            raise InvalidField("model: missing; GET /v1/models lists the models", "model")
        if self.size is not None:
            for name, side in zip(("width", "height"), self.frame_size, strict=True):
                if getattr(self, name) not in (None, side):
                    raise InvalidField(f"size: differs from {name}", "size")
                values[name] = side
        if "num_frames" not in self.model_fields_set:
            values |= self._length(reference)
        if reference.video is not None:
            if self.input_path is not None:
                raise InvalidField("input_reference: cannot be combined with input_path", "input_reference")
            values["input_path"] = reference.video
        if reference.image is not None:
            values["chunk_specs"] = self._specs_starting_with(reference.image)
        own = self.generate_request()
        return validated(GenerateRequest, {name: getattr(own, name) for name in own.model_fields_set} | values)

    def _length(self, reference: InputReference) -> dict[str, int]:
        """`num_frames`, if anything says how long the video is to be."""
        fps = self.fps or reference.fps or DEFAULT_FPS
        if self.seconds is not None:
            num_frames = max(1, round(self.seconds * fps))
            if num_frames > MAX_FRAMES:
                raise InvalidField(
                    f"seconds: {self.seconds:g} s at {fps:g} frames per second are {num_frames} frames, "
                    f"more than {MAX_FRAMES}",
                    "seconds",
                )
            return {"num_frames": num_frames}
        return {} if reference.num_frames is None else {"num_frames": min(reference.num_frames, MAX_FRAMES)}

    @property
    def _first_spec(self) -> int:
        """The place of the ChunkSpec of chunk 0, or the place after the last one."""
        specs = self.chunk_specs or ()
        return next((place for place, spec in enumerate(specs) if spec.chunk == 0), len(specs))

    def _specs_starting_with(self, image: str) -> list[ChunkSpec]:
        specs, place = list(self.chunk_specs or ()), self._first_spec
        if place == len(specs):
            return [*specs, ChunkSpec(chunk=0, first_frame_image=image)]
        if specs[place].first_frame_image is not None:
            raise InvalidField(
                f"input_reference: cannot be combined with chunk_specs[{place}].first_frame_image", "input_reference"
            )
        specs[place] = specs[place].model_copy(update={"first_frame_image": image})
        return specs


def openai_error(error: FilmstripError) -> dict[str, Any]:
    """The body of an error as OpenAI's clients read it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}


class VideoErrorAnswer(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class VideoAnswer(BaseModel):
    """A video that waits, is being generated, or has ended."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent.")
    created_at: int = Field(description="Unix time in seconds, like the other times.")
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: str
    size: str = Field(description="WIDTHxHEIGHT")
    error: VideoErrorAnswer | None
    remixed_from_video_id: None = None


class VideosAnswer(BaseModel):
    """Some of the client's videos."""

    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideoAnswer(BaseModel):
    """The video is deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelAnswer(BaseModel):
    """A pipeline, under the name that OpenAI's clients have for it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds at which the server was started.")
    owned_by: Literal["filmstrip"] = "filmstrip"


class ModelsAnswer(BaseModel):
    """The pipelines."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class OpenAIError(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorAnswer(BaseModel):
    """Every error of the endpoints under /v1 has this shape."""

    error: OpenAIError


# -- Endpoints ---------------------------------------------------------------------------------------------------------

openai_videos = Blueprint("openai_videos", __name__)

_describe = functools.partial(describe, error_model=OpenAIErrorAnswer)

_ROOT = "/v1/videos"
_STATUSES: dict[State, Any] = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.COMPLETE: "completed",
    State.CANCELLED: "failed",
    State.FAILED: "failed",
}
_VARIANTS = {
    "video": (VideoFormat.MP4, None),
    "thumbnail": (VideoFormat.PNG, 0),
    "spritesheet": (VideoFormat.PNG, None),
}
_TEXTS = ("prompt", "model", "pipeline_id", "input_path", "data_blob_path", "user")
_REFERENCE = "input_reference"
_IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")  # RIFF is WebP: AVI is no video here
_MIN_POLL_S, _MAX_POLL_S = 0.25, 5.0
_QUEUED_POLL_S = 1.0
_POLL_HEADER = "openai-poll-after-ms"
_STARTED_AT = int(time.time())

_ID_PARAMETER = parameter("id", "path", {"type": "string"}, "The id.", required=True)
_BODY = {
    "content": {
        media_type: {"schema": {"$ref": f"#/components/schemas/{VideoRequest.__name__}"}} for media_type in (JSON, FORM)
    },
    "description": "In a form, input_reference can be a file; nested fields are JSON text or have flattened names.",
}
_CREATE_ERRORS = (400, 404, 408, 409, 413, 422, 429, 503, 507)


@openai_videos.post(_ROOT)
@_describe(
    body=_BODY,
    answers={200: content(JSON, VideoAnswer, "The video is accepted.")},
    errors=_CREATE_ERRORS,
    models=(
        VideoRequest,
        VideoAnswer,
    ),
)
async def create_video() -> Response:
    """Generate a video; poll it until it is completed or failed."""
    return _video_response((await _submit(None)).generation)


@openai_videos.post(f"{_ROOT}/sync")
@_describe(
    body=_BODY,
    answers={200: content("video/mp4", description="The video.")},
    errors=_CREATE_ERRORS,
    models=(VideoRequest,),
)
async def create_video_sync() -> Response:
    """Generate a video and answer with it, as MP4; the generation ends with the connection."""
    state, client = app_state(), client_of_request()
    submitted = await _submit("cancel")
    generation_id = submitted.generation.record.id
    async with state.jobs.follow(client, generation_id, silence_s=state.settings.keep_alive_s) as events:
        async for _ in events:
            pass
    record = (await state.jobs.get(client, generation_id, with_request=False)).record
    if record.state is State.CANCELLED:
        raise NotReady(f"the video {generation_id} was cancelled", "id")
    if record.error_code == ClientGone.code:
        raise NotFound(f"the video {generation_id} was deleted")
    if record.state is State.FAILED:
        raise ERRORS.get(record.error_code or "", InternalError)(record.error_message or "the generation failed")
    if record.state.is_live:
        raise ShuttingDown("the server is stopping")
    response = await send_video(generation_id, "video.mp4", VideoFileQuery(format=VideoFormat.MP4))
    response.headers["X-Generation-Id"] = generation_id
    return response


@openai_videos.get(_ROOT)
@_describe(
    parameters=query_parameters(ListVideosQuery),
    answers={200: content(JSON, VideosAnswer)},
    errors=(404, 422),
    models=(VideosAnswer,),
)
async def list_videos() -> Response:
    """List the client's videos."""
    state, client = app_state(), client_of_request()
    query = parse_query(ListVideosQuery, request.args)
    page = await state.jobs.list(client, limit=query.limit, after=query.after, oldest_first=query.order == "asc")
    videos = [_video(view) for view in page.generations]
    return answer(
        VideosAnswer(
            data=videos,
            first_id=videos[0].id if videos else None,
            last_id=videos[-1].id if videos else None,
            has_more=page.next is not None,
        )
    )


@openai_videos.get(f"{_ROOT}/<id>")
@_describe(
    parameters=(_ID_PARAMETER,),
    answers={200: content(JSON, VideoAnswer)},
    errors=(404,),
    models=(VideoAnswer,),
)
async def get_video(id: str) -> Response:
    """Get the state of a video."""
    return _video_response(await app_state().jobs.get(client_of_request(), id, with_request=False))


@openai_videos.get(f"{_ROOT}/<id>/content")
@_describe(
    parameters=(
        _ID_PARAMETER,
        parameter("variant", "query", {"enum": list(_VARIANTS), "default": "video"}, "Which file.", required=False),
    ),
    answers={
        200: content("video/mp4", description="The video, or an image as PNG."),
        206: content("video/mp4", description="The requested range."),
        304: {"description": "The client already has the file."},
    },
    errors=(404, 409, 412, 416, 422, 503, 507),
)
async def get_video_content(id: str) -> Response:
    """Download a completed video, its first frame or a contact sheet."""
    variant = request.args.get("variant") or "video"
    if variant not in _VARIANTS:
        raise InvalidField(f"variant: must be one of {', '.join(_VARIANTS)}, got {variant[:80]!r}", "variant")
    record = (await app_state().jobs.get(client_of_request(), id, with_request=False)).record
    if record.state.is_live:
        raise NotReady(f"id: the video is not complete; its status is {_STATUSES[record.state]}", "id")
    file_format, frame = _VARIANTS[variant]
    options = request.args if variant == "video" else {} if frame is None else {"frame": str(frame)}
    return await send_video(id, variant, parse_query(VideoFileQuery, {**options, "format": file_format}))


@openai_videos.delete(f"{_ROOT}/<id>")
@_describe(
    parameters=(_ID_PARAMETER,),
    answers={200: content(JSON, DeletedVideoAnswer)},
    errors=(404,),
    models=(DeletedVideoAnswer,),
)
async def delete_video(id: str) -> Response:
    """End a video as soon as its model stops, and remove it."""
    await app_state().jobs.delete(client_of_request(), id)
    return answer(DeletedVideoAnswer(id=id))


@openai_videos.get("/v1/models")
@_describe(answers={200: content(JSON, ModelsAnswer)}, errors=(503,), models=(ModelsAnswer,))
async def list_models() -> Response:
    """List the pipelines as models."""
    return answer(ModelsAnswer(data=[_model(name) for name in await app_state().loads.pipelines()]))


@openai_videos.get("/v1/models/<id>")
@_describe(
    parameters=(_ID_PARAMETER,),
    answers={200: content(JSON, ModelAnswer)},
    errors=(404, 503),
    models=(ModelAnswer,),
)
async def get_model(id: str) -> Response:
    """Get a pipeline as a model."""
    known = await app_state().loads.pipelines()
    if id not in known:
        raise UnknownPipeline(f"model: no pipeline {id[:80]!r}; there are: {', '.join(known) or 'none'}", "model")
    return answer(_model(id))


async def _submit(on_disconnect: OnDisconnect | None) -> Submitted:
    """Submit the current request; without `on_disconnect`, its own value holds."""
    state, client = app_state(), client_of_request()
    async with _received() as (video_request, reference):
        if on_disconnect is not None:
            will_stream(request)
        try:
            own = await state.loads.apply_defaults(client, video_request.starting_with(reference))
            return await state.jobs.submit(
                Submission(
                    client,
                    None,
                    own,
                    on_disconnect=on_disconnect or video_request.on_disconnect,
                    previews=video_request.previews,
                    video_fps=video_request.fps or reference.fps,
                    own_files=reference.own_files,
                )
            )
        except BaseException as error:
            for name in reference.own_files:
                with contextlib.suppress(FilmstripError):
                    await state.blobs.delete(name, client)
            if isinstance(error, FilmstripError) and error.field is not None:
                _rename_field(error, video_request.openai_name(error.field, reference))
            raise


def _rename_field(error: FilmstripError, name: str) -> None:
    """Let an error name the field as the client knows it."""
    field = error.field or ""
    if error.message.startswith(field):
        error.message = name + error.message.removeprefix(field)
    error.field = name


@contextlib.asynccontextmanager
async def _received() -> AsyncIterator[tuple[VideoRequest, InputReference]]:
    """The current request, JSON or a form, and its input_reference."""
    boundary = boundary_of(request.headers.get("Content-Type", ""))
    if boundary is None:
        async with json_body(VideoRequest) as parsed:
            yield parsed, await _named_reference(parsed)
        return
    state = app_state()
    with state.json_bodies.reserving(client_of_request()) as reservation:
        receiving = body_receiver().form(
            boundary,
            file_name=_REFERENCE,
            max_file_bytes=state.settings.upload_bytes,
            count_text=reservation.grow,
        )
        async with receiving as (form, spool):
            parsed = await state.json_bodies.parse_form(VideoRequest, form.fields, _TEXTS, reservation)
            form.fields.clear()
            if form.file is None:
                yield parsed, await _named_reference(parsed)
            elif parsed.input_reference is not None:
                raise InvalidField(f"{_REFERENCE}: sent both as a file and as text", _REFERENCE)
            else:
                yield parsed, await _stored_reference(form.file, spool, parsed)


async def _named_reference(parsed: VideoRequest) -> InputReference:
    """What a request names: an image, or an input video, whose length and rate are those of the new one."""
    reference = parsed.input_reference
    if reference is not None and reference.lower().startswith(("http://", "https://")):
        raise InvalidField(f"{_REFERENCE}: the server fetches no URLs; send the file in a form", _REFERENCE)
    is_video = reference is not None and is_name(reference) and reference.startswith(f"{Kind.VIDEO}-")
    field = _REFERENCE if is_video else "input_path"
    name = reference if is_video else parsed.input_path
    image = None if is_video else reference
    if name is None:
        return InputReference(image=image)
    file = app_state().store.find(name, Kind.VIDEO, owner=client_of_request(), field=field)
    return InputReference(
        image=image,
        video=name if is_video else None,
        num_frames=None if file.shape is None else file.shape.frames,
        fps=None if file.fps is None else float(file.fps),
    )


async def _stored_reference(file: FormFile, spool: Draft, parsed: VideoRequest) -> InputReference:
    """Store the file of a form as what it is by its content."""
    state = app_state()
    if not file.num_bytes:
        raise EmptyBody(f"{_REFERENCE}: the file is empty", _REFERENCE)
    will_stream(request)
    try:
        if file.start.startswith(_IMAGE_STARTS):
            if file.num_bytes > state.settings.asset_bytes:
                raise TooLarge(f"an image may have at most {state.settings.asset_bytes} bytes")
            await state.decoder.shape(spool.path, Requester(client_of_request()))
            image = spool.commit().name
            return InputReference(image=image, own_files=(image,))
        width, height = parsed.frame_size
        query = VideoUploadQuery(width=width, height=height, fps=parsed.fps)
        decoded = await state.video_decoder.decode(spool, query, state.settings.upload_bytes)
    except (BadImage, BadVideo, TooLarge) as error:
        raise type(error)(f"{_REFERENCE}: {error.message}", _REFERENCE) from None
    video = decoded.file.name
    return InputReference(video=video, num_frames=decoded.shape.frames, fps=decoded.fps, own_files=(video,))


def _video_response(view: GenerationView) -> Response:
    response = answer(_video(view))
    response.headers["X-Generation-Id"] = view.record.id
    if view.record.state.is_live:
        response.headers[_POLL_HEADER] = str(round(1000 * _poll_s(view)))
    return response


def _poll_s(view: GenerationView) -> float:
    """When to ask again: a few times until the end, as far as that is known."""
    if view.record.state is State.QUEUED:
        return _QUEUED_POLL_S
    return min(max((view.eta_s or 0.0) / 4, _MIN_POLL_S), _MAX_POLL_S)


def _video(view: GenerationView) -> VideoAnswer:
    record = view.record
    error = None
    if record.state is State.CANCELLED:
        error = VideoErrorAnswer(code="cancelled", message="the video was cancelled")
    elif record.state is State.FAILED:
        error = VideoErrorAnswer(code=record.error_code or "", message=record.error_message or "")
    progress = 100 if record.state is State.COMPLETE else min(99, 100 * record.frames // record.num_frames)
    is_complete = record.state is State.COMPLETE
    return VideoAnswer(
        id=record.id,
        model=record.pipeline_id,
        status=_STATUSES[record.state],
        progress=progress,
        created_at=int(record.created_at),
        completed_at=int(record.ended_at) if is_complete and record.ended_at is not None else None,
        expires_at=int(record.expires_at) if record.expires_at is not None else None,
        prompt=record.prompt,
        seconds=f"{record.num_frames / (record.video_fps or DEFAULT_FPS):.6g}",
        size=f"{record.width}x{record.height}",
        error=error,
    )


def _model(name: str) -> ModelAnswer:
    return ModelAnswer(id=name, created=_STARTED_AT)
