"""Staging buffers: the memory that holds a chunk's arrays on the way to and from Triton.

A generation has two buffers. While the model works on chunk k in one of them, the other first holds the frames of
chunk k-1, which are written to the output, and then takes the inputs of chunk k+1. A buffer is one file: in shared
memory if Triton has registered it, else in the data directory, from where the relay sends its contents as gRPC
tensors. Arrays that lie in one piece in an upload are not copied if Triton can read them there.
"""

import asyncio
import contextlib
import logging
import math
import mmap
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filmstrip.errors import DiskFull, UnknownPath

from .array_plan import Extent, TensorPlan, UploadField
from .images import RequestImage
from .inference import FileSlice, TensorRef
from .plan import ChunkPlan, Plan
from .store import Store, StoredFile, open_stored
from .tasks import in_thread
from .triton import SharedMemoryRefused, TritonClient

log = logging.getLogger(__name__)


class StagingBuffer:
    """A file of fixed size, mapped into memory; it exists from `open` to `close`."""

    def __init__(self, path: Path, num_bytes: int, mode: int) -> None:
        self.path = path
        self._mode = mode
        self.region: str | None = None
        self._num_bytes = num_bytes
        self._fd: int | None = None
        self._mapped: mmap.mmap | None = None

    def open(self) -> None:
        """Create the file."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, self._mode)  # whatever the umask: Triton's user must be able to map it
        os.posix_fallocate(self._fd, 0, self._num_bytes)  # a full tmpfs fails here, not with SIGBUS later
        self._mapped = mmap.mmap(self._fd, self._num_bytes)

    def slice(self, offset: int, num_bytes: int) -> FileSlice:
        """Name some of its bytes."""
        return FileSlice(self.path, self.region, offset, num_bytes)

    def view(self, part: FileSlice) -> memoryview:
        """The bytes of a slice."""
        assert self._mapped is not None
        return memoryview(self._mapped)[part.offset : part.offset + part.num_bytes]

    def close(self) -> None:
        """Remove the file; its memory is freed when Triton has unmapped it and no view is left. Never truncated."""
        if self._fd is None:
            return
        os.close(self._fd)
        self._fd = None
        self.path.unlink(missing_ok=True)
        if self._mapped is not None:
            with contextlib.suppress(BufferError):
                self._mapped.close()


@dataclass(frozen=True)
class OpenUpload:
    """An upload that a generation reads.

    Attributes:
        file: in the store.
        fd: open for reading.
        region: its name in Triton when the whole file is registered there.
    """

    file: StoredFile
    fd: int
    region: str | None

    @property
    def path(self) -> Path:
        """A path by which other processes of this machine can open the file, even after it was deleted."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")


@contextlib.asynccontextmanager
async def open_uploads(
    files: Mapping[UploadField, StoredFile], triton: TritonClient
) -> AsyncIterator[Mapping[UploadField, OpenUpload]]:
    """Open the uploads of a generation; those that lie in shared memory are registered with Triton whole."""
    async with contextlib.AsyncExitStack() as stack:
        opened: dict[UploadField, OpenUpload] = {}
        for field, file in files.items():
            try:
                fd = open_stored(file.path)
            except FileNotFoundError:
                raise UnknownPath(f"{field}: {file.name} is gone", str(field)) from None
            stack.callback(os.close, fd)
            region = None
            if file.in_shm:
                try:
                    (region,) = await stack.enter_async_context(triton.registered(file.size_bytes, file.path))
                except SharedMemoryRefused as refusal:
                    log.warning("%s is copied chunk by chunk: %s", file.name, refusal)
            opened[field] = OpenUpload(file, fd, region)
        yield opened


