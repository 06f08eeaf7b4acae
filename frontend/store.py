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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Self

from filmstrip.errors import DiskFull, InUse, StorageFull, UnknownPath
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape, pack_video_header, unpack_video_header

from .settings import Settings
from .tasks import close_in_thread, in_thread

log = logging.getLogger(__name__)

SHM_DIR = Path("/dev/shm")  # noqa: S108  POSIX shared memory, where Triton looks up its keys

_SWEEP_S = 60.0
_MAX_PARTS = os.sysconf("SC_IOV_MAX")
_CLIENT_SHARE = 2  # a client may use at most half of the files and bytes
_REMEDY = "delete some, or try again when some have expired"
_KEEP_SIZE = 1  # a flag of fallocate(2)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Kind(StrEnum):
    """Kind of a stored file."""

    VIDEO = "video"
    BLOB = "blob"
    ASSET = "asset"
    OUTPUT = "output"


_MAY_BE_IN_SHM = (Kind.VIDEO, Kind.BLOB)
_HAS_HEADER = (Kind.VIDEO, Kind.OUTPUT)
MAX_VARIANTS = 8
"""Most files that are derived from one output and kept."""
_NAME = re.compile(r"(?:video|blob|asset|output)-[0-9a-f]{32}")
_OWNED_NAME = rf"({_NAME.pattern})(?:@([A-Za-z0-9_-]+))?"
_FILE_NAME = re.compile(rf"{_OWNED_NAME}(?:~([0-9]{{1,9}})_([1-9][0-9]{{0,8}}))?")
_DERIVED_NAME = re.compile(rf"{_OWNED_NAME}\.([a-z0-9_-]+)\.([0-9a-f]{{32}})")


def is_name(text: str) -> bool:
    """Whether it looks like the name of a stored file."""
    return _NAME.fullmatch(text) is not None


def disk_name(name: str, owner: str, fps: Fraction | None = None) -> str:
    """The name of a stored file on disk."""
    rate = f"~{fps.numerator}_{fps.denominator}" if fps else ""
    return f"{name}@{owner}{rate}" if owner else f"{name}{rate}"


