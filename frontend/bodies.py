"""Request bodies: refused unread, parsed as JSON within a memory budget, or streamed into the store."""

import asyncio
import contextlib
import ctypes
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel
from quart import Request
from werkzeug.datastructures import Headers

from filmstrip.errors import (
    BadHeader,
    EmptyBody,
    InvalidField,
    Overloaded,
    SizeMismatch,
    TooLarge,
    UnsupportedMediaType,
)
from filmstrip.wire import CHANNELS, VideoShape, header_holds, pack_video_header

from .blobs import Blob, BlobDraft, Blobs
from .connection import BoundedBody, Pace
from .forms import FORM, Form, json_object, looks_like_json, receive_form
from .schema import parse
from .store import Draft, Kind, Store
from .tasks import FairSemaphore, in_thread

BINARY = "application/octet-stream"
JSON = "application/json"

VIDEO_TYPES = ("video/mp4", "video/quicktime", "video/webm", "video/x-matroska")

MAX_VALUES = 500_000  # of a JSON body; this many take about half a second to parse
_SMALL_BYTES = 64 * 1024  # JSON bodies up to this size have a reserve of their own
_SHARE_FOR_SMALL = 1 / 16
_PARSERS = 1  # Python parses one at a time anyway, and the event loop gets its turn in between
_PIECE_BYTES = 2**20
_TRIM_S = 1.0
_TRIM_AGAIN_S = 8.0

_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)
_BATCH_BYTES = 2**20  # written at once, because each trip to a thread has a cost
_BATCH_PIECES = 1024

ModelT = TypeVar("ModelT", bound=BaseModel)


def refuse_wrapped(request: Request, accepted: Collection[str]) -> None:
    """Refuse a compressed body or a form, whose bytes are not those that the client means to send.

    Content-Type is otherwise ignored: `curl -d` and `--data-binary` send `application/x-www-form-urlencoded`.

    Args:
        request: the request to check.
        accepted: the media types that the endpoint documents; empty if it takes no body.

    Raises:
        UnsupportedMediaType: its Content-Encoding is not identity, or it is a form and the endpoint takes none.
    """
    codings = [coding.strip() for coding in ",".join(request.headers.getlist("Content-Encoding")).split(",")]
    for coding in codings:
        if coding.lower() not in ("", "identity"):
            error = UnsupportedMediaType(
                f"Content-Encoding {coding[:40]!a} is not supported; send the body uncompressed", "Content-Encoding"
            )
            error.headers = {"Accept-Encoding": "identity"}
            raise error
    for content_type in request.headers.getlist("Content-Type"):
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type.startswith("multipart/") and media_type not in accepted:
            raise UnsupportedMediaType(
                f"{media_type[:40]!a} is not supported; {_what_to_send(accepted)}", "Content-Type"
            )


def _what_to_send(accepted: Collection[str]) -> str:
    if FORM in accepted:
        return f"send JSON or {FORM}"
    if JSON in accepted:
        return "send JSON as the body, not a form"
    if accepted:
        return "send the raw bytes as the body, not a form (with curl: --data-binary @FILE, not -F)"
    return "this endpoint takes no body"


