"""The endpoints of /api/v1/generations: a generation as a resource, with its video files."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from quart import Blueprint, Response, request

from filmstrip.errors import BadHeader, InvalidField, NotReady, RangeNotSatisfiable
from filmstrip.geometry import DEFAULT_FPS
from filmstrip.request_fields import ID_PATTERN, KEY_PATTERN
from filmstrip.wire import VIDEO_HEADER_BYTES, pack_video_header

from .auth import client_of_request
from .bodies import BINARY, JSON
from .connection import on_close, will_stream
from .download import VIDEO_HEADERS, counted, send_file, video_headers
from .endpoint_helpers import answer, event_stream, json_body
from .jobs import EntryPoint, GenerationView, Submission
from .openapi import EVENTS, content, describe, parameter, query_parameters
from .schema import (
    CancelGenerationAnswer,
    ChunkAnswer,
    DryRunAnswer,
    DryRunRequest,
    EventsQuery,
    FailureAnswer,
    FramesQuery,
    GenerationAnswer,
    GenerationsAnswer,
    LinksAnswer,
    ListQuery,
    SubmitQuery,
    SubmitRequest,
    SummaryAnswer,
    VideoFileQuery,
    VideoFormat,
    parse_query,
)
from .state import app_state
from .video_files import CONTENT_TYPES, CompleteOutput, FrameSource, Variant

generations = Blueprint("generations", __name__)

_ROOT = "/api/v1/generations"
_ID = re.compile(ID_PATTERN)
_KEY = re.compile(KEY_PATTERN)
_EVENT_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)

_ID_PARAMETER = parameter("id", "path", {"type": "string", "pattern": f"^{ID_PATTERN}$"}, "The id.", required=True)
_KEY_PARAMETER = parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "pattern": f"^{KEY_PATTERN}$"},
    "Another POST with this key and the same body answers with the same generation.",
    required=False,
)
_STREAM = content(
    EVENTS,
    description="The events, if the request accepts text/event-stream: `queued` while it waits, `progress` after each "
    "chunk, `preview` where asked for, finally one of `complete`, `cancelled` and `error`.",
)
_SUBMIT_ERRORS = (400, 404, 408, 409, 413, 422, 429, 503, 507)


def _submit_answers() -> dict[int, dict[str, Any]]:
    known = content(JSON, GenerationAnswer, "The generation was there already; or its events as a stream.")
    known["content"] |= _STREAM["content"]
    return {200: known, 202: content(JSON, GenerationAnswer, "The generation is accepted.")}


@generations.put(f"{_ROOT}/<id>")
@describe(
    parameters=(_ID_PARAMETER,),
    body=content(JSON, SubmitRequest),
    answers=_submit_answers(),
    errors=_SUBMIT_ERRORS,
    models=(SubmitRequest, GenerationAnswer),
)
async def put_generation(id: str) -> Response:
    """Generate a video under an id of the client's choice.

    The same request again answers with the same generation.
    """
    if not _ID.fullmatch(id):
        raise InvalidField("id: must be 1 to 64 letters, digits, - and _", "id")
    return await _submit(id, None)


@generations.post(_ROOT)
@describe(
    parameters=(_KEY_PARAMETER, *query_parameters(SubmitQuery)),
    body=content(JSON, DryRunRequest),
    answers=_submit_answers(),
    errors=_SUBMIT_ERRORS,
    models=(DryRunRequest, GenerationAnswer, DryRunAnswer),
)
async def post_generation() -> Response:
    """Generate a video under an id that the server makes, or check what a request would generate."""
    if parse_query(SubmitQuery, request.args).dry_run == "1":
        return await _dry_run()
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadHeader("Idempotency-Key must be 1 to 255 printable ASCII characters", "Idempotency-Key")
    return await _submit(None, key)


async def _submit(id: str | None, key: str | None) -> Response:
    state, client = app_state(), client_of_request()
    streams = _accepts_events()
    async with json_body(SubmitRequest) as body:
        if streams:
            will_stream(request)
        submission = Submission(
            client,
            id,
            await state.loads.apply_defaults(client, body.generate_request()),
            EntryPoint.RESOURCE,
            key,
            body.on_disconnect,
            body.previews,
        )
        del body
        submitted = await state.jobs.submit(submission)
    generation_id = submitted.generation.record.id
    if streams:
        return await event_stream(generation_id, shows_queue=True)
    response = _resource(submitted.generation)
    response.status_code = 202 if submitted.is_new else 200
    response.headers["X-Generation-Id"] = generation_id
    return response


@generations.get(_ROOT)
@describe(
    parameters=query_parameters(ListQuery),
    answers={200: content(JSON, GenerationsAnswer)},
    errors=(404, 422),
    models=(GenerationsAnswer,),
)
async def list_generations() -> Response:
    """List the client's generations, newest first."""
    query = parse_query(ListQuery, request.args)
    page = await app_state().jobs.list(client_of_request(), state=query.state, limit=query.limit, after=query.after)
    return answer(GenerationsAnswer(generations=[_summary(view) for view in page.generations], next=page.next))


