"""Memory that a chunk's arrays lie in on their way to Triton and back.

A generation has two lanes, used by even and odd chunks in turn, so that one chunk can be prepared and another
written to the output while a third is with the model. A lane is one file: in shared memory where Triton has
registered it, else in the data directory, from where the relay (`frontend.relay`) carries it as gRPC tensors.
"""

import contextlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path


class SharedMemoryRefused(Exception):
    """There is no room in shared memory, or Triton does not take it."""


@dataclass(frozen=True)
class Slice:
    """Bytes of a file: where an array lies.

    Attributes:
        path: the file.
        region: the name under which Triton has registered the file, None where it hasn't.
        offset: in bytes from the start of the file; need not be aligned.
        num_bytes: of the array.
    """

    path: Path
    region: str | None
    offset: int
    num_bytes: int


class Lane:
    """A file of fixed size, mapped into memory; it takes up nothing before `open` and after `close`."""

    def __init__(self, path: Path, num_bytes: int, mode: int) -> None:
        self.path = path
        self._mode = mode
        self.region: str | None = None
        self._num_bytes = num_bytes
        self._fd: int | None = None
        self._mapped: mmap.mmap | None = None

    def open(self) -> None:
        """Make the file."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, self._mode)  # whatever the umask: Triton's user must be able to map it
        os.posix_fallocate(self._fd, 0, self._num_bytes)  # a full tmpfs says so here, not by SIGBUS later
        self._mapped = mmap.mmap(self._fd, self._num_bytes)

    def slice(self, offset: int, num_bytes: int) -> Slice:
        """Name some of its bytes."""
        return Slice(self.path, self.region, offset, num_bytes)

    def view(self, part: Slice) -> memoryview:
        """Those bytes themselves."""
        assert self._mapped is not None
        return memoryview(self._mapped)[part.offset : part.offset + part.num_bytes]

    def close(self) -> None:
        """Remove the file; its memory goes when Triton unmaps it and no view is left. It is never truncated."""
        if self._fd is None:
            return
        os.close(self._fd)
        self._fd = None
        self.path.unlink(missing_ok=True)
        if self._mapped is not None:
            with contextlib.suppress(BufferError):
                self._mapped.close()
