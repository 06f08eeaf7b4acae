"""The seam between the HTTP endpoints and where files are kept.

`LocalBlobs` keeps them in the local `Store`. Another implementation may keep them on other machines: everything that
may need the network is awaited.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from filmstrip.errors import UnknownPath
from filmstrip.wire import VideoShape

from .store import DerivedFile, Draft, Kind, Store, StoredFile, open_stored
from .tasks import in_thread

_PIECE_BYTES = 256 * 2**10  # what a stalled reader holds in memory; smaller pieces are slower


class Blob(Protocol):
    """A complete file.

    Attributes:
        name: its name for clients.
        owner: the client that it belongs to; empty if the server has no keys.
        size_bytes: its size, including the header.
        shape: of the video after the header; None for others.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  see above, here and below
    @property
    def owner(self) -> str: ...  # noqa: D102
    @property
    def size_bytes(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> VideoShape | None: ...  # noqa: D102


class BlobDraft(Protocol):
    """A file that is being written; it is discarded unless `commit` is called before its context ends."""

    @property
    def path(self) -> Path:
        """A local file with what was appended so far."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def append(self, *parts: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            StorageFull: the files would exceed their limits.
        """

    async def commit(self) -> Blob:
        """Complete the file and give it its name: from now on clients can use it."""


class Blobs(Protocol):
    """Files of clients, within limits, until they expire."""

    async def draft(self, kind: Kind, expected_bytes: int = 0, *, owner: str = "") -> BlobDraft:
        """Start a file of about `expected_bytes`.

        Raises:
            StorageFull: the files would exceed their limits, or those of the client its share.
        """

    async def find(self, name: str, *kinds: Kind, owner: str = "", field: str | None = None) -> Blob:
        """The file of this name.

        Raises:
            UnknownPath: there is none, it has expired, or it has another kind or owner.
        """

    def open_range(self, blob: Blob, start: int, stop: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes from `start` up to `stop`, piece by piece; the file is in use while the context lasts.

        Raises:
            UnknownPath: the file is gone; on entering the context.
        """

    async def delete(self, name: str, owner: str = "") -> None:
        """Delete a client's file.

        Raises:
            UnknownPath: see `find`.
            InUse: a generation or a download uses it.
        """

    async def expire(self) -> None:
        """Remove expired files."""


class _LocalDraft:
    """A draft of the store."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def path(self) -> Path:
        return self._draft.path

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draft.__exit__(kind, error, trace)

    async def append(self, *parts: bytes | memoryview) -> None:
        await self._draft.append(*parts)

    async def commit(self) -> StoredFile:
        return self._draft.commit()


class LocalBlobs:
    """The files of the local store; see `Blobs`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def draft(self, kind: Kind, expected_bytes: int = 0, *, owner: str = "") -> _LocalDraft:
        """Start a file; see `Blobs.draft`."""
        return _LocalDraft(self._store.draft(kind, expected_bytes, owner=owner))

    async def find(self, name: str, *kinds: Kind, owner: str = "", field: str | None = None) -> StoredFile:
        """The file of this name; see `Blobs.find`."""
        return self._store.find(name, *kinds, owner=owner, field=field)

    @contextlib.asynccontextmanager
    async def open_range(self, blob: Blob, start: int, stop: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Some bytes of a file; see `Blobs.open_range`."""
        assert isinstance(blob, StoredFile | DerivedFile)
        with self._store.holding(blob), self._open(blob) as fd:
            yield read_pieces(fd, start, stop)

    @contextlib.contextmanager
    def _open(self, file: StoredFile | DerivedFile) -> Iterator[int]:
        try:
            fd = open_stored(file.path)
        except FileNotFoundError:
            raise UnknownPath(f"path: {file.name} is gone", "path") from None
        try:
            yield fd
        finally:
            os.close(fd)

    async def delete(self, name: str, owner: str = "") -> None:
        """Delete a client's file; see `Blobs.delete`."""
        self._store.delete(name, owner)

    async def expire(self) -> None:
        """Remove expired files."""
        self._store.expire()


async def read_pieces(fd: int, start: int, stop: int) -> AsyncIterator[bytes]:
    """Read an open file piece by piece."""
    while start < stop:
        size = min(_PIECE_BYTES, stop - start)
        piece = _read_cached(fd, size, start) or await in_thread(os.pread, fd, size, start)
        if not piece:
            return  # truncated from outside: the connection closes before Content-Length is reached
        start += len(piece)
        yield piece
        del piece  # otherwise it is held together with the next one


def _read_cached(fd: int, size: int, offset: int) -> bytes | None:
    """The bytes there if the page cache has them; None if reading would wait for the disk."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # nothing is cached, or the file system does not support it
        return None
    return bytes(memoryview(buffer)[:count])
