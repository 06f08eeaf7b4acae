"""Downloads: whole or in ranges, streamed, without a time limit."""

import os
from collections.abc import AsyncIterator

from quart import Request, Response

from filmstrip.errors import RangeNotSatisfiable, UnknownPath
from filmstrip.geometry import VideoShape
from frontend import metrics
from frontend.connection import on_close
from frontend.store import Store
from frontend.stored import StoredFile, open_stored
from frontend.tasks import in_thread

_PIECE_BYTES = 4 * 2**20  # smaller ones make more trips to a thread: 1 MiB costs a fifth of the speed


def video_headers(shape: VideoShape) -> dict[str, str]:
    """The X-Video-* headers of a video."""
    return {
        "X-Video-Frames": str(shape.frames),
        "X-Video-Height": str(shape.height),
        "X-Video-Width": str(shape.width),
        "X-Video-Channels": str(shape.channels),
    }


def send_file(file: StoredFile, request: Request, store: Store) -> Response:
    """Answer with a stored video, or with the range of its bytes that is asked for.

    Raises:
        RangeNotSatisfiable: the range lies outside the file.
    """
    etag = f'"{file.name}"'
    span = _range(request, file.size_bytes, etag)
    start, stop = span or (0, file.size_bytes)
    closing = on_close(request)
    closing.enter_context(store.holding(file))
    try:
        fd = open_stored(file.path)
    except FileNotFoundError:
        raise UnknownPath(f"path: {file.name} is gone", "path") from None
    closing.callback(os.close, fd)
    body = b"" if request.method == "HEAD" else _pieces(fd, start, stop)
    response = Response(body, 206 if span else 200, content_type="application/octet-stream")
    response.headers.update({"Accept-Ranges": "bytes", "Content-Length": str(stop - start), "ETag": etag})
    if file.shape is not None:
        response.headers.update(video_headers(file.shape))
    if span:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    return response


def _range(request: Request, size_bytes: int, etag: str) -> tuple[int, int] | None:
    """Start and stop of the one range asked for; None for the whole file, also when several are asked for."""
    wanted = request.range
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return None
    if request.headers.get("If-Range", etag) != etag:
        return None
    first, _ = wanted.ranges[0]
    span = wanted.range_for_length(size_bytes) if first >= -size_bytes else (0, size_bytes)
    if span is None:
        error = RangeNotSatisfiable(f"the file has {size_bytes} bytes, asked for {wanted.to_header()[:80]}", "Range")
        error.headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise error
    return span


async def _pieces(fd: int, start: int, stop: int) -> AsyncIterator[bytes]:
    while start < stop:
        piece = await in_thread(os.pread, fd, min(_PIECE_BYTES, stop - start), start)
        if not piece:
            return  # truncated by hand: the connection closes short of Content-Length
        start += len(piece)
        metrics.DOWNLOADED_BYTES.inc(len(piece))
        yield piece
