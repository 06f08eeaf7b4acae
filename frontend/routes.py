"""The endpoints: read the request, call the object that owns the work, answer."""

from quart import Blueprint, Response, request

from filmstrip.errors import InvalidField
from filmstrip.geometry import DEFAULT_FPS

from . import metrics
from .auth import came_by_tls, client_of_request, key_of_request
from .bodies import BINARY, JSON, VIDEO_TYPES, is_video_file, video_shape
from .connection import will_stream
from .download import VIDEO_HEADERS, send_file
from .endpoint_helpers import answer, body_receiver, event_stream, json_body
from .images import Requester
from .jobs import EntryPoint, Submission
from .openapi import EVENTS, content, describe, one_of, parameter, query_parameters
from .schema import (
    AssetAnswer,
    BlobAnswer,
    CancelAnswer,
    GenerateRequest,
    HealthAnswer,
    LiveAnswer,
    LoadAnswer,
    LoadRequest,
    LoraAnswer,
    PipelinesAnswer,
    PipelineStatusAnswer,
    SessionAnswer,
    SlotAnswer,
    UploadAnswer,
    VideoFileQuery,
    VideoUploadAnswer,
    VideoUploadQuery,
    parse_query,
)
from .sessions import COOKIE, LIFETIME_S
from .state import app_state
from .store import Kind
from .video_files import CONTENT_TYPES, Variant

api = Blueprint("api", __name__)