def open_stored(path: Path) -> int:
    """Open a regular file for reading; never follows a symbolic link.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        FileNotFoundError: there is no file, or something other than a regular file.
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
    """A complete file in the store.

    Attributes:
        name: its name for clients.
        kind: its kind.
        owner: the client that it belongs to; empty if the server has no keys.
        path: its path on disk or in shared memory.
        size_bytes: its size, including the header.
        shape: of the video after the header; None for blobs and assets.
        inode: its inode number.
        expires_at: Unix time in seconds.
        fps: frames per second of a video, if they are known.
    """

    name: str
    kind: Kind
    owner: str
    path: Path
    size_bytes: int
    shape: VideoShape | None
    inode: int
    expires_at: float
    fps: Fraction | None = None

    @classmethod
    def inspect(cls, path: Path, shm_prefix: str, ttl_s: float) -> "StoredFile | None":
        """Read what the file at `path` is; None if it is not a complete file of the store.

        Args:
            path: on disk or in shared memory.
            shm_prefix: the prefix of names in shared memory.
            ttl_s: lifetime of files, from their last change.
        """
        match = _FILE_NAME.fullmatch(path.name.removeprefix(shm_prefix))
        stat = path.lstat()
        if match is None or not S_ISREG(stat.st_mode):
            return None
        kind = Kind(match[1].partition("-")[0])
        shape = None
        if kind in _HAS_HEADER:
            with open(open_stored(path), "rb") as file:
                try:
                    shape = unpack_video_header(file.read(VIDEO_HEADER_BYTES))
                except ValueError:
                    return None
            if stat.st_size != VIDEO_HEADER_BYTES + shape.num_bytes:
                return None
        fps = Fraction(int(match[3]), int(match[4])) if match[3] else None
        return cls(match[1], kind, match[2] or "", path, stat.st_size, shape, stat.st_ino, stat.st_mtime + ttl_s, fps)

    @property
    def in_shm(self) -> bool:
        """Whether the file is in shared memory."""
        return self.path.parent == SHM_DIR

    def is_intact(self) -> bool:
        """Whether it is still there: the same file with the same size."""
        return _is_intact(self.path, self.inode, self.size_bytes)


@dataclass
class DerivedFile:
    """A file made from an output, such as an MP4. It goes with the output, and may be dropped before to make room.

    Attributes:
        name: its entity tag, which depends on its content.
        source: name of the output.
        owner: of the output.
        variant: what was made of the output.
        path: its path on disk.
        size_bytes: its size.
        inode: its inode number.
        used_at: Unix time of its last use, in seconds.
    """

    name: str
    source: str
    owner: str
    variant: str
    path: Path
    size_bytes: int
    inode: int
    used_at: float
    shape: VideoShape | None = None

    @classmethod
    def inspect(cls, path: Path) -> "DerivedFile | None":
        """Read what the file at `path` is; None if it has no such name."""
        match = _DERIVED_NAME.fullmatch(path.name)
        stat = path.lstat()
        if match is None or not S_ISREG(stat.st_mode):
            return None
        source, owner, variant, name = match.groups()
        return cls(name, source, owner or "", variant, path, stat.st_size, stat.st_ino, stat.st_mtime)

    def is_intact(self) -> bool:
        """Whether it is still there: the same file with the same size."""
        return _is_intact(self.path, self.inode, self.size_bytes)


def _is_intact(path: Path, inode: int, size_bytes: int) -> bool:
    try:
        stat = path.lstat()
    except OSError:
        return False
    return S_ISREG(stat.st_mode) and (stat.st_ino, stat.st_size) == (inode, size_bytes)


class DataDirectoryTaken(RuntimeError):
    """Another server uses the data directory."""


class Draft:
    """A file that is being written; it is discarded unless `commit` is called before its context ends."""

    def __init__(
        self, store: "Store", kind: Kind, owner: str, path: Path, reserved_bytes: int, *, is_derived: bool = False
    ) -> None:
        self._store = store
        self.is_derived = is_derived
        self.kind = kind
        self.owner = owner
        self.path = path
        self.reserved_bytes = reserved_bytes
        self.written_bytes = 0
        self.preallocated_bytes = 0
        self.fps: Fraction | None = None
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(self.fd, store.file_mode)  # independent of the umask: Triton's user must be able to map it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.discard(self)

    @property
    def in_shm(self) -> bool:
        """Whether the file is in shared memory."""
        return self.path.parent == SHM_DIR

    async def append(self, *parts: bytes | memoryview) -> None:
        """Append bytes, written in a thread.

        Raises:
            StorageFull: the stored files would exceed their limits.
            DiskFull: the disk is full.
        """
        num_bytes = sum(map(len, parts))
        self._store.reserve(self, self.written_bytes + num_bytes)
        await in_thread(self._write, parts)
        self.written_bytes += num_bytes

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        left = deque(memoryview(part) for part in parts)
        try:
            if self.written_bytes == 0 and self.reserved_bytes and not self.in_shm:
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
        """Write a video's header over the first bytes."""
        os.pwrite(self.fd, pack_video_header(shape), 0)

    def commit(self) -> StoredFile:
        """Complete the file and give it its name: from now on clients can use it."""
        return self._store.commit(self)