@generations.get(f"{_ROOT}/<id>")
@describe(
    parameters=(_ID_PARAMETER,),
    answers={200: content(JSON, GenerationAnswer)},
    errors=(404,),
    models=(GenerationAnswer,),
)
async def get_generation(id: str) -> Response:
    """Get the state of a generation."""
    return _resource(await app_state().jobs.get(client_of_request(), id))


@generations.post(f"{_ROOT}/<id>/cancel")
@describe(
    parameters=(_ID_PARAMETER,),
    answers={200: content(JSON, CancelGenerationAnswer)},
    errors=(404,),
    models=(CancelGenerationAnswer,),
)
async def cancel_generation(id: str) -> Response:
    """Cancel a generation: at once while it waits, otherwise after its current chunk."""
    status = await app_state().jobs.cancel(client_of_request(), id)
    return answer(CancelGenerationAnswer(status=status))


@generations.delete(f"{_ROOT}/<id>")
@describe(
    parameters=(_ID_PARAMETER,),
    answers={204: {"description": "The generation and its files are removed, and its slot is free."}},
    errors=(404,),
)
async def delete_generation(id: str) -> Response:
    """End a generation as soon as its model stops, and remove it with its files."""
    await app_state().jobs.delete(client_of_request(), id)
    return Response(status=204)


@generations.get(f"{_ROOT}/<id>/events")
@describe(
    parameters=(
        _ID_PARAMETER,
        parameter(
            "Last-Event-ID",
            "header",
            {"type": "integer", "minimum": 0},
            "Number of the last event that the client has.",
            required=False,
        ),
        *query_parameters(EventsQuery),
    ),
    answers={200: _STREAM},
    errors=(400, 404, 422),
)
async def follow_generation(id: str) -> Response:
    """Follow the events of a generation, from the first one or from any other."""
    after = parse_query(EventsQuery, request.args).after
    last = request.headers.get("Last-Event-ID", "").strip()
    if last and not _EVENT_NUMBER.fullmatch(last):
        raise BadHeader(f"Last-Event-ID must be the number of an event, got {last[:80]!r}", "Last-Event-ID")
    will_stream(request)
    return await event_stream(id, after=int(last) if last else after, shows_queue=True)


@generations.get(f"{_ROOT}/<id>/frames")
@describe(
    parameters=(_ID_PARAMETER, *query_parameters(FramesQuery)),
    answers={200: content(BINARY, description="20-byte header and raw uint8 THWC.") | {"headers": VIDEO_HEADERS}},
    errors=(404, 409, 416, 422, 503),
    is_media=True,
)
async def get_frames(id: str) -> Response:
    """Download frames that a generation has made so far."""
    state = app_state()
    closing = on_close(request)
    frames = await closing.enter_async_context(state.jobs.frames(client_of_request(), id))
    shape = frames.shape
    query = parse_query(FramesQuery, request.args)
    start, stop = query.start, shape.frames if query.stop is None else min(query.stop, shape.frames)
    if start >= shape.frames:
        raise RangeNotSatisfiable(f"from: there are {shape.frames} frames so far, requested from {start}", "from")
    if stop <= start:
        raise InvalidField("to: must be greater than from", "to")
    shape = shape._replace(frames=stop - start)
    response = Response(b"", content_type=BINARY)
    response.headers["Content-Length"] = str(VIDEO_HEADER_BYTES + shape.num_bytes)
    response.headers["Cache-Control"] = "no-cache"
    response.headers.update(video_headers(shape))
    if request.method == "GET":
        closing.enter_context(state.downloads.running())

        async def body() -> Any:
            yield pack_video_header(shape)
            async for piece in counted(frames.read(start, stop)):
                yield piece

        response.response = response.iterable_body_class(body())
    return response


async def _dry_run() -> Response:
    state, client = app_state(), client_of_request()
    async with json_body(DryRunRequest) as body:
        state.dry_runs.count(client)
        plan = await state.dry_runs.plan(
            client, await state.loads.apply_defaults(client, body.generate_request()), body
        )
    return answer(
        DryRunAnswer(
            height=plan.output.height,
            width=plan.output.width,
            num_chunks=len(plan.chunks),
            chunks=[ChunkAnswer(start=chunk.first_frame, frames=chunk.num_kept) for chunk in plan.chunks],
            unused=list(plan.unused),
        )
    )


