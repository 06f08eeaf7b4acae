"""A chunk's arrays: found in the uploads, copied into a lane only where they are not already in one piece."""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filmstrip.errors import DiskFull, UnknownPath

from .arrays import Extent, Source, TensorPlan
from .call import Tensor
from .images import RequestImage
from .plan import ChunkPlan, Plan
from .regions import Lane, SharedMemoryRefused, Slice
from .store import Store, StoredFile, open_stored
from .tasks import in_thread
from .triton import Triton

log = logging.getLogger(__name__)


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
        """Leads processes of this machine to the file, also when its name is gone."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")


@contextlib.asynccontextmanager
async def open_uploads(
    files: Mapping[Source, StoredFile], store: Store, triton: Triton
) -> AsyncIterator[dict[Source, OpenUpload]]:
    """Open the uploads of a generation; those that lie in shared memory are registered with Triton whole."""
    async with contextlib.AsyncExitStack() as stack:
        opened: dict[Source, OpenUpload] = {}
        for source, file in files.items():
            stack.enter_context(store.holding(file))
            try:
                fd = open_stored(file.path)
            except FileNotFoundError:
                raise UnknownPath(f"{source}: {file.name} is gone", str(source)) from None
            stack.callback(os.close, fd)
            region = None
            if file.in_shm:
                try:
                    (region,) = await stack.enter_async_context(triton.registered(file.size_bytes, file.path))
                except SharedMemoryRefused as refusal:
                    log.warning("%s is copied chunk by chunk: %s", file.name, refusal)
            opened[source] = OpenUpload(file, fd, region)
        yield opened


@contextlib.asynccontextmanager
async def open_lanes(num_bytes: int, num_lanes: int, store: Store, triton: Triton) -> AsyncIterator[Sequence[Lane]]:
    """Lanes of this size: in shared memory that Triton maps, or else on disk, with arrays sent by gRPC."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            lanes = await _shm_lanes(num_bytes, num_lanes, store, triton, stack)
        except SharedMemoryRefused as refusal:
            log.warning("arrays go to Triton as gRPC tensors: %s", refusal)
            await stack.aclose()
            lanes = await _disk_lanes(num_bytes, num_lanes, store, stack)
        yield lanes


async def _shm_lanes(
    num_bytes: int, num_lanes: int, store: Store, triton: Triton, stack: contextlib.AsyncExitStack
) -> Sequence[Lane]:
    if not triton.takes_shared_memory:
        raise SharedMemoryRefused("switched off")
    try:
        lanes = await _made(num_bytes, [store.new_shm_path() for _ in range(num_lanes)], store, stack)
    except OSError as error:
        raise SharedMemoryRefused(f"{num_lanes} x {num_bytes} bytes: {error.strerror}") from None
    regions = await stack.enter_async_context(triton.registered(num_bytes, *(lane.path for lane in lanes)))
    for lane, region in zip(lanes, regions, strict=True):
        lane.region = region
    return lanes


async def _disk_lanes(num_bytes: int, num_lanes: int, store: Store, stack: contextlib.AsyncExitStack) -> Sequence[Lane]:
    try:
        return await _made(num_bytes, [store.new_work_path() for _ in range(num_lanes)], store, stack)
    except OSError as error:
        raise DiskFull(f"the server's disk has no room for the arrays of a chunk: {error.strerror}") from None


async def _made(num_bytes: int, paths: list[Path], store: Store, stack: contextlib.AsyncExitStack) -> Sequence[Lane]:
    """All lanes at once: most of it is the kernel clearing memory."""
    lanes = [Lane(path, num_bytes, store.file_mode) for path in paths]
    stack.push_async_callback(_each, [lane.close for lane in lanes])  # first: what is cancelled is made all the same
    await _each([lane.open for lane in lanes])
    return lanes


async def _each(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls in threads; returns, or raises the first error, when all are done."""
    for failure in await asyncio.gather(*map(in_thread, calls), return_exceptions=True):
        if failure is not None:
            raise failure


@dataclass(frozen=True)
class LaneLayout:
    """Where arrays lie within a lane: all inputs of a chunk first, then the frames of each stage.

    Attributes:
        stage_offsets: where the frames of each stage begin.
        num_bytes: of the lane.
    """

    stage_offsets: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, plan: Plan) -> "LaneLayout":
        """The layout that holds every chunk of a plan."""
        inputs = max(_aligned(chunk.input_bytes) + 64 * _num_arrays(chunk) for chunk in plan.chunks)
        frames = max(_aligned(chunk.frames.num_bytes) for chunk in plan.chunks)
        num_stages = len(plan.chain.stages)
        return cls(tuple(inputs + stage * frames for stage in range(num_stages)), inputs + num_stages * frames)


async def gather(
    chunk: ChunkPlan, lane: Lane, uploads: Mapping[Source, OpenUpload], images: Mapping[str, RequestImage]
) -> dict[str, Tensor]:
    """A chunk's tensors by name, their bytes read into the lane where need be.

    Raises:
        UnknownPath: an upload was truncated under our hands.
    """
    tensors, position = await in_thread(_gather_arrays, chunk, lane, uploads)
    for plan in chunk.images:
        place = lane.slice(position, plan.num_bytes)
        tensors[plan.spec.name] = Tensor.of(plan.spec, plan.shape, place)
        for source in plan.sources:
            image = images[source]
            await image.write(lane.slice(position, math.prod(image.shape)))
            position += math.prod(image.shape)
        position = _aligned(position)
    return tensors


def _gather_arrays(chunk: ChunkPlan, lane: Lane, uploads: Mapping[Source, OpenUpload]) -> tuple[dict[str, Tensor], int]:
    """The tensors that come from uploads, and where in the lane those of images may follow."""
    tensors: dict[str, Tensor] = {}
    position = 0
    for array in chunk.tensors:
        place = _in_place(array, lane, uploads)
        if place is None:
            place = lane.slice(position, array.num_bytes)
            _read(array.extents, lane.view(place), uploads)
            position += _aligned(array.num_bytes)
        tensors[array.spec.name] = Tensor.of(array.spec, array.shape, place)
    return tensors, position


def _in_place(array: TensorPlan, lane: Lane, uploads: Mapping[Source, OpenUpload]) -> Slice | None:
    """The array where it lies in the upload, if it is in one piece there and needs no copy to reach Triton."""
    if len(array.extents) != 1:
        return None
    extent = array.extents[0]
    upload = uploads[extent.source]
    if upload.region is None and lane.region is not None:
        return None
    if os.fstat(upload.fd).st_size < upload.file.size_bytes:  # mapped by Triton, it would be killed by SIGBUS
        raise UnknownPath(f"{extent.source}: {upload.file.name} was truncated", str(extent.source))
    return Slice(upload.path, upload.region, extent.offset, extent.num_bytes)


def _read(extents: tuple[Extent, ...], target: memoryview, uploads: Mapping[Source, OpenUpload]) -> None:
    for extent in extents:
        upload = uploads[extent.source]
        part, target = target[: extent.num_bytes], target[extent.num_bytes :]
        offset = extent.offset
        while part:
            count = os.preadv(upload.fd, [part], offset)
            if count == 0:
                raise UnknownPath(f"{extent.source}: {upload.file.name} was truncated", str(extent.source))
            part, offset = part[count:], offset + count


def _num_arrays(chunk: ChunkPlan) -> int:
    return len(chunk.tensors) + len(chunk.images)


def _aligned(num_bytes: int) -> int:
    """Rounded up to a cache line."""
    return -(-num_bytes // 64) * 64