class Store:
    """All stored files of one server, within their limits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.data_dir.resolve()
        self._partial = self._root / "partial"
        self._work = self._root / "work"
        self._derived_folder = self._root / "derived"
        self._shm_prefix = f"filmstrip-{hashlib.sha256(os.fsencode(self._root)).hexdigest()[:12]}-"
        self._files: dict[str, StoredFile] = {}
        self._derived: dict[tuple[str, str], DerivedFile] = {}
        self._held: Counter[str] = Counter()
        self._drafts: set[Draft] = set()
        self._counted_bytes: Counter[str] = Counter()
        self._lock_fd: int | None = None
        self.file_mode = 0o600 if settings.embedded else 0o660  # a Triton elsewhere may run as another user

    def open(self) -> None:
        """Lock the data directory, remove what a crash left half-written, and index the complete files.

        Those that have expired are removed by `expire` alone, as somebody may want to hold them first.

        Raises:
            DataDirectoryTaken: another server uses the directory.
        """
        self._make_folders()
        self._make_private()
        self._lock_fd = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            self._lock_fd = None
            raise DataDirectoryTaken(f"another server uses {self._root}") from None
        for leftover in (*self._partial.iterdir(), *self._work.iterdir(), *SHM_DIR.glob(f"{self._shm_prefix}*")):
            _unlink(leftover)
        for path in self._existing():
            found = self._inspect(path)
            if found is None:
                _unlink(path)
            else:
                self._files[found.name] = found
        for path in self._derived_folder.iterdir():
            derived = DerivedFile.inspect(path)
            if derived is None or derived.source not in self._files:
                _unlink(path)
            else:
                self._derived[derived.source, derived.variant] = derived

    def close(self) -> None:
        """Unlock the data directory; files on disk stay, files in shared memory are removed."""
        for file in [file for file in self._files.values() if file.in_shm]:
            self._remove(file)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def shm_prefix(self, purpose: str) -> str:
        """A prefix for names in shared memory; after a crash, the next start removes files with it."""
        return f"{self._shm_prefix}-{purpose}-"

    def new_shm_path(self) -> Path:
        """A path for a temporary file in shared memory; after a crash, the next start removes it."""
        return SHM_DIR / (self.shm_prefix("tmp") + secrets.token_hex(8))

    def new_work_path(self) -> Path:
        """A path for a temporary file on disk; after a crash, the next start removes it."""
        return self._work / secrets.token_hex(8)

    @contextlib.asynccontextmanager
    async def expiring(self) -> AsyncIterator[None]:
        """Until the context ends, regularly remove expired files and forget those removed from outside."""

        async def sweep() -> None:
            while True:
                await asyncio.sleep(min(_SWEEP_S, self._settings.store_ttl_s / 4))
                self.expire()
                self.forget_damaged()

        self.expire()
        task = asyncio.create_task(sweep(), name="store sweep")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def expire(self) -> None:
        """Remove expired files."""
        now = time.time()
        for file in [file for file in self._files.values() if file.expires_at <= now and not self._held[file.name]]:
            log.info("%s has expired", file.name)
            self._remove(file)

    def forget_damaged(self) -> None:
        """Forget files that were deleted, truncated or replaced from outside."""
        for file in list(self._files.values()):
            self._forget_if_damaged(file)

    def _forget_if_damaged(self, file: StoredFile) -> bool:
        if file.is_intact():
            return False
        log.warning("%s was damaged or removed by something other than the server", file.name)
        self._remove(file)
        return True

    @contextlib.contextmanager
    def holding(self, file: "StoredFile | DerivedFile") -> Iterator[None]:
        """Keep a file, and the output that it is derived from, from expiry and deletion while it is used."""
        names = [file.name, file.source] if isinstance(file, DerivedFile) else [file.name]
        self._held.update(names)
        try:
            yield
        finally:
            self._held.subtract(names)
            for name in names:
                if not self._held[name]:
                    del self._held[name]

    def find(
        self, name: str, *kinds: Kind, owner: str = "", field: str | None = None, allow_expired: bool = False
    ) -> StoredFile:
        """The stored file of this name.

        Raises:
            UnknownPath: there is none, it has expired, it has another kind or owner, or it was damaged.
        """
        file = self._files.get(name) if is_name(name) else None
        if file is not None and not allow_expired and file.expires_at <= time.time():
            self.expire()
            file = None
        if file is not None and self._forget_if_damaged(file):
            file = None
        if file is None or file.kind not in kinds or file.owner != owner:
            expected = kinds[0] if len(kinds) == 1 else "file"
            shown = name if len(name) <= 80 else name[:80] + "..."
            raise UnknownPath(f"{field or 'path'}: there is no {expected} {shown!r}; it may have expired", field)
        return file

    def delete(self, name: str, owner: str = "") -> None:
        """Delete a client's file.

        Raises:
            UnknownPath: see `find`.
            InUse: a generation or a download uses it.
        """
        file = self.find(name, *Kind, owner=owner, field="name")
        if file.name in self._held:
            raise InUse(f"name: {file.name} is in use by a generation or a download", "name")
        self._remove(file)

    def has(self, name: str) -> bool:
        """Whether there is a stored file of this name."""
        return name in self._files

    def remove(self, name: str) -> None:
        """Remove a file if it is there, even if it is in use: those who have it open can read on."""
        if name in self._files:
            self._remove(self._files[name])

    def derived(self, source: str, variant: str) -> DerivedFile | None:
        """The file of this variant that was derived from an output, if there is one."""
        file = self._derived.get((source, variant))
        if file is not None and not file.is_intact():
            self._remove_derived(file)
            return None
        if file is not None:
            file.used_at = time.time()
        return file

    def derive(self, owner: str) -> Draft:
        """Start a file that is derived from an output of `owner`. It does not count towards the number of files.

        Raises:
            StorageFull: the stored files would exceed their limits, or those of the client its share.
            DiskFull: the disk is full.
        """
        self._make_folders()
        try:
            draft = Draft(self, Kind.OUTPUT, owner, self._partial / secrets.token_hex(16), 0, is_derived=True)
        except OSError as error:
            raise DiskFull("the server's disk has no room for another file") from error
        self._drafts.add(draft)
        return draft

    def commit_derived(self, draft: Draft, source: StoredFile, variant: str, name: str) -> DerivedFile:
        """Keep a draft from `derive` as a file of `source`; if it has too many, those not used for longest are dropped.

        Args:
            draft: the complete file.
            source: the output.
            variant: what was made of it: small letters, digits, - and _.
            name: 32 hexadecimal digits that depend on the content.

        Raises:
            UnknownPath: the output was removed meanwhile.
        """
        if self._files.get(source.name) is not source:
            raise UnknownPath(f"path: {source.name} is gone", "path")
        path = self._derived_folder / f"{disk_name(source.name, source.owner)}.{variant}.{name}"
        self._name_draft(draft, path)
        file = DerivedFile.inspect(path)
        if file is None:
            raise RuntimeError("a derived file has an invalid name")
        file.used_at = time.time()
        if (replaced := self._derived.pop((source.name, variant), None)) is not None and replaced.path != path:
            _unlink(replaced.path)
        self._derived[source.name, variant] = file
        siblings = [other for other in self._derived.values() if other.source == source.name and other is not file]
        for other in self._by_age(siblings)[: max(0, len(siblings) + 1 - MAX_VARIANTS)]:
            self._remove_derived(other)
        return file

    def _name_draft(self, draft: Draft, path: Path) -> None:
        """Move a complete draft to its final path and close it."""
        try:
            os.rename(draft.path, path)
        except FileNotFoundError:
            raise DiskFull("the file was removed while it was written") from None
        self._drafts.discard(draft)
        os.close(draft.fd)

    def held_variants(self, source: str) -> int:
        """How many files derived from an output are in use and cannot be dropped."""
        return sum(other.source == source and other.name in self._held for other in self._derived.values())

    def _by_age(self, files: Iterable[DerivedFile]) -> list[DerivedFile]:
        """Those not in use, the one that was not used for longest first."""
        return sorted((file for file in files if file.name not in self._held), key=lambda file: file.used_at)

    def _remove_derived(self, file: DerivedFile) -> None:
        self._derived.pop((file.source, file.variant), None)
        _unlink(file.path)

    def draft(self, kind: Kind, expected_bytes: int = 0, *, owner: str = "") -> Draft:
        """Start a file of about `expected_bytes`.

        Raises:
            StorageFull: the stored files would exceed their limits, or those of the client its share.
            DiskFull: the disk is full.
        """
        self._make_folders()
        self._make_room(lambda: self._check_files(owner))
        self._make_room_for_bytes(expected_bytes, owner)
        path = self._partial / secrets.token_hex(16)
        if kind in _MAY_BE_IN_SHM and expected_bytes and self._fits_in_shm(expected_bytes):
            path = self.new_shm_path()
        try:
            draft = Draft(self, kind, owner, path, expected_bytes)
        except OSError as error:
            raise DiskFull("the server's disk has no room for another file") from error
        self._drafts.add(draft)
        return draft

    def reserve(self, draft: Draft, num_bytes: int) -> None:
        """Make sure that a draft may grow to `num_bytes`.

        Raises:
            StorageFull: the stored files would exceed their limits.
        """
        if num_bytes > draft.reserved_bytes:
            more_bytes = num_bytes - draft.reserved_bytes
            self._make_room_for_bytes(more_bytes, draft.owner)
            draft.reserved_bytes = num_bytes

    def count(self, num_bytes: int, owner: str, *, is_new: bool = True) -> None:
        """Count bytes that a client has elsewhere in the data directory, until they are counted with a minus.

        Args:
            num_bytes: how many; negative if they are removed.
            owner: the client.
            is_new: they are about to be written, and must fit.

        Raises:
            StorageFull: the stored files would exceed their limits, or those of the client its share.
        """
        if is_new:
            self._make_room_for_bytes(num_bytes, owner)
        self._counted_bytes[owner] += num_bytes
        if not self._counted_bytes[owner]:
            del self._counted_bytes[owner]

    def commit(self, draft: Draft) -> StoredFile:
        """Give a draft its name and return the stored file."""
        name = f"{draft.kind}-{secrets.token_hex(16)}"
        if draft.preallocated_bytes > draft.written_bytes:
            release(draft.fd, draft.written_bytes, draft.preallocated_bytes)
        file_name = disk_name(name, draft.owner, draft.fps)
        path = SHM_DIR / f"{self._shm_prefix}{file_name}" if draft.in_shm else self._folder(draft.kind) / file_name
        self._name_draft(draft, path)
        file = self._inspect(path)
        if file is None:
            path.unlink(missing_ok=True)
            raise RuntimeError("an incomplete draft was committed")
        self._files[name] = file
        return file

    def discard(self, draft: Draft) -> None:
        """Remove a draft unless it was committed. One that cannot be removed now is removed at the next start."""
        if draft in self._drafts:
            self._drafts.discard(draft)
            _unlink(draft.path)
            close_in_thread(draft.fd)

    def _folder(self, kind: Kind) -> Path:
        return self._root / f"{kind}s"

    def _make_private(self) -> None:
        """Deny other users access to the files and to their names, as a name is enough to download a file."""
        status = self._root.stat()
        if not status.st_mode & 0o077:
            return
        if status.st_uid == os.geteuid():
            self._root.chmod(0o700)
            log.warning("%s was accessible to other users; its mode is now 0700", self._root)
        else:
            log.warning("%s belongs to another user (id %d) and is accessible to others", self._root, status.st_uid)

    def _make_folders(self) -> None:
        """Create the folders, also if somebody has removed them while the server runs."""
        if not self._root.exists():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = (self._root, self._partial, self._work, self._derived_folder)
        for folder in (*own, *(self._folder(kind) for kind in Kind)):
            folder.mkdir(parents=True, exist_ok=True)

    def _existing(self) -> Iterator[Path]:
        for kind in Kind:
            yield from self._folder(kind).iterdir()

    def _inspect(self, path: Path) -> StoredFile | None:
        return StoredFile.inspect(path, self._shm_prefix, self._settings.store_ttl_s)

    def _remove(self, file: StoredFile) -> None:
        self._files.pop(file.name, None)
        for derived in [derived for derived in self._derived.values() if derived.source == file.name]:
            self._remove_derived(derived)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(file.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # whatever is in its place
            _unlink(file.path)
            close_in_thread(fd)

    def _make_room(self, check: Callable[[], None]) -> None:
        """Check a limit; if it is exceeded, drop expired and missing files and check it again."""
        try:
            check()
        except StorageFull:
            self.expire()
            self.forget_damaged()
            check()

    def _make_room_for_bytes(self, more_bytes: int, owner: str) -> None:
        """Check the limits on bytes; if one is exceeded, also drop derived files, as they can be made again."""
        for check, owners in ((self._check_bytes, None), (self._check_share, owner)):
            try:
                self._make_room(functools.partial(check, more_bytes, owner))
            except StorageFull:
                own = (file for file in self._derived.values() if owners is None or file.owner == owners)
                for file in self._by_age(own):
                    self._remove_derived(file)
                    with contextlib.suppress(StorageFull):
                        check(more_bytes, owner)
                        break
                else:
                    check(more_bytes, owner)

    def _check_files(self, owner: str) -> None:
        limit = self._settings.store_files
        drafts = [draft for draft in self._drafts if not draft.is_derived]
        if len(self._files) + len(drafts) >= limit:
            raise StorageFull(f"the server has reached its limit of {limit} files; {_REMEDY}")
        share = max(1, limit // _CLIENT_SHARE)
        own = sum(file.owner == owner for file in self._files.values())
        own += sum(draft.owner == owner for draft in drafts)
        if owner and own >= share:
            raise StorageFull(f"you have {share} files on the server, half of the {limit} that it can hold; {_REMEDY}")

    def check_fits(self, num_bytes: int, owner: str) -> None:
        """Check that a file could be stored if there were no others.

        Raises:
            StorageFull: it could not.
        """
        limit = self._byte_limit(self._stored_bytes()) // (_CLIENT_SHARE if owner else 1)
        if num_bytes > limit:
            raise StorageFull(f"{num_bytes} bytes can never fit into the limit of {limit} bytes; make a smaller video")

    def _check_bytes(self, more_bytes: int, owner: str) -> None:  # noqa: ARG002
        stored = self._stored_bytes()
        reserved = sum(draft.reserved_bytes for draft in self._drafts)
        limit = self._byte_limit(stored)
        if stored + reserved + more_bytes > limit:
            raise StorageFull(
                f"{more_bytes} more bytes would take the stored files ({stored + reserved} bytes) over the limit of "
                f"{limit} bytes; {_REMEDY}"
            )

    def _check_share(self, more_bytes: int, owner: str) -> None:
        if not owner:
            return
        share = self._byte_limit(self._stored_bytes()) // _CLIENT_SHARE
        own = self._stored_bytes(owner) + sum(draft.reserved_bytes for draft in self._drafts if draft.owner == owner)
        if own + more_bytes > share:
            raise StorageFull(
                f"{more_bytes} more bytes would take your files ({own} bytes) over your share of {share} bytes, half "
                f"of the store; {_REMEDY}"
            )

    def _byte_limit(self, stored: int) -> int:
        written = sum(max(draft.written_bytes, draft.preallocated_bytes) for draft in self._drafts)
        disk_share = self._settings.store_disk_share * (_free_bytes(self._root) + stored + written)
        return min(self._settings.store_bytes, int(disk_share))

    def _stored_bytes(self, owner: str | None = None) -> int:
        """Bytes of all complete files and of what else counts, or of those of one client."""
        files = itertools.chain[StoredFile | DerivedFile](self._files.values(), self._derived.values())
        counted = self._counted_bytes.total() if owner is None else self._counted_bytes[owner]
        return counted + sum(file.size_bytes for file in files if owner is None or file.owner == owner)

    def _fits_in_shm(self, num_bytes: int) -> bool:
        is_enabled = self._settings.uploads_in_shm and self._settings.shared_memory
        if not is_enabled or not SHM_DIR.is_dir():
            return False
        held = sum(file.size_bytes for file in self._files.values() if file.in_shm)
        held += sum(draft.reserved_bytes for draft in self._drafts if draft.in_shm)
        fits_on_disk = num_bytes <= self._settings.store_disk_share * _free_bytes(SHM_DIR)
        return held + num_bytes <= self._settings.shm_upload_bytes and fits_on_disk


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _unlink(path: Path) -> None:
    """Remove a leftover file; a folder in its place, such as lost+found, is not ours."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)


def preallocate(fd: int, num_bytes: int) -> bool:
    """Reserve disk space for a file without changing its size.

    `os.posix_fallocate` would change the size, and would write all of it if the file system has no better way.

    Returns:
        Whether the file system supports it.

    Raises:
        OSError: there is not enough space.
    """
    if _fallocate()(fd, _KEEP_SIZE, 0, num_bytes) == 0:
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error))


def release(fd: int, used_bytes: int, preallocated_bytes: int) -> None:
    """Release preallocated space beyond what is used; some file systems do so only when a file shrinks."""
    os.ftruncate(fd, preallocated_bytes)
    os.ftruncate(fd, used_bytes)


@functools.cache
def _fallocate() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