_COUNT = {"type": "integer", "minimum": 1, "maximum": 2**32 - 1}
_UNUSED_HEADER = {
    "X-Unused-Fields": {
        "schema": {"type": "string"},
        "description": "Fields of the request that the pipeline ignores, separated by commas.",
    }
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_EVENT_STREAM = """Server-sent events: `progress` after each chunk, finally one of `complete`, `cancelled` and `error`.

Each event has the lines `id`, `event` and `data` (JSON) and ends with an empty line. Comments (`: keep-alive`) are sent
during long silences. docs/api.md lists the keys of each event."""


@api.post("/api/v1/generate")
@api.post("/api/v1/batch")
@describe(
    body=content(JSON, GenerateRequest),
    answers={200: content(EVENTS, description=_EVENT_STREAM) | {"headers": _UNUSED_HEADER}},
    errors=(400, 404, 408, 409, 413, 422, 503, 507),
    models=(GenerateRequest,),
)
async def generate() -> Response:
    """Generate a video chunk by chunk, with an event after each chunk."""
    state = app_state()
    client = client_of_request()
    async with json_body(GenerateRequest) as body:
        will_stream(request)
        generation_request = await state.loads.apply_defaults(client, body)
        submitted = await state.jobs.submit(Submission(client, None, generation_request, EntryPoint.GENERATE))
    record = submitted.generation.record
    response = await event_stream(record.id, shows_queue=False)
    if record.unused:
        response.headers["X-Unused-Fields"] = ", ".join(record.unused)
    return response


@api.post("/api/v1/generate/cancel")
@api.post("/api/v1/batch/cancel")
@describe(answers={200: content(JSON, CancelAnswer)}, models=(CancelAnswer,))
async def cancel() -> Response:
    """Cancel all generations of the client that came by /generate."""
    is_running = await app_state().jobs.cancel_streams(client_of_request())
    return answer(CancelAnswer(status="cancelling" if is_running else "idle"))


@api.post("/api/v1/generate/upload")
@api.post("/api/v1/batch/upload")
@describe(
    parameters=(
        parameter("X-Video-Frames", "header", _COUNT, "F; with H and W, the body is raw.", required=False),
        parameter("X-Video-Height", "header", _COUNT, "H", required=False),
        parameter("X-Video-Width", "header", _COUNT, "W", required=False),
        parameter("X-Video-Channels", "header", {"enum": [1, 3, 4], "default": 3}, "C", required=False),
        *query_parameters(VideoUploadQuery),
    ),
    body={
        "content": dict.fromkeys((BINARY, *VIDEO_TYPES), _BYTES),
        "description": "Raw uint8 bytes in THWC order with X-Video-* headers, or a video file with its Content-Type.",
    },
    answers={
        200: {
            "content": {JSON: {"schema": one_of(UploadAnswer, VideoUploadAnswer)}},
            "description": "The video is stored.",
        }
    },
    errors=(400, 408, 413, 422, 507),
    models=(UploadAnswer, VideoUploadAnswer),
)
async def upload() -> Response:
    """Upload an input video, raw or as a video file, which is decoded."""
    state = app_state()
    limit_bytes = state.settings.upload_bytes
    if is_video_file(request):
        query = parse_query(VideoUploadQuery, request.args)
        async with body_receiver().spooled(limit_bytes) as spool:
            will_stream(request)
            video = await state.video_decoder.decode(spool, query, limit_bytes)
        uploaded = VideoUploadAnswer(
            input_path=video.file.name,
            num_frames=video.shape.frames,
            shape=list(video.shape),
            fps=video.fps,
            poster=video.poster,
        )
        metrics.UPLOADED_BYTES.labels(video.file.kind).inc(spool.written_bytes)
        return answer(uploaded)
    shape = video_shape(request.headers)
    file = await body_receiver().video(shape, limit_bytes)
    metrics.UPLOADED_BYTES.labels(Kind.VIDEO).inc(file.size_bytes)
    return answer(UploadAnswer(input_path=file.name, num_frames=shape.frames, shape=list(shape)))


@api.post("/api/v1/generate/upload-data")
@api.post("/api/v1/batch/upload-data")
@describe(
    body=content(BINARY, description="Packed arrays, which chunk_specs reference by offset and shape."),
    answers={200: content(JSON, BlobAnswer)},
    errors=(400, 408, 413, 507),
    models=(BlobAnswer,),
)
async def upload_data() -> Response:
    """Upload a blob of packed arrays."""
    file = await body_receiver().blob(Kind.BLOB, app_state().settings.blob_bytes)
    metrics.UPLOADED_BYTES.labels(Kind.BLOB).inc(file.size_bytes)
    return answer(BlobAnswer(data_blob_path=file.name, size_bytes=file.size_bytes))


@api.post("/api/v1/assets")
@describe(
    body=content(BINARY, description="A PNG, JPEG or WebP image."),
    answers={200: content(JSON, AssetAnswer)},
    errors=(400, 408, 413, 507),
    models=(AssetAnswer,),
)
async def upload_asset() -> Response:
    """Upload an image for a first frame, a last frame or a reference."""
    state = app_state()
    requester = Requester(client_of_request())
    file = await body_receiver().blob(
        Kind.ASSET, state.settings.asset_bytes, check=lambda path: state.decoder.shape(path, requester)
    )
    metrics.UPLOADED_BYTES.labels(Kind.ASSET).inc(file.size_bytes)
    return answer(AssetAnswer(path=file.name))


@api.get("/api/v1/generate/download")
@api.get("/api/v1/batch/download")
@describe(
    parameters=(
        parameter("path", "query", {"type": "string"}, "An output_path.", required=True),
        *query_parameters(VideoFileQuery),
        parameter("Range", "header", {"type": "string"}, "A range of bytes.", required=False),
        parameter("If-Range", "header", {"type": "string"}, "The range applies only to this ETag.", required=False),
        parameter("If-Match", "header", {"type": "string"}, "The file must have one of these ETags.", required=False),
        parameter("If-None-Match", "header", {"type": "string"}, "ETags that the client already has.", required=False),
    ),
    answers={
        200: {
            "content": dict.fromkeys((BINARY, *CONTENT_TYPES.values()), _BYTES),
            "description": "20-byte header and raw uint8 THWC, or the requested format.",
            "headers": VIDEO_HEADERS,
        },
        206: content(BINARY, description="The requested range.") | {"headers": VIDEO_HEADERS},
        304: {"description": "The client already has the file."},
    },
    errors=(404, 412, 416, 422, 503, 507),
    is_media=True,
)
async def download() -> Response:
    """Download an output video, raw or as a video file, which is encoded when it is first asked for."""
    name = request.args.get("path")
    if not name:
        raise InvalidField("path: missing", "path")
    state = app_state()
    if not request.args.get("format"):
        output = await state.blobs.find(name, Kind.OUTPUT, owner=client_of_request(), field="path")
        return await send_file(output, request, state.blobs, state.downloads)
    file = state.store.find(name, Kind.OUTPUT, owner=client_of_request(), field="path")
    assert file.shape is not None
    query = parse_query(VideoFileQuery, request.args)
    variant = Variant.of(query, file.shape, file.fps or DEFAULT_FPS)
    will_stream(request)
    return await send_file(
        await state.video_files.file(file, variant),
        request,
        state.blobs,
        state.downloads,
        content_type=variant.content_type,
        file_name=f"{file.name}.{variant.format}",
    )


@api.post("/api/v1/session")
@describe(answers={200: content(JSON, SessionAnswer)}, models=(SessionAnswer,))
async def start_session() -> Response:
    """Set a cookie with which a browser can read media, as `<video>` and `<img>` send no key."""
    key = key_of_request()
    if key is None:
        return answer(SessionAnswer(expires_at=None))
    session = app_state().sessions.start(key)
    response = answer(SessionAnswer(expires_at=session.expires_at))
    response.headers["Cache-Control"] = "no-store"
    _set_cookie(response, session.token, max_age=LIFETIME_S)
    return response


@api.delete("/api/v1/session")
@describe(answers={204: {"description": "The session has ended, and the cookie is removed."}})
async def end_session() -> Response:
    """End the session whose cookie the request has."""
    for token in request.cookies.getlist(COOKIE):
        app_state().sessions.end(token)
    response = Response(status=204)
    _set_cookie(response, "", max_age=0)
    return response


def _set_cookie(response: Response, value: str, *, max_age: float) -> None:
    """Set the cookie without a path: browsers then take the folder of this endpoint, with a proxy's prefix, if any."""
    response.set_cookie(
        COOKIE, value, max_age=int(max_age), path=None, httponly=True, samesite="Strict", secure=came_by_tls(request)
    )


@api.delete("/api/v1/files/<name>")
@describe(
    parameters=(parameter("name", "path", {"type": "string"}, "A name from an upload or an event.", required=True),),
    answers={204: {"description": "The file was deleted."}},
    errors=(404, 409),
)
async def delete_file(name: str) -> Response:
    """Delete one of the client's uploads, assets or outputs."""
    await app_state().blobs.delete(name, client_of_request())
    return Response(status=204)


@api.get("/api/v1/pipelines")
@describe(answers={200: content(JSON, PipelinesAnswer)}, errors=(503,), models=(PipelinesAnswer,))
async def pipelines() -> Response:
    """List the pipelines, with their states and features."""
    shown = []
    for name, pipeline in (await app_state().loads.pipelines()).items():
        entry = {"id": name} if pipeline.spec is None else pipeline.spec.to_dict()
        shown.append(entry | {"loaded": pipeline.loaded, "state": pipeline.state, "reason": pipeline.reason})
    return answer(PipelinesAnswer.model_validate({"pipelines": shown}))


@api.post("/api/v1/pipeline/load")
@describe(
    body=content(JSON, LoadRequest),
    answers={200: content(JSON, LoadAnswer)},
    errors=(400, 404, 408, 413, 422, 503),
    models=(LoadRequest, LoadAnswer),
)
async def load_pipeline() -> Response:
    """Load pipelines. This is optional: generating loads a pipeline if necessary."""
    async with json_body(LoadRequest) as body:
        load = await app_state().loads.start(client_of_request(), body)
    status = "loaded" if load.status == "loaded" else "loading"
    return answer(LoadAnswer(status=status, ignored=list(load.ignored)))


@api.get("/api/v1/pipeline/status")
@describe(answers={200: content(JSON, PipelineStatusAnswer)}, models=(PipelineStatusAnswer,))
async def pipeline_status() -> Response:
    """Get the state of the client's last load."""
    state, client = app_state(), client_of_request()
    load = state.loads.last(client)
    loras = (
        state.loads.default_lora_scales(client, load.pipeline_id)
        if load.status == "loaded" and load.pipeline_id
        else {}
    )
    return answer(
        PipelineStatusAnswer(
            status=load.status,
            pipeline_id=load.pipeline_id,
            load_params=load.load_params,
            loaded_lora_adapters=[LoraAnswer(path=path, scale=scale) for path, scale in loras.items()],
            error=load.error,
        )
    )


@api.get("/health")
@describe(
    answers={200: content(JSON, HealthAnswer), 503: content(JSON, HealthAnswer, "No generation is possible now.")},
    models=(HealthAnswer,),
)
async def health() -> tuple[Response, int]:
    """Report whether a generation is running or would be accepted, and which pipelines have failed."""
    state = app_state()
    found = await state.health()
    health_answer = HealthAnswer(
        status=found.status,
        generating=state.jobs.is_generating,
        degraded=list(found.degraded),
        slots=[SlotAnswer(name=name, state=slot) for name, slot in found.slots.items()],
    )
    return answer(health_answer), 200 if found.status == "healthy" else 503


@api.get("/health/ready")
@describe(
    answers={200: content(JSON, HealthAnswer), 503: content(JSON, HealthAnswer, "No generation is possible now.")},
    models=(HealthAnswer,),
)
async def ready() -> tuple[Response, int]:
    """Readiness probe, the same as /health."""
    return await health()


@api.get("/health/live")
@describe(answers={200: content(JSON, LiveAnswer)}, models=(LiveAnswer,))
async def live() -> Response:
    """Liveness probe: the server answers requests, whatever state Triton is in."""
    return answer(LiveAnswer(status="live"))


@api.get("/metrics")
@describe(answers={200: content("text/plain", description="Metrics in the Prometheus text format.")})
async def prometheus() -> Response:
    """Metrics for Prometheus."""
    return Response(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
