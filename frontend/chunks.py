"""The chunks of one generation: three tasks stage, generate and write them, and share two buffers.

While chunk k is with the model in one buffer, the frames of chunk k-1 are written from the other, which then takes
the inputs of chunk k+1. A buffer is one file: in shared memory if Triton has registered it, else in the data
directory, from where the relay sends its contents as gRPC tensors. Arrays that lie in one piece in an upload are not
copied if Triton can read them there.
"""

import asyncio
import contextlib
import functools
import logging
import math
import mmap
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filmstrip import contract
from filmstrip.contract import ChunkParameters, Mode
from filmstrip.errors import DiskFull, UnknownPath
from filmstrip.models import Progress

from . import metrics
from .array_plan import Extent, TensorPlan, UploadField
from .images import RequestImage
from .inference import FileSlice, TensorRef
from .plan import ChunkPlan, Plan
from .request_check import CheckedRequest
from .store import Draft, Store, StoredFile, open_stored
from .tasks import in_thread
from .triton import ModelSequence, SharedMemoryRefused, TritonClient

log = logging.getLogger(__name__)

_NUM_BUFFERS = 2  # double buffering


class StagingBuffer:
    """A file of fixed size, mapped into memory; it exists from `open` to `close`.

    Attributes:
        path: of the file; set by `open`.
        region: its name in Triton; None if it is not registered there.
    """

    def __init__(self, num_bytes: int, mode: int) -> None:
        self.path = Path()
        self.region: str | None = None
        self._num_bytes = num_bytes
        self._mode = mode
        self._fd: int | None = None
        self._mapped: mmap.mmap | None = None

    def open(self, new_path: Callable[[], Path]) -> None:
        """Create the file, at a new path."""
        self.path = new_path()
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
    buffers = [StagingBuffer(num_bytes, store.file_mode) for _ in range(num_buffers)]
    async with contextlib.AsyncExitStack() as stack:
        # Before they are opened: threads go on after a cancellation.
        stack.push_async_callback(_in_threads, [buffer.close for buffer in buffers])
        try:
            await stack.enter_async_context(_in_shared_memory(buffers, num_bytes, store, triton))
        except SharedMemoryRefused as refusal:
            log.warning("arrays go to Triton as gRPC tensors: %s", refusal)
            await _in_threads([buffer.close for buffer in buffers])
            try:
                await _in_threads([functools.partial(buffer.open, store.new_work_path) for buffer in buffers])
            except OSError as error:
                message = f"the server's disk has no room for the arrays of a chunk: {error.strerror}"
                raise DiskFull(message) from None
        yield buffers


@contextlib.asynccontextmanager
async def _in_shared_memory(
    buffers: Sequence[StagingBuffer], num_bytes: int, store: Store, triton: TritonClient
) -> AsyncIterator[None]:
    """Open the buffers in shared memory, and have them registered with Triton until the context ends."""
    if not triton.takes_shared_memory:
        raise SharedMemoryRefused("switched off")
    try:
        await _in_threads([functools.partial(buffer.open, store.new_shm_path) for buffer in buffers])
    except OSError as error:
        raise SharedMemoryRefused(f"{len(buffers)} x {num_bytes} bytes: {error.strerror}") from None
    async with triton.registered(num_bytes, *(buffer.path for buffer in buffers)) as regions:
        for buffer, region in zip(buffers, regions, strict=True):
            buffer.region = region
        yield


