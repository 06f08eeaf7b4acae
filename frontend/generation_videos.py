"""The video files of a generation: /api/v1/generations/{id}/video.mp4 and others."""

from collections.abc import Awaitable, Callable

from quart import Blueprint, Response, request

from filmstrip.errors import NotReady
from filmstrip.geometry import DEFAULT_FPS

from .auth import client_of_request
from .connection import on_close, will_stream
from .download import counted, send_file
from .generation_schema import ID_PATTERN
from .openapi import content, describe, parameter, query_parameters
from .schema import VideoFormat, VideoOptions, parse_query
from .state import app_state
from .video_files import CONTENT_TYPES, CompleteOutput, FrameSource, Variant

generation_videos = Blueprint("generation_videos", __name__)

_ROOT = "/api/v1/generations"
_ID_PARAMETER = parameter("id", "path", {"type": "string", "pattern": f"^{ID_PATTERN}$"}, "The id.", required=True)
_OPTIONS = {
    "fps": "Frames per second.",
    "crf": "Quality of mp4 and webm; 0 is best.",
    "scale": "How many times to enlarge the frames.",
    "frame": "With png: one frame, by its index.",
}
_FILES = {
    "video.mp4": (VideoFormat.MP4, "Download the video as MP4. While it is being generated, it grows."),
    "video.webm": (VideoFormat.WEBM, "Download the video as WebM."),
    "video.gif": (VideoFormat.GIF, "Download the video as GIF."),
    "poster.png": (VideoFormat.PNG, "Download the first frame."),
    "contact-sheet.png": (VideoFormat.PNG, "Download up to 24 frames in one image."),
}


def _add(name: str, file_format: VideoFormat, summary: str) -> None:
    is_poster = name == "poster.png"

    async def view(id: str) -> Response:
        options = parse_query(VideoOptions, request.args)
        if is_poster and options.frame is None:
            options.frame = 0
        return await _send(id, name, file_format, options)

    view.__doc__ = summary
    view.__name__ = f"get_{name.replace('.', '_').replace('-', '_')}"
    described = describe(
        parameters=(_ID_PARAMETER, *query_parameters(VideoOptions, _OPTIONS)),
        answers={
            200: content(CONTENT_TYPES[file_format], description="The file."),
            206: content(CONTENT_TYPES[file_format], description="The requested range of a finished video."),
            304: {"description": "The client already has the file."},
        },
        errors=(404, 409, 412, 416, 422, 503, 507),
    )
    marked: Callable[[str], Awaitable[Response]] = described(view)
    generation_videos.get(f"{_ROOT}/<id>/{name}")(marked)


for _name, (_format, _summary) in _FILES.items():
    _add(_name, _format, _summary)


async def _send(id: str, name: str, file_format: VideoFormat, options: VideoOptions) -> Response:
    state = app_state()
    source = await state.jobs.frame_source(client_of_request(), id)
    variant = Variant.of(file_format, options, source.shape, source.fps or DEFAULT_FPS)
    if not isinstance(source, CompleteOutput):
        if file_format is not VideoFormat.MP4:
            raise NotReady(f"id: {name} is made when the generation has ended; video.mp4 can be watched now", "id")
        return _grow(source, variant)
    will_stream(request)
    return await send_file(
        await state.video_files.file(source.file, variant),
        request,
        state.blobs,
        state.downloads,
        content_type=variant.content_type,
        file_name=f"{id}.{file_format}",
    )


def _grow(source: FrameSource, variant: Variant) -> Response:
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
