"""Downloads of whole files or ranges, conditional (RFC 9110), streamed without a time limit."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from quart import Request, Response
from werkzeug.datastructures import Headers
from werkzeug.http import parse_etags

from filmstrip.errors import PreconditionFailed, RangeNotSatisfiable, TooManyDownloads
from filmstrip.wire import VideoShape

from . import metrics
from .blobs import Blob, Blobs
from .bodies import BINARY
from .connection import on_close

_RANGE = re.compile(r"([0-9]+)-([0-9]*)|-([0-9]+)", re.ASCII)
_MAX_DIGITS = 20
_DIMENSION = {"type": "integer", "minimum": 1, "maximum": 2**32 - 1}
VIDEO_HEADERS = {
    f"X-Video-{side}": {"schema": _DIMENSION, "description": side} for side in ("Frames", "Height", "Width", "Channels")
}
"""How the API document describes `video_headers`."""


def video_headers(shape: VideoShape) -> dict[str, str]:
    """The X-Video-* headers of a video."""
    return {
        "X-Video-Frames": str(shape.frames),
        "X-Video-Height": str(shape.height),
        "X-Video-Width": str(shape.width),
        "X-Video-Channels": str(shape.channels),
    }


class Downloads:
    """Limits the downloads that run at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count one more download until the context ends.

        Raises:
            TooManyDownloads: the limit is reached.
        """
        if self._running >= self._limit:
            raise TooManyDownloads(f"the limit of {self._limit} simultaneous downloads is reached")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


async def send_file(
    file: Blob,
    request: Request,
    blobs: Blobs,
    downloads: Downloads,
    *,
    content_type: str = BINARY,
    file_name: str = "",
) -> Response:
    """The response for a stored video: the file, a range of it, or 304 if the client already has it.

    Args:
        file: the file.
        request: the request that it answers.
        blobs: where it is.
        downloads: the limit that it counts towards.
        content_type: its media type.
        file_name: the name under which a client should save it; empty for none.

    Preconditions are checked in the order of RFC 9110, section 13.2.2. Those by date do not apply, as there is no
    Last-Modified.

    Raises:
        PreconditionFailed: `If-Match` names another file.
        RangeNotSatisfiable: the range lies outside the file.
        TooManyDownloads: the limit of simultaneous downloads is reached.
        UnknownPath: the file has just been removed.
    """
    etag = f'"{file.name}"'
    if "If-Match" in request.headers and not names_entity_tag(request.headers, "If-Match", file.name, weak=False):
        raise PreconditionFailed("If-Match: the file does not match", "If-Match")
    response = Response(b"", content_type=content_type)
    response.headers.update({"Accept-Ranges": "bytes", "ETag": etag})
    if file_name:
        response.headers["Content-Disposition"] = f'inline; filename="{file_name}"'
    if names_entity_tag(request.headers, "If-None-Match", file.name, weak=True):
        response.status_code = 304
        for name in ("Content-Type", "Content-Length", "Content-Disposition"):
            response.headers.pop(name, None)
        return response
    span = _span(request, file.size_bytes, etag) if request.method == "GET" else None
    start, stop = span or (0, file.size_bytes)
    response.headers["Content-Length"] = str(stop - start)
    if file.shape is not None:
        response.headers.update(video_headers(file.shape))
    if span:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    if request.method != "HEAD":
        closing = on_close(request)
        closing.enter_context(downloads.running())
        pieces = await closing.enter_async_context(blobs.open_range(file, start, stop))
        response.response = response.iterable_body_class(counted(pieces))
    return response


def names_entity_tag(headers: Headers, header: str, name: str, *, weak: bool) -> bool:
    """Whether a header of entity tags contains the tag `name` or `*`; a weak tag counts only if `weak`."""
    tags = parse_etags(", ".join(headers.getlist(header)).strip())
    return tags.star_tag or tags.is_strong(name) or (weak and tags.is_weak(name))


def _span(request: Request, size_bytes: int, etag: str) -> tuple[int, int] | None:
    """Start and stop of the requested range; None for the whole file, which also answers multiple ranges.

    Raises:
        RangeNotSatisfiable: the file has no byte of any range.
    """
    headers = request.headers.getlist("Range")
    if len(headers) != 1 or any(condition != etag for condition in request.headers.getlist("If-Range")):
        return None
    ranges = _parse_ranges(headers[0], size_bytes)
    if ranges is None:
        return None
    satisfiable = [(start, stop) for start, stop in ranges if start < stop]
    if not satisfiable:
        error = RangeNotSatisfiable(f"the file has {size_bytes} bytes, requested: {headers[0][:80]!a}", "Range")
        error.headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise error
    return satisfiable[0] if len(ranges) == 1 else None


def _parse_ranges(text: str, size_bytes: int) -> list[tuple[int, int]] | None:
    """Start and stop of each range within the file, empty for one outside of it; None if `text` is malformed.

    Werkzeug's parser takes `-0`, long numbers and overlapping ranges for malformed.
    """
    unit, _, ranges = text.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    found = []
    for part in filter(None, (part.strip() for part in ranges.split(","))):
        spec = _RANGE.fullmatch(part)
        if spec is None:
            return None
        first, last, suffix = (_number(digits) if digits else None for digits in spec.groups())
        if first is None:
            found.append((max(size_bytes - (suffix or 0), 0), size_bytes))
        elif last is not None and last < first:
            return None
        else:
            found.append((first, size_bytes if last is None else min(last + 1, size_bytes)))
    return found or None


def _number(digits: str) -> int:
    """The number, or a huge one: Python refuses to parse more than a few thousand digits."""
    return int(digits) if len(digits) < _MAX_DIGITS else 10**_MAX_DIGITS


async def counted(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a download, counted in the metrics."""
    async for piece in pieces:
        metrics.DOWNLOADED_BYTES.inc(len(piece))
        yield piece
        del piece  # otherwise it is held together with the next one
