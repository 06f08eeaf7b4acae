"""Room on a disk, set aside before it is needed."""

import ctypes
import errno
import functools
import os

_KEEP_SIZE = 1  # of fallocate(2)
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def preallocate(fd: int, num_bytes: int) -> bool:
    """Have the file system keep room for a file of so many bytes, whose size stays as it is; False where it can't.

    `os.posix_fallocate` would change the size, and write all of it where the file system can't do better.

    Raises:
        OSError: there is no such room.
    """
    if _fallocate()(fd, _KEEP_SIZE, 0, num_bytes) == 0:
        return True
    error = ctypes.get_errno()
    if error in _CANNOT:
        return False
    raise OSError(error, os.strerror(error))


def release(fd: int, used_bytes: int, preallocated_bytes: int) -> None:
    """Give back the room that was set aside beyond what is used; some file systems do so only when a file shrinks."""
    os.ftruncate(fd, preallocated_bytes)
    os.ftruncate(fd, used_bytes)


@functools.cache
def _fallocate() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
