"""The store of uploads and outputs: their names, owners, limits and expiry.

A file gets its name only when it is complete. Names are opaque: the kind and 128 random bits. Nothing outside this
module sees a path made from what a client sent.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import itertools
import logging
import os
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Self

from filmstrip.errors import DiskFull, InUse, StorageFull, UnknownPath
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape, pack_video_header, unpack_video_header

from .settings import Settings
from .tasks import close_in_thread, in_thread

log = logging.getLogger(__name__)

SHM_DIR = Path("/dev/shm")  # noqa: S108  POSIX shared memory, where Triton looks its keys up

_SWEEP_S = 60.0
_MAX_PARTS = os.sysconf("SC_IOV_MAX")
_CLIENT_SHARE = 2  # a client has at most this part of the files and bytes: a half
_REMEDY = "delete some, or try again when some have expired"
_KEEP_SIZE = 1  # of fallocate(2)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Kind(StrEnum):
    """What a stored file is."""

    VIDEO = "video"
    BLOB = "blob"
    ASSET = "asset"
    OUTPUT = "output"


_MAY_BE_IN_SHM = (Kind.VIDEO, Kind.BLOB)
_HAS_HEADER = (Kind.VIDEO, Kind.OUTPUT)
_NAME = re.compile(r"(?:video|blob|asset|output)-[0-9a-f]{32}")
_FILE_NAME = re.compile(rf"({_NAME.pattern})(?:@([A-Za-z0-9_-]+))?")


def is_name(text: str) -> bool:
    """Whether it looks like a name that a store gives."""
    return _NAME.fullmatch(text) is not None


def disk_name(name: str, owner: str) -> str:
    """What a file is called on disk."""
    return f"{name}@{owner}" if owner else name


def open_stored(path: Path) -> int:
    """Open a regular file for reading, and never what a symbolic link in its place points to.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        FileNotFoundError: there is no file, or something other than a regular file is in its place.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO would block
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link; a socket
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from error
        raise
    if not S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return fd


@dataclass(frozen=True)
class StoredFile:
    """A whole file of the store.

    Attributes:
        name: what clients call it.
        kind: what it is.
        owner: the client that it belongs to, empty where the server has no keys.
        path: where it lies.
        size_bytes: of the file, header included.
        shape: of the video behind the header, None for blobs and assets.
        inode: of the file.
        expires_at: seconds of the Unix clock.
    """

    name: str
    kind: Kind
    owner: str
    path: Path
    size_bytes: int
    shape: VideoShape | None
    inode: int
    expires_at: float

    @classmethod
    def inspect(cls, path: Path, shm_prefix: str, ttl_s: float) -> "StoredFile | None":
        """What the file at `path` is, None when it is not a whole file of a store.

        Args:
            path: on disk, or in shared memory.
            shm_prefix: what names in shared memory begin with.
            ttl_s: how long files live from their last change.
        """
        named = _FILE_NAME.fullmatch(path.name.removeprefix(shm_prefix))
        stat = path.lstat()
        if named is None or not S_ISREG(stat.st_mode):
            return None
        kind = Kind(named[1].partition("-")[0])
        shape = None
        if kind in _HAS_HEADER:
            with open(open_stored(path), "rb") as file:
                try:
                    shape = unpack_video_header(file.read(VIDEO_HEADER_BYTES))
                except ValueError:
                    return None
            if stat.st_size != VIDEO_HEADER_BYTES + shape.num_bytes:
                return None
        return cls(named[1], kind, named[2] or "", path, stat.st_size, shape, stat.st_ino, stat.st_mtime + ttl_s)

    @property
    def in_shm(self) -> bool:
        """The file lies in shared memory."""
        return self.path.parent == SHM_DIR

    def is_intact(self) -> bool:
        """It is still there: the same file with the same size."""
        try:
            stat = self.path.lstat()
        except OSError:
            return False
        return S_ISREG(stat.st_mode) and (stat.st_ino, stat.st_size) == (self.inode, self.size_bytes)


class DataDirectoryTaken(RuntimeError):
    """Another frontend uses the data directory."""