def _accepts_events() -> bool:
    accepted = request.accept_mimetypes
    return EVENTS in list(accepted.values()) and accepted[EVENTS] >= accepted[JSON]


def _summary(view: GenerationView) -> SummaryAnswer:
    record = view.record
    error = None
    if record.error_code is not None:
        error = FailureAnswer(code=record.error_code, message=record.error_message or "")
    return SummaryAnswer(
        id=record.id,
        state=record.state,
        position=view.position,
        chunk=record.chunk,
        total_chunks=record.total_chunks,
        frames=record.frames,
        num_frames=record.num_frames,
        fps=record.fps,
        eta_s=None if view.eta_s is None else round(view.eta_s, 3),
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        expires_at=record.expires_at,
        seed=record.seed,
        unused=list(record.unused),
        error=error,
        output_path=record.output_path,
        video_shape=None if record.video_shape is None else list(record.video_shape),
        links=_links(record.id, record.output_path),
    )


def _links(id: str, output_path: str | None) -> LinksAnswer:
    own = f"{_ROOT}/{id}"
    links = LinksAnswer(self=own, events=f"{own}/events", cancel=f"{own}/cancel", frames=f"{own}/frames")
    if output_path is not None:
        links.output = f"/api/v1/generate/download?path={output_path}"
        links.video, links.poster = f"{own}/video.mp4", f"{own}/poster.png"
    return links


def _resource(view: GenerationView) -> Response:
    """The answer for one generation; its request may be large, and is passed on as it is stored."""
    summary = _summary(view).model_dump_json()
    return Response(f'{summary[:-1]},"request":{view.request or "null"}}}', content_type=JSON)


# -- Video files ----------------------------------------------------------------------------------------------------

_VIDEO_FILES = {
    "video.mp4": (VideoFormat.MP4, "Download the video as MP4. While it is being generated, it grows."),
    "video.webm": (VideoFormat.WEBM, "Download the video as WebM."),
    "video.gif": (VideoFormat.GIF, "Download the video as GIF."),
    "poster.png": (VideoFormat.PNG, "Download the first frame."),
    "contact-sheet.png": (VideoFormat.PNG, "Download up to 24 frames in one image."),
}


def _add_video_file(name: str, file_format: VideoFormat, summary: str) -> None:
    is_poster = name == "poster.png"

    async def view(id: str) -> Response:
        query = parse_query(VideoFileQuery, {**request.args, "format": file_format})
        if is_poster and query.frame is None:
            query.frame = 0
        return await send_video(id, name, query)

    view.__doc__ = summary
    view.__name__ = f"get_{name.replace('.', '_').replace('-', '_')}"
    described = describe(
        parameters=(_ID_PARAMETER, *query_parameters(VideoFileQuery, without=("format",))),
        answers={
            200: content(CONTENT_TYPES[file_format], description="The file."),
            206: content(CONTENT_TYPES[file_format], description="The requested range of a finished video."),
            304: {"description": "The client already has the file."},
        },
        errors=(404, 409, 412, 416, 422, 503, 507),
        is_media=True,
    )
    marked: Callable[[str], Awaitable[Response]] = described(view)
    generations.get(f"{_ROOT}/<id>/{name}")(marked)


for _name, (_format, _title) in _VIDEO_FILES.items():
    _add_video_file(_name, _format, _title)


async def send_video(id: str, name: str, query: VideoFileQuery) -> Response:
    """The response with a file of the current client's generation; `name` is what messages call it."""
    state = app_state()
    source = await state.jobs.frame_source(client_of_request(), id)
    variant = Variant.of(query, source.shape, source.fps or DEFAULT_FPS)
    if not isinstance(source, CompleteOutput):
        if variant.format is not VideoFormat.MP4:
            raise NotReady(f"id: {name} is made when the generation has ended; video.mp4 can be watched now", "id")
        return _growing_video(source, variant)
    will_stream(request)
    return await send_file(
        await state.video_files.file(source.file, variant),
        request,
        state.blobs,
        state.downloads,
        content_type=variant.content_type,
        file_name=f"{id}.{variant.format}",
    )


def _growing_video(source: FrameSource, variant: Variant) -> Response:
    """A fragmented MP4 without a length, which ends when the generation does."""
    state = app_state()
    response = Response(b"", content_type=variant.content_type)
    response.headers.pop("Content-Length", None)
    response.headers.update({"Accept-Ranges": "none", "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    if request.method == "GET":
        closing = on_close(request)
        closing.enter_context(state.downloads.running())
        pieces = closing.enter_context(state.video_files.following(source, variant))
        response.response = response.iterable_body_class(counted(pieces))
    return response