class JsonBodies:
    """Reads and parses JSON bodies within a memory budget, without blocking the event loop.

    Args:
        limit_bytes: maximum size of one body.
        total_bytes: maximum size of all bodies that are being received, parsed or checked.
    """

    def __init__(self, limit_bytes: int, total_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._total_bytes = total_bytes
        self._held: Counter[str] = Counter()
        self._parsing = FairSemaphore(_PARSERS)
        self._trim: asyncio.TimerHandle | None = None
        self._trim_again: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def read(
        self, model: type[ModelT], body: BoundedBody, *, content_length: int | None, client: str, pace: Pace
    ) -> AsyncIterator[ModelT]:
        """The parsed body; it counts towards the budget until the context ends, as its strings are held until then.

        Raises:
            TooLarge: it is larger than the limit.
            InvalidField: it has more than `MAX_VALUES` values, or see `parse`.
            Overloaded: all bodies together, or those of this client, would exceed the budget.
            SlowBody: it arrives slower than `pace` allows.
            BadJson: see `parse`.
        """
        with self.reserving(client) as reservation:
            reservation.check(content_length or 0)
            data = bytearray()
            try:
                async for piece in body.pieces(pace):
                    reservation.grow(len(data) + len(piece))
                    data += piece
            except BaseException:
                data.clear()  # otherwise the traceback keeps it while the refused rest is read
                raise
            parsed = await self.parse(model, data, reservation)
            data = bytearray()
            yield parsed

    async def parse(self, model: type[ModelT], data: bytearray, reservation: "Reservation") -> ModelT:
        """Parse a body, one at a time.

        Raises:
            InvalidField: see `read`.
            BadJson: see `schema.parse`.
        """
        async with self._parsing.turn(reservation.client, reservation):
            return await in_thread(_parse, model, data)

    async def parse_form(
        self, model: type[ModelT], fields: Sequence[tuple[str, str]], texts: Collection[str], reservation: "Reservation"
    ) -> ModelT:
        """Parse the fields of a form, one form at a time; see `json_object`.

        Raises:
            InvalidField: see `read`, or a name cannot be understood.
            TooLarge: the fields as JSON are larger than one body may be.
        """
        async with self._parsing.turn(reservation.client, reservation):
            return await in_thread(_parse_form, model, fields, texts, self._limit_bytes)

    @contextlib.contextmanager
    def reserving(self, client: str) -> Iterator["Reservation"]:
        """A part of the budget, for one body, until the context ends."""
        reservation = Reservation(self, client, self._limit_bytes)
        try:
            yield reservation
        finally:
            self.add(client, -reservation.num_bytes)
            if reservation.num_bytes > _SMALL_BYTES:
                self._trim_heap_soon()

    def _trim_heap_soon(self) -> None:
        """Return the memory of large bodies to the system, soon and once more after a quiet while.

        The C library's heap keeps it otherwise. What still arrives of refused bodies passes through the heap, too.
        """
        loop = asyncio.get_running_loop()
        if self._trim is None:
            self._trim = loop.call_later(_TRIM_S, self._trim_heap)
        if self._trim_again is not None:
            self._trim_again.cancel()
        self._trim_again = loop.call_later(_TRIM_AGAIN_S, self._trim_heap)

    def _trim_heap(self) -> None:
        self._trim = None
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if malloc_trim is not None:
            asyncio.get_running_loop().run_in_executor(None, malloc_trim, 0)

    def check(self, client: str, more_bytes: int, num_bytes: int) -> None:
        """Check that `more_bytes` fit for a body that then has `num_bytes`.

        Raises:
            Overloaded: they do not.
        """
        room = self._total_bytes if num_bytes <= _SMALL_BYTES else int(self._total_bytes * (1 - _SHARE_FOR_SMALL))
        if self._held.total() + more_bytes > room:
            raise Overloaded("the server has no memory for another JSON body; try again in a moment")
        if client and self._held[client] + more_bytes > max(room // 2, self._limit_bytes):
            raise Overloaded("your JSON bodies take all the memory that one client may use; try again in a moment")

    def add(self, client: str, more_bytes: int) -> None:
        """Count more bytes as held, or fewer if negative."""
        self._held[client] += more_bytes
        if not self._held[client]:
            del self._held[client]


class Reservation:
    """The part of the budget that one body uses."""

    def __init__(self, bodies: JsonBodies, client: str, limit_bytes: int) -> None:
        self._bodies = bodies
        self._limit_bytes = limit_bytes
        self.client = client
        self.num_bytes = 0

    def check(self, num_bytes: int) -> None:
        """Check that the body may have so many bytes.

        Raises:
            TooLarge: more than one body may have.
            Overloaded: see `JsonBodies.check`.
        """
        if num_bytes > self._limit_bytes:
            raise _too_large(self._limit_bytes)
        self._bodies.check(self.client, num_bytes - self.num_bytes, num_bytes)

    def grow(self, num_bytes: int) -> None:
        """Take the memory for a body of so many bytes; raises as `check` does."""
        self.check(num_bytes)
        self._bodies.add(self.client, num_bytes - self.num_bytes)
        self.num_bytes = num_bytes


def _parse(model: type[ModelT], data: bytearray) -> ModelT:
    if len(data) > MAX_VALUES and count_values(data, MAX_VALUES) > MAX_VALUES:
        raise _too_many_values()
    return parse(model, data)


def _parse_form(
    model: type[ModelT], fields: Sequence[tuple[str, str]], texts: Collection[str], limit_bytes: int
) -> ModelT:
    num_values = sum(count_values(text.encode(), MAX_VALUES) for _, text in fields if looks_like_json(text))
    if num_values > MAX_VALUES:
        raise _too_many_values()
    # A lone surrogate, which JSON can express, is refused when the result is parsed.
    data = json.dumps(json_object(fields, texts=texts), ensure_ascii=False).encode(errors="surrogatepass")
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes)
    return _parse(model, bytearray(data))


def _too_many_values() -> InvalidField:
    return InvalidField(f"the body has more than {MAX_VALUES} keys, values and lists; long strings are fine")


_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_IS_STRUCTURE = np.zeros(256, np.bool_)
_IS_STRUCTURE[list(b",:[{")] = True


def count_values(data: bytes | bytearray, limit: int) -> int:
    """Count the commas, colons and opening brackets outside of strings; stops counting above `limit`.

    The parser holds the GIL for the whole body, for a time that grows with this number. NumPy releases the GIL while it
    counts.
    """
    num_values = 0
    in_string = np.uint8(0)
    backslashes = 0  # at the end of the previous piece
    for start in range(0, len(data), _PIECE_BYTES):
        signs = np.frombuffer(data, np.uint8, min(_PIECE_BYTES, len(data) - start), start)
        quotes = signs == _QUOTE
        is_backslash = signs == _BACKSLASH
        if backslashes or is_backslash.any():
            places = np.arange(len(signs), dtype=np.int32)
            others = np.where(is_backslash, np.int32(-1 - backslashes), places)
            run_lengths = places - np.maximum.accumulate(others)  # of backslashes, up to each position
            quotes[1:] &= run_lengths[:-1] % 2 == 0
            quotes[0] &= backslashes % 2 == 0
            backslashes = int(run_lengths[-1]) if is_backslash[-1] else 0
        strings = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ in_string
        num_values += int(np.count_nonzero(_IS_STRUCTURE[signs] & (strings == 0)))
        in_string = strings[-1]
        if num_values > limit:
            break
    return num_values


def is_video_file(request: Request) -> bool:
    """Whether an upload is a video file, and not raw: X-Video-* headers say that it is raw."""
    is_raw = any(f"X-Video-{side}" in request.headers for side in ("Frames", "Height", "Width"))
    return not is_raw and (request.mimetype.startswith("video/") or bool(request.args.get("format")))


def video_shape(headers: Headers) -> VideoShape:
    """The video shape in the X-Video-* headers.

    Raises:
        BadHeader: one is missing, or is not a number that the 20-byte header can hold.
    """
    frames, height, width = (_count(headers, f"X-Video-{side}") for side in ("Frames", "Height", "Width"))
    channels = _count(headers, "X-Video-Channels", default="3")
    if channels not in CHANNELS:
        raise BadHeader(f"X-Video-Channels must be 1, 3 or 4, got {channels}", "X-Video-Channels")
    return VideoShape(frames, height, width, channels)


def _count(headers: Headers, name: str, default: str | None = None) -> int:
    values = headers.getlist(name)
    text = ", ".join(values) if values else default  # a header sent twice is ambiguous, and so joined it is no number
    if text is None:
        raise BadHeader(f"{name} is missing", name)
    if not _DIGITS.fullmatch(text) or not header_holds(int(text)):
        raise BadHeader(f"{name} must be a whole number from 1 to 4294967295, got {text[:80]!r}", name)
    return int(text)


class BodyReceiver:
    """Receives one request body as a file of `owner`; what is only an input of another file is spooled in the store."""

    def __init__(
        self, blobs: Blobs, spool: Store, owner: str, body: BoundedBody, *, content_length: int | None, pace: Pace
    ) -> None:
        self._blobs = blobs
        self._spool = spool
        self._owner = owner
        self._body = body
        self._content_length = content_length
        self._pace = pace

    async def video(self, shape: VideoShape, limit_bytes: int) -> Blob:
        """Store a video of exactly this shape.

        Raises:
            SizeMismatch: the size of the body differs from the headers.
            TooLarge: the headers announce more than the limit.
        """
        if shape.num_bytes > limit_bytes:
            raise TooLarge(f"a video of {shape.num_bytes} bytes exceeds the limit of {limit_bytes} bytes")
        if self._content_length is not None and self._content_length != shape.num_bytes:
            raise _mismatch(shape, str(self._content_length))
        header = pack_video_header(shape)
        async with await self._blobs.draft(Kind.VIDEO, len(header) + shape.num_bytes, owner=self._owner) as draft:
            await draft.append(header)
            received = await self._receive(draft, shape.num_bytes)
            if received is None:
                raise _mismatch(shape, f"more than {shape.num_bytes}")
            if received != shape.num_bytes:
                raise _mismatch(shape, str(received))
            return await draft.commit()

    async def blob(
        self, kind: Kind, limit_bytes: int, check: Callable[[Path], Awaitable[object]] | None = None
    ) -> Blob:
        """Store opaque bytes, unless `check` raises for the file.

        Raises:
            EmptyBody: the body is empty.
            TooLarge: it is larger than the limit.
        """
        if self._content_length is not None and self._content_length > limit_bytes:
            raise _too_large(limit_bytes)
        async with await self._blobs.draft(kind, self._content_length or 0, owner=self._owner) as draft:
            received = await self._receive(draft, limit_bytes)
            if received is None:
                raise _too_large(limit_bytes)
            if received == 0:
                raise EmptyBody("the body is empty")
            if check is not None:
                await check(draft.path)
            return await draft.commit()

    @contextlib.asynccontextmanager
    async def spooled(self, limit_bytes: int) -> AsyncIterator[Draft]:
        """A file with the body, which counts towards the client's share and is removed when the context ends.

        Raises:
            EmptyBody: the body is empty.
            TooLarge: it is larger than the limit.
        """
        if self._content_length is not None and self._content_length > limit_bytes:
            raise _too_large(limit_bytes)
        with self._spool.draft(Kind.ASSET, self._content_length or 0, owner=self._owner) as draft:  # never in memory
            received = await self._receive(draft, limit_bytes)
            if received is None:
                raise _too_large(limit_bytes)
            if received == 0:
                raise EmptyBody("the body is empty")
            yield draft

    @contextlib.asynccontextmanager
    async def form(
        self, boundary: bytes, *, file_name: str, max_file_bytes: int, count_text: Callable[[int], None]
    ) -> AsyncIterator[tuple[Form, Draft]]:
        """A multipart form, and a file with what was sent as `file_name`; see `spooled` and `receive_form`."""
        with self._spool.draft(Kind.ASSET, 0, owner=self._owner) as draft:
            yield (
                await receive_form(
                    self._body.pieces(self._pace),
                    boundary,
                    file_name=file_name,
                    file_sink=draft,
                    max_file_bytes=max_file_bytes,
                    count_text=count_text,
                ),
                draft,
            )

    async def _receive(self, draft: BlobDraft | Draft, limit_bytes: int) -> int | None:
        """Append the body to the draft; returns its size in bytes, or None if it exceeds the limit."""
        received = 0
        batch: list[bytes] = []
        batch_bytes = 0
        async for piece in self._body.pieces(self._pace):
            received += len(piece)
            if received > limit_bytes:
                return None
            batch.append(piece)
            batch_bytes += len(piece)
            if batch_bytes >= _BATCH_BYTES or len(batch) == _BATCH_PIECES:
                await draft.append(*batch)
                batch, batch_bytes = [], 0
        await draft.append(*batch)
        return received


def _mismatch(shape: VideoShape, received: str) -> SizeMismatch:
    dimensions = " x ".join(map(str, shape))
    return SizeMismatch(f"the headers announce {dimensions} = {shape.num_bytes} bytes, the body has {received}")


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body exceeds the limit of {limit_bytes} bytes")