class Draft:
    """A file being written; it is removed unless `commit` is called before its context ends."""

    def __init__(self, store: "Store", kind: Kind, owner: str, path: Path, reserved_bytes: int) -> None:
        self._store = store
        self.kind = kind
        self.owner = owner
        self.path = path
        self.reserved_bytes = reserved_bytes
        self.written_bytes = 0
        self.preallocated_bytes = 0
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(self.fd, store.file_mode)  # whatever the umask: Triton's user must be able to map it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.discard(self)

    async def append(self, *parts: bytes | memoryview) -> None:
        """Append bytes, written in a thread.

        Raises:
            StorageFull: the stored files would go over their limits.
            DiskFull: the disk is full.
        """
        num_bytes = sum(map(len, parts))
        self._store.reserve(self, self.written_bytes + num_bytes)
        await in_thread(self._write, parts)
        self.written_bytes += num_bytes

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        left = deque(memoryview(part) for part in parts)
        try:
            if self.written_bytes == 0 and self.reserved_bytes and self.path.parent != SHM_DIR:
                self.preallocated_bytes = self.reserved_bytes if preallocate(self.fd, self.reserved_bytes) else 0
            while left:
                written = os.writev(self.fd, list(itertools.islice(left, _MAX_PARTS)))
                while left and written >= len(left[0]):
                    written -= len(left.popleft())
                if left:
                    left[0] = left[0][written:]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("the server's disk is full") from error
            raise

    def write_header(self, shape: VideoShape) -> None:
        """Put the header of a video in front of what was written."""
        os.pwrite(self.fd, pack_video_header(shape), 0)

    def commit(self) -> StoredFile:
        """Give the file its name: from now on clients can use it."""
        return self._store.commit(self)