@contextlib.asynccontextmanager
async def open_buffers(
    num_bytes: int, num_buffers: int, store: Store, triton: TritonClient
) -> AsyncIterator[Sequence[StagingBuffer]]:
    """Buffers of this size: in shared memory that Triton maps, or else on disk, with arrays sent by gRPC."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            buffers = await _open_in_shm(num_bytes, num_buffers, store, triton, stack)
        except SharedMemoryRefused as refusal:
            log.warning("arrays go to Triton as gRPC tensors: %s", refusal)
            await stack.aclose()
            buffers = await _open_on_disk(num_bytes, num_buffers, store, stack)
        yield buffers


async def _open_in_shm(
    num_bytes: int, num_buffers: int, store: Store, triton: TritonClient, stack: contextlib.AsyncExitStack
) -> Sequence[StagingBuffer]:
    if not triton.takes_shared_memory:
        raise SharedMemoryRefused("switched off")
    try:
        buffers = await _opened(num_bytes, [store.new_shm_path() for _ in range(num_buffers)], store, stack)
    except OSError as error:
        raise SharedMemoryRefused(f"{num_buffers} x {num_bytes} bytes: {error.strerror}") from None
    regions = await stack.enter_async_context(triton.registered(num_bytes, *(buffer.path for buffer in buffers)))
    for buffer, region in zip(buffers, regions, strict=True):
        buffer.region = region
    return buffers


async def _open_on_disk(
    num_bytes: int, num_buffers: int, store: Store, stack: contextlib.AsyncExitStack
) -> Sequence[StagingBuffer]:
    try:
        return await _opened(num_bytes, [store.new_work_path() for _ in range(num_buffers)], store, stack)
    except OSError as error:
        raise DiskFull(f"the server's disk has no room for the arrays of a chunk: {error.strerror}") from None


async def _opened(
    num_bytes: int, paths: list[Path], store: Store, stack: contextlib.AsyncExitStack
) -> Sequence[StagingBuffer]:
    """Open all buffers at once: most of the time is the kernel clearing memory."""
    buffers = [StagingBuffer(path, num_bytes, store.file_mode) for path in paths]
    # Before they are opened: threads go on after a cancellation.
    stack.push_async_callback(_each, [buffer.close for buffer in buffers])
    await _each([buffer.open for buffer in buffers])
    return buffers


async def _each(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls in threads; returns, or raises the first error, when all are done."""
    for failure in await asyncio.gather(*map(in_thread, calls), return_exceptions=True):
        if failure is not None:
            raise failure


def buffer_layout(plan: Plan) -> tuple[tuple[int, ...], int]:
    """Where the frames of each pipeline begin in a buffer, after all inputs of a chunk, and the size of a buffer."""
    inputs = max(_aligned(chunk.input_bytes) + 64 * _num_arrays(chunk) for chunk in plan.chunks)
    frames = max(_aligned(chunk.frames_shape.num_bytes) for chunk in plan.chunks)
    num_pipelines = len(plan.chain.pipelines)
    return tuple(inputs + place * frames for place in range(num_pipelines)), inputs + num_pipelines * frames


async def stage_inputs(
    chunk: ChunkPlan,
    buffer: StagingBuffer,
    uploads: Mapping[UploadField, OpenUpload],
    images: Mapping[str, RequestImage],
) -> dict[str, TensorRef]:
    """A chunk's tensors by name; bytes that Triton cannot read in the upload are copied to the buffer.

    Raises:
        UnknownPath: an upload was truncated meanwhile.
    """
    tensors, position = await in_thread(_gather_arrays, chunk, buffer, uploads)
    for plan in chunk.images:
        place = buffer.slice(position, plan.num_bytes)
        tensors[plan.spec.name] = TensorRef(plan.spec, plan.shape, place)
        for name in plan.names:
            image = images[name]
            await image.write(buffer.slice(position, math.prod(image.shape)))
            position += math.prod(image.shape)
        position = _aligned(position)
    return tensors


def _gather_arrays(
    chunk: ChunkPlan, buffer: StagingBuffer, uploads: Mapping[UploadField, OpenUpload]
) -> tuple[dict[str, TensorRef], int]:
    """The tensors that come from uploads, and the offset in the buffer where those of images may follow."""
    tensors: dict[str, TensorRef] = {}
    position = 0
    for array in chunk.tensors:
        place = _in_place(array, buffer, uploads)
        if place is None:
            place = buffer.slice(position, array.num_bytes)
            _read(array.extents, buffer.view(place), uploads)
            position += _aligned(array.num_bytes)
        tensors[array.spec.name] = TensorRef(array.spec, array.shape, place)
    return tensors, position


def _in_place(array: TensorPlan, buffer: StagingBuffer, uploads: Mapping[UploadField, OpenUpload]) -> FileSlice | None:
    """The array's bytes in the upload, if they are in one piece there and Triton can read them without a copy."""
    if len(array.extents) != 1:
        return None
    extent = array.extents[0]
    upload = uploads[extent.upload]
    if upload.region is None and buffer.region is not None:
        return None
    if os.fstat(upload.fd).st_size < upload.file.size_bytes:  # Triton maps it and would die of SIGBUS
        raise UnknownPath(f"{extent.upload}: {upload.file.name} was truncated", str(extent.upload))
    return FileSlice(upload.path, upload.region, extent.offset, extent.num_bytes)


def _read(extents: tuple[Extent, ...], target: memoryview, uploads: Mapping[UploadField, OpenUpload]) -> None:
    for extent in extents:
        upload = uploads[extent.upload]
        part, target = target[: extent.num_bytes], target[extent.num_bytes :]
        offset = extent.offset
        while part:
            count = os.preadv(upload.fd, [part], offset)
            if count == 0:
                raise UnknownPath(f"{extent.upload}: {upload.file.name} was truncated", str(extent.upload))
            part, offset = part[count:], offset + count


def _num_arrays(chunk: ChunkPlan) -> int:
    return len(chunk.tensors) + len(chunk.images)


def _aligned(num_bytes: int) -> int:
    """Rounded up to a cache line."""
    return -(-num_bytes // 64) * 64
