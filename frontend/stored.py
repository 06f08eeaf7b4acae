"""What a stored file is: its kind, its name, its owner, and whether it is whole."""

import errno
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISREG

from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape, unpack_video_header

SHM_DIR = Path("/dev/shm")  # noqa: S108  POSIX shared memory, where Triton looks its keys up


class Kind(StrEnum):
    """What a stored file is."""

    VIDEO = "video"
    BLOB = "blob"
    ASSET = "asset"
    OUTPUT = "output"


_HAS_HEADER = (Kind.VIDEO, Kind.OUTPUT)
_NAME = re.compile(r"(?:video|blob|asset|output)-[0-9a-f]{32}")
_FILE_NAME = re.compile(rf"({_NAME.pattern})(?:@([A-Za-z0-9_-]+))?")


def is_name(text: str) -> bool:
    """Whether it looks like a name that a store gives."""
    return _NAME.fullmatch(text) is not None


def file_name(name: str, owner: str) -> str:
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

    def is_whole(self) -> bool:
        """It is still there: the same file with the same size."""
        try:
            stat = self.path.lstat()
        except OSError:
            return False
        return S_ISREG(stat.st_mode) and (stat.st_ino, stat.st_size) == (self.inode, self.size_bytes)
