"""Request bodies on their way to the store: streamed, counted, and refused before they are whole."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from werkzeug.datastructures import Headers

from filmstrip.errors import BadHeader, EmptyBody, SizeMismatch, TooLarge
from filmstrip.wire import VideoShape, header_holds, pack_video_header

from .connection import BoundedBody, Pace
from .store import Draft, Store
from .stored import Kind, StoredFile

_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)
CHANNELS = (1, 3, 4)
_BATCH_BYTES = 2**20  # written at once: going to a thread and back has its price
_BATCH_PIECES = 1024


def video_shape(headers: Headers) -> VideoShape:
    """The shape that the X-Video-* headers give.

    Raises:
        BadHeader: one is missing or is not a count that the 20-byte header can hold.
    """
    frames, height, width = (_count(headers, f"X-Video-{side}") for side in ("Frames", "Height", "Width"))
    channels = _count(headers, "X-Video-Channels", default="3")
    if channels not in CHANNELS:
        raise BadHeader(f"X-Video-Channels must be 1, 3 or 4, got {channels}", "X-Video-Channels")
    return VideoShape(frames, height, width, channels)


def _count(headers: Headers, name: str, default: str | None = None) -> int:
    given = headers.getlist(name)
    text = ", ".join(given) if given else default  # given twice they are no number: which one would it be?
    if text is None:
        raise BadHeader(f"{name} is missing", name)
    if not _DIGITS.fullmatch(text) or not header_holds(int(text)):
        raise BadHeader(f"{name} must be a whole number from 1 to 4294967295, got {text[:80]!r}", name)
    return int(text)


class BodyReceiver:
    """Takes one request body into the store, where it belongs to `owner`."""

    def __init__(self, store: Store, owner: str, body: BoundedBody, content_length: int | None, pace: Pace) -> None:
        self._store = store
        self._owner = owner
        self._body = body
        self._content_length = content_length
        self._pace = pace

    async def video(self, shape: VideoShape, limit_bytes: int) -> StoredFile:
        """Store a video of exactly this shape.

        Raises:
            SizeMismatch: the body has another size than the headers say.
            TooLarge: the headers say more than the limit.
        """
        if shape.num_bytes > limit_bytes:
            raise TooLarge(f"a video of {shape.num_bytes} bytes is over the limit of {limit_bytes} bytes")
        if self._content_length is not None and self._content_length != shape.num_bytes:
            raise _mismatch(shape, str(self._content_length))
        header = pack_video_header(shape)
        with self._store.draft(Kind.VIDEO, len(header) + shape.num_bytes, owner=self._owner) as draft:
            await draft.append(header)
            received = await self._receive(draft, shape.num_bytes)
            if received is None:
                raise _mismatch(shape, f"more than {shape.num_bytes}")
            if received != shape.num_bytes:
                raise _mismatch(shape, str(received))
            return draft.commit()

    async def blob(
        self, kind: Kind, limit_bytes: int, check: Callable[[Path], Awaitable[object]] | None = None
    ) -> StoredFile:
        """Store opaque bytes, once `check` has nothing against the file.

        Raises:
            EmptyBody: there are none.
            TooLarge: there are more than the limit.
        """
        too_large = TooLarge(f"the body is over the limit of {limit_bytes} bytes")
        if self._content_length is not None and self._content_length > limit_bytes:
            raise too_large
        with self._store.draft(kind, self._content_length or 0, owner=self._owner) as draft:
            received = await self._receive(draft, limit_bytes)
            if received is None:
                raise too_large
            if received == 0:
                raise EmptyBody("the body is empty")
            if check is not None:
                await check(draft.path)
            return draft.commit()

    async def _receive(self, draft: Draft, limit_bytes: int) -> int | None:
        """Append the body to the draft; the bytes received, None when they are over the limit."""
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


def _mismatch(shape: VideoShape, got: str) -> SizeMismatch:
    dimensions = " x ".join(map(str, shape))
    return SizeMismatch(f"the headers say {dimensions} = {shape.num_bytes} bytes, the body has {got}")
