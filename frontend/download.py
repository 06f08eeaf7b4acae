"""Downloads: whole or in ranges, conditional as RFC 9110 says, streamed, without a time limit."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from quart import Request, Response
from werkzeug.datastructures import Headers
from werkzeug.http import parse_etags

from filmstrip.errors import PreconditionFailed, RangeNotSatisfiable, TooManyDownloads, UnknownPath
from filmstrip.wire import VideoShape

from . import metrics
from .bodies import BINARY
from .connection import on_close
from .store import Store, StoredFile, open_stored
from .tasks import in_thread

_PIECE_BYTES = 256 * 2**10  # what a reader that has stopped holds; smaller pieces cost speed
_RANGE = re.compile(r"([0-9]+)-([0-9]*)|-([0-9]+)", re.ASCII)
_MAX_DIGITS = 20


def video_headers(shape: VideoShape) -> dict[str, str]:
    """The X-Video-* headers of a video."""
    return {
        "X-Video-Frames": str(shape.frames),
        "X-Video-Height": str(shape.height),
        "X-Video-Width": str(shape.width),
        "X-Video-Channels": str(shape.channels),
    }


class Downloads:
    """The downloads that run, of which there are at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """While it is open, one of them runs.

        Raises:
            TooManyDownloads: the limit is reached.
        """
        if self._running >= self._limit:
            raise TooManyDownloads(f"{self._running} downloads run, as many as the server serves at once")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def send_file(file: StoredFile, request: Request, store: Store, downloads: Downloads) -> Response:
    """Answer with a stored video, with the range of its bytes that is asked for, or that the client has it already.

    Preconditions come in the order of RFC 9110, section 13.2.2. There is no Last-Modified: those by date don't apply.

    Raises:
        PreconditionFailed: the file is not the one that `If-Match` names.
        RangeNotSatisfiable: the range lies outside the file.
        TooManyDownloads: as many run as may run at once.
        UnknownPath: the file has just been removed.
    """
    etag = f'"{file.name}"'
    if "If-Match" in request.headers and not names_entity_tag(request.headers, "If-Match", file.name, weak=False):
        raise PreconditionFailed("If-Match: the file is another one", "If-Match")
    response = Response(b"", content_type=BINARY)
    response.headers.update({"Accept-Ranges": "bytes", "ETag": etag})
    if names_entity_tag(request.headers, "If-None-Match", file.name, weak=True):
        response.status_code = 304
        del response.headers["Content-Type"], response.headers["Content-Length"]
        return response
    span = _span(request, file.size_bytes, etag) if request.method == "GET" else None
    start, stop = span or (0, file.size_bytes)
    response.headers["Content-Length"] = str(stop - start)
    if file.shape is not None:
        response.headers.update(video_headers(file.shape))
    if span:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    if request.method == "GET":
        closing = on_close(request)
        closing.enter_context(downloads.one_more())
        closing.enter_context(store.holding(file))
        try:
            fd = open_stored(file.path)
        except FileNotFoundError:
            raise UnknownPath(f"path: {file.name} is gone", "path") from None
        closing.callback(os.close, fd)
        response.response = response.iterable_body_class(_pieces(fd, start, stop))
    return response


def names_entity_tag(headers: Headers, header: str, name: str, *, weak: bool) -> bool:
    """Whether a header of entity tags has the tag `name` or `*`; as a weak tag it counts only where `weak`."""
    tags = parse_etags(", ".join(headers.getlist(header)).strip())
    return tags.star_tag or tags.is_strong(name) or (weak and tags.is_weak(name))


def _span(request: Request, size_bytes: int, etag: str) -> tuple[int, int] | None:
    """Start and stop of the one range asked for; None for the whole file, also when several are asked for.

    Raises:
        RangeNotSatisfiable: the file has no byte of any of them.
    """
    given = request.headers.getlist("Range")
    if len(given) != 1 or any(condition != etag for condition in request.headers.getlist("If-Range")):
        return None
    ranges = _parse_ranges(given[0], size_bytes)
    if ranges is None:
        return None
    satisfiable = [(start, stop) for start, stop in ranges if start < stop]
    if not satisfiable:
        error = RangeNotSatisfiable(f"the file has {size_bytes} bytes, asked for {given[0][:80]!a}", "Range")
        error.headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise error
    return satisfiable[0] if len(ranges) == 1 else None


def _parse_ranges(text: str, size_bytes: int) -> list[tuple[int, int]] | None:
    """Start and stop of each range within a file, empty where it lies outside; None where it is not a set of ranges.

    werkzeug's parser takes `-0`, long numbers and ranges that overlap for malformed.
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
    """The number, or a huge one: Python reads no more than some thousand digits."""
    return int(digits) if len(digits) < _MAX_DIGITS else 10**_MAX_DIGITS


async def _pieces(fd: int, start: int, stop: int) -> AsyncIterator[bytes]:
    while start < stop:
        size = min(_PIECE_BYTES, stop - start)
        piece = _read_cached(fd, size, start) or await in_thread(os.pread, fd, size, start)
        if not piece:
            return  # truncated by hand: the connection closes short of Content-Length
        start += len(piece)
        metrics.DOWNLOADED_BYTES.inc(len(piece))
        yield piece
        del piece  # else it is held beside the next one


def _read_cached(fd: int, size: int, offset: int) -> bytes | None:
    """What the kernel has in memory there; None where it would have to wait for the disk."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # nothing is cached, or the file system can't tell
        return None
    return bytes(memoryview(buffer)[:count])