async def _in_threads(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at once: most of their time is the kernel clearing memory.

    Returns, or raises the first error, when all are done.
    """
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


# -- The three tasks ---------------------------------------------------------------------------------------------------


class RunningGeneration(Protocol):
    """What the chunks need of their generation."""

    cancel_requested: bool
    """No other chunk is to be started."""

    def on_generated(self, progress: Progress) -> None:
        """A chunk is generated."""

    def on_written(self) -> None:
        """The frames of a chunk are written to the output."""


class ChunkRunner:
    """Runs the chunks of one generation.

    Attributes:
        num_chunks: chunks generated so far.
        num_frames: pixel frames generated so far.
    """

    def __init__(
        self,
        generation: RunningGeneration,
        request: CheckedRequest,
        output: Draft,
        *,
        frames_offsets: Sequence[int],
        uploads: Mapping[UploadField, OpenUpload],
        buffers: Sequence[StagingBuffer],
        sequences: Sequence[ModelSequence],
    ) -> None:
        self.num_chunks = self.num_frames = 0
        self._generation = generation
        self._plan = request.plan
        self._images = request.images
        self._output = output
        self._frames_offsets = frames_offsets
        self._uploads = uploads
        self._sequences = sequences
        self._write_failed = asyncio.Event()
        self._pipeline_index = int(request.plan.chain.pre_processor is not None)
        self._free: asyncio.Queue[StagingBuffer] = asyncio.Queue(len(buffers))
        self._staged: asyncio.Queue[tuple[ChunkPlan, StagingBuffer, Collection[TensorRef]]] = asyncio.Queue(1)
        self._generated: asyncio.Queue[tuple[StagingBuffer, FileSlice] | None] = asyncio.Queue(1)
        for buffer in buffers:
            self._free.put_nowait(buffer)

    async def run(self) -> None:
        """Generate chunks until all are done or a cancel is requested; returns when their frames are written.

        Raises:
            FilmstripError: a chunk could not be staged, generated or written.
        """
        failure = await self._run_tasks()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame: a cycle, which would keep the buffers mapped

    async def _run_tasks(self) -> Exception | None:
        """What failed first, if anything did; failures that follow from it are of no interest."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_chunks(), name="write chunks")
                generating = tasks.create_task(self._generate_chunks(), name="generate chunks")
                staging = tasks.create_task(self._stage_chunks(), name="stage chunks")
                # After a cancel or a failed write, the next chunk is not needed.
                generating.add_done_callback(lambda _: staging.cancel())
        except ExceptionGroup as failures:
            first: Exception = failures.exceptions[0]
            failures.__traceback__ = None  # it holds TaskGroup's frame, which holds `failures`: a cycle
            return first
        return None

    async def _stage_chunks(self) -> None:
        for chunk in self._plan.chunks:
            buffer = await self._free.get()
            try:
                inputs = await self._stage(chunk, buffer)
            except Exception:
                await self._staged.join()  # the chunks before this one are finished first
                raise
            await self._staged.put((chunk, buffer, inputs))

    async def _stage(self, chunk: ChunkPlan, buffer: StagingBuffer) -> Collection[TensorRef]:
        """Put a chunk's inputs in a buffer and run the pre-processor on them; the inputs of the pipeline."""
        inputs = await stage_inputs(chunk, buffer, self._uploads, self._images)
        name = contract.INPUT_VIDEO.name
        for index in range(self._pipeline_index):
            inputs[name] = await self._call(index, chunk, buffer, [inputs[name]])
        return inputs.values()

    async def _generate_chunks(self) -> None:
        num_chunks = len(self._plan.chunks)
        while self.num_chunks < num_chunks and not (self._generation.cancel_requested or self._write_failed.is_set()):
            began = time.perf_counter()
            chunk, buffer, inputs = await self._staged.get()
            if self._write_failed.is_set():
                break
            kept = await self._generate(chunk, buffer, inputs)
            await self._generated.put((buffer, kept))
            latency = time.perf_counter() - began
            num_frames = chunk.num_kept
            self.num_chunks += 1
            self.num_frames += num_frames
            self._generation.on_generated(
                Progress(self.num_chunks, num_chunks, num_frames, round(latency, 6), round(num_frames / latency, 3))
            )
            self._staged.task_done()
        await self._generated.put(None)

    async def _generate(self, chunk: ChunkPlan, buffer: StagingBuffer, inputs: Collection[TensorRef]) -> FileSlice:
        """Run the pipeline and the post-processor; the bytes that go to the output."""
        video = await self._call(self._pipeline_index, chunk, buffer, inputs)
        for index in range(self._pipeline_index + 1, len(self._sequences)):
            video = await self._call(index, chunk, buffer, [video])
        return buffer.slice(video.place.offset, chunk.num_kept * chunk.frames_shape.frame_bytes)

    async def _call(
        self, index: int, chunk: ChunkPlan, buffer: StagingBuffer, inputs: Collection[TensorRef]
    ) -> TensorRef:
        """Make one Triton call, for pipeline `index` of the chain; its frames, as an input video for the next one."""
        params, shape = chunk.parameters, chunk.frames_shape
        if index != self._pipeline_index:  # a pre- or post-processor only gets the size of the frames
            params = ChunkParameters(params.index, params.num_frames, params.height, params.width, Mode.VIDEO)
        place = buffer.slice(self._frames_offsets[index], shape.num_bytes)
        sequence = self._sequences[index]
        stage_seconds = await sequence.chunk(params, inputs, TensorRef(contract.FRAMES, tuple(shape), place))
        for name, seconds in stage_seconds.items():
            metrics.STAGE_SECONDS.labels(sequence.model, name).observe(seconds)
        return TensorRef(contract.INPUT_VIDEO, tuple(shape), place)

    async def _write_chunks(self) -> None:
        """Write the frames of each chunk; a failure is raised only after the chunk in progress, which is not cancelled.

        A model may take minutes to see that its chunk is cancelled, and the end of its sequence would wait for that.
        """
        try:
            while (generated := await self._generated.get()) is not None:
                buffer, kept = generated
                try:
                    await self._output.append(buffer.view(kept))
                finally:
                    self._free.put_nowait(buffer)
                self._generation.on_written()
        except Exception:
            self._write_failed.set()
            while (generated := await self._generated.get()) is not None:  # no other task may wait for this one
                self._free.put_nowait(generated[0])
            raise


@contextlib.asynccontextmanager
async def open_chunks(
    generation: RunningGeneration, request: CheckedRequest, output: Draft, store: Store, triton: TritonClient
) -> AsyncIterator[ChunkRunner]:
    """All that the chunks need: uploads, buffers, and a sequence for each pipeline of the chain.

    When the context has ended, Triton's sequences are ended and its shared memory is released.

    Args:
        generation: whose chunks they are.
        request: to serve.
        output: takes the frames.
        store: where the files are.
        triton: where the models are.
    """
    plan = request.plan
    frames_offsets, num_bytes = buffer_layout(plan)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        uploads = await enter(open_uploads(request.files, triton))
        buffers = await enter(open_buffers(num_bytes, min(_NUM_BUFFERS, len(plan.chunks)), store, triton))
        sequences = [await enter(triton.sequence(pipeline.id)) for pipeline in plan.chain.pipelines]
        yield ChunkRunner(
            generation,
            request,
            output,
            frames_offsets=frames_offsets,
            uploads=uploads,
            buffers=buffers,
            sequences=sequences,
        )