class Store:
    """All stored files of one frontend, within their limits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.data_dir.resolve()
        self._partial = self._root / "partial"
        self._work = self._root / "work"
        self._shm_prefix = f"filmstrip-{hashlib.sha256(os.fsencode(self._root)).hexdigest()[:12]}-"
        self._files: dict[str, StoredFile] = {}
        self._held: Counter[str] = Counter()
        self._drafts: set[Draft] = set()
        self._lock_fd: int | None = None
        self.file_mode = 0o600 if settings.embedded else 0o660  # a Triton elsewhere may run as another user

    # -- Life of the store ------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the data directory, remove what a crash left half-written and find what is whole.

        Raises:
            DataDirectoryTaken: another frontend uses the directory.
        """
        self._make_folders()
        self._make_private()
        self._lock_fd = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            self._lock_fd = None
            raise DataDirectoryTaken(f"another frontend uses {self._root}") from None
        for leftover in (*self._partial.iterdir(), *self._work.iterdir(), *SHM_DIR.glob(f"{self._shm_prefix}*")):
            _unlink(leftover)
        for path in self._existing():
            found = self._inspect(path)
            if found is None:
                _unlink(path)
            else:
                self._files[found.name] = found
        self.expire()

    def close(self) -> None:
        """Let go of the data directory; files on disk stay, shared memory is given back."""
        for file in [file for file in self._files.values() if file.in_shm]:
            self._remove(file)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def shm_prefix(self, purpose: str) -> str:
        """The beginning of names in shared memory whose files are removed at the next start after a crash."""
        return f"{self._shm_prefix}-{purpose}-"

    def new_shm_path(self) -> Path:
        """A path for a temporary file in shared memory, removed at the next start after a crash."""
        return SHM_DIR / (self.shm_prefix("tmp") + secrets.token_hex(8))

    def new_work_path(self) -> Path:
        """A path for a temporary file on disk, removed at the next start after a crash."""
        return self._work / secrets.token_hex(8)

    @contextlib.asynccontextmanager
    async def expiring(self) -> AsyncIterator[None]:
        """While it is open, files that have expired are removed, and those removed by hand are forgotten."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(min(_SWEEP_S, self._settings.store_ttl_s / 4))
                self.expire()
                self.forget_damaged()

        task = asyncio.create_task(sweep(), name="store sweep")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def expire(self) -> None:
        """Remove what has expired."""
        now = time.time()
        for file in [file for file in self._files.values() if file.expires_at <= now and not self._held[file.name]]:
            log.info("%s has expired", file.name)
            self._remove(file)

    def forget_damaged(self) -> None:
        """Forget files that were deleted, truncated or replaced outside the server."""
        for file in [file for file in self._files.values() if not file.is_intact()]:
            log.warning("%s was damaged or removed outside the server", file.name)
            self._remove(file)

    @contextlib.contextmanager
    def holding(self, file: StoredFile) -> Iterator[None]:
        """Keep a file from expiring and from being deleted while it is used."""
        self._held[file.name] += 1
        try:
            yield
        finally:
            self._held[file.name] -= 1
            if not self._held[file.name]:
                del self._held[file.name]

    # -- Reading ----------------------------------------------------------------------------------------

    def find(self, name: str, *kinds: Kind, owner: str = "", field: str | None = None) -> StoredFile:
        """The stored file of this name.

        Raises:
            UnknownPath: no such file, it has expired, it is of another kind or another's, or it was damaged.
        """
        file = self._files.get(name) if is_name(name) else None
        if file is not None and file.expires_at <= time.time():
            self.expire()
            file = None
        if file is not None and not file.is_intact():
            log.warning("%s was damaged or removed outside the server", file.name)
            self._remove(file)
            file = None
        if file is None or file.kind not in kinds or file.owner != owner:
            wanted = kinds[0] if len(kinds) == 1 else "file"
            shown = name if len(name) <= 80 else name[:80] + "..."
            raise UnknownPath(f"{field or 'path'}: no {wanted} {shown!r} here; it may have expired", field)
        return file

    def delete(self, name: str, owner: str = "") -> None:
        """Delete a file of a client.

        Raises:
            UnknownPath: as `find`.
            InUse: a generation or a download uses it.
        """
        file = self.find(name, *Kind, owner=owner, field="name")
        if file.name in self._held:
            raise InUse(f"name: {file.name} is in use by a generation or a download", "name")
        self._remove(file)

    # -- Writing ----------------------------------------------------------------------------------------

    def draft(self, kind: Kind, expected_bytes: int = 0, *, owner: str = "") -> Draft:
        """Begin a file of about `expected_bytes`.

        Raises:
            StorageFull: the stored files would go over their limits, or those of the client over its share.
        """
        self._make_folders()
        self._make_room(lambda: self._check_files(owner))
        self._make_room(lambda: self._check_bytes(expected_bytes, owner))
        path = self._partial / secrets.token_hex(16)
        if kind in _MAY_BE_IN_SHM and expected_bytes and self._fits_in_shm(expected_bytes):
            path = self.new_shm_path()
        try:
            draft = Draft(self, kind, owner, path, expected_bytes)
        except OSError as error:
            raise DiskFull("the server's disk takes no other file") from error
        self._drafts.add(draft)
        return draft

    def reserve(self, draft: Draft, num_bytes: int) -> None:
        """Make sure that a draft may grow to `num_bytes`."""
        if num_bytes > draft.reserved_bytes:
            more_bytes = num_bytes - draft.reserved_bytes
            self._make_room(lambda: self._check_bytes(more_bytes, draft.owner))
            draft.reserved_bytes = num_bytes

    def commit(self, draft: Draft) -> StoredFile:
        """Name a draft."""
        name = f"{draft.kind}-{secrets.token_hex(16)}"
        if draft.preallocated_bytes > draft.written_bytes:
            release_unused(draft.fd, draft.written_bytes, draft.preallocated_bytes)
        called = disk_name(name, draft.owner)
        in_shm = draft.path.parent == SHM_DIR
        path = SHM_DIR / f"{self._shm_prefix}{called}" if in_shm else self._folder(draft.kind) / called
        try:
            os.rename(draft.path, path)
        except FileNotFoundError:
            raise DiskFull("the file was removed while it was written") from None
        self._drafts.discard(draft)
        os.close(draft.fd)
        file = self._inspect(path)
        if file is None:
            path.unlink(missing_ok=True)
            raise RuntimeError("a draft was committed that is not whole")
        self._files[name] = file
        return file

    def discard(self, draft: Draft) -> None:
        """Remove a draft, unless it has been named; one that cannot be removed is removed at the next start."""
        if draft in self._drafts:
            self._drafts.discard(draft)
            _unlink(draft.path)
            close_in_thread(draft.fd)

    # -- Within -----------------------------------------------------------------------------------------

    def _folder(self, kind: Kind) -> Path:
        return self._root / f"{kind}s"

    def _make_private(self) -> None:
        """See that no other user can read what is stored, or even its names, which are enough to download it."""
        found = self._root.stat()
        if not found.st_mode & 0o077:
            return
        if found.st_uid == os.geteuid():
            self._root.chmod(0o700)
            log.warning("%s was open to other users; it is closed now (mode 0700)", self._root)
        else:
            log.warning("%s belongs to another user (id %d) and is open to others", self._root, found.st_uid)

    def _make_folders(self) -> None:
        """Make them, also when somebody has removed them under us."""
        if not self._root.exists():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._root, self._partial, self._work, *(self._folder(kind) for kind in Kind)):
            folder.mkdir(parents=True, exist_ok=True)

    def _existing(self) -> Iterator[Path]:
        for kind in Kind:
            yield from self._folder(kind).iterdir()

    def _inspect(self, path: Path) -> StoredFile | None:
        return StoredFile.inspect(path, self._shm_prefix, self._settings.store_ttl_s)

    def _remove(self, file: StoredFile) -> None:
        self._files.pop(file.name, None)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(file.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # whatever is in its place
            _unlink(file.path)
            close_in_thread(fd)

    def _make_room(self, check: Callable[[], None]) -> None:
        """Check a limit again without the files that have expired or are gone, where it refuses at first."""
        try:
            check()
        except StorageFull:
            self.expire()
            self.forget_damaged()
            check()

    def _check_files(self, owner: str) -> None:
        limit = self._settings.store_files
        if len(self._files) + len(self._drafts) >= limit:
            raise StorageFull(f"the server holds its {limit} files; {_REMEDY}")
        share = max(1, limit // _CLIENT_SHARE)
        own = sum(file.owner == owner for file in self._files.values())
        own += sum(draft.owner == owner for draft in self._drafts)
        if owner and own >= share:
            raise StorageFull(f"you have {share} files on the server, half of its {limit}; {_REMEDY}")

    def _check_bytes(self, more_bytes: int, owner: str) -> None:
        stored = sum(file.size_bytes for file in self._files.values())
        reserved = sum(draft.reserved_bytes for draft in self._drafts)
        written = sum(max(draft.written_bytes, draft.preallocated_bytes) for draft in self._drafts)
        disk = os.statvfs(self._root)
        disk_share = self._settings.store_disk_share * (disk.f_bavail * disk.f_frsize + stored + written)
        limit = min(self._settings.store_bytes, int(disk_share))
        if stored + reserved + more_bytes > limit:
            raise StorageFull(
                f"{more_bytes} bytes more would take the stored files ({stored + reserved} bytes) over the limit of "
                f"{limit} bytes; {_REMEDY}"
            )
        if owner:
            own = sum(file.size_bytes for file in self._files.values() if file.owner == owner)
            own += sum(draft.reserved_bytes for draft in self._drafts if draft.owner == owner)
            if own + more_bytes > limit // _CLIENT_SHARE:
                raise StorageFull(
                    f"{more_bytes} bytes more would take your files ({own} bytes) over your share of "
                    f"{limit // _CLIENT_SHARE} bytes, half of the store; {_REMEDY}"
                )

    def _fits_in_shm(self, num_bytes: int) -> bool:
        wanted = self._settings.uploads_in_shm and self._settings.shared_memory
        if not wanted or not SHM_DIR.is_dir():
            return False
        held = sum(file.size_bytes for file in self._files.values() if file.in_shm)
        held += sum(draft.reserved_bytes for draft in self._drafts if draft.path.parent == SHM_DIR)
        disk = os.statvfs(SHM_DIR)
        free = disk.f_bavail * disk.f_frsize
        return (
            held + num_bytes <= self._settings.shm_upload_bytes and num_bytes <= self._settings.store_disk_share * free
        )


def _unlink(path: Path) -> None:
    """Remove a leftover; a folder in its place, such as lost+found, is not ours."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s stays: %s", path, error.strerror)


def preallocate(fd: int, num_bytes: int) -> bool:
    """Have the file system keep room for a file of so many bytes, whose size stays as it is; False where it can't.

    `os.posix_fallocate` would change the size, and write all of it where the file system can't do better.

    Raises:
        OSError: there is no such room.
    """
    if _fallocate()(fd, _KEEP_SIZE, 0, num_bytes) == 0:
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error))


def release_unused(fd: int, used_bytes: int, preallocated_bytes: int) -> None:
    """Give back the room that was set aside beyond what is used; some file systems do so only when a file shrinks."""
    os.ftruncate(fd, preallocated_bytes)
    os.ftruncate(fd, used_bytes)


@functools.cache
def _fallocate() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
