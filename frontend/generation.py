"""The loop: for each chunk, is it cancelled? slices, one Triton call a stage, output, event."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filmstrip import contract
from filmstrip.contract import ChunkParameters, Mode
from filmstrip.models import Cancelled, Complete, Progress
from filmstrip.wire import VIDEO_HEADER_BYTES

from . import logs, metrics, triton
from .array_plan import Source
from .events import EventLog
from .images import RequestImage
from .plan import ChunkPlan, Plan
from .relay import TensorRef
from .staging import OpenUpload, StagingBuffer, StagingLayout, open_buffers, open_uploads, stage_inputs
from .store import Draft, Store, StoredFile
from .tasks import run_to_end

log = logging.getLogger(__name__)

_NUM_BUFFERS = 2


@dataclass(frozen=True)
class Job:
    """What a generation works on, all of it checked.

    Attributes:
        plan: the chunks.
        uploads: the stored files that the plan reads.
        images: the images that the plan names.
        output: the file that the frames go to; the generation owns it.
    """

    plan: Plan
    uploads: Mapping[Source, StoredFile]
    images: Mapping[str, RequestImage]
    output: Draft


class Generation:
    """One generation, from the moment its request takes the slot to its last event."""

    def __init__(self, id: str, client: str = "") -> None:
        self.id = id
        self.client = client
        self.events = EventLog()
        self.cancel_requested = False
        self.unused: tuple[str, ...] = ()

    def cancel(self) -> None:
        """End it after the chunk under way, keeping what is made by then."""
        with logs.named(self.id):  # called by another request
            log.info("cancel was asked for")
        self.cancel_requested = True

    async def run(self, job: Job, server: triton.TritonClient, store: Store) -> Complete | Cancelled:
        """Make the video.

        Raises:
            FilmstripError: it could not be made; nothing is left behind.
        """
        plan = job.plan
        with job.output:
            async with contextlib.AsyncExitStack() as stack:
                layout = StagingLayout.of(plan)
                uploads = await stack.enter_async_context(open_uploads(job.uploads, store, server))
                num_buffers = min(_NUM_BUFFERS, len(plan.chunks))
                buffers = await stack.enter_async_context(open_buffers(layout.num_bytes, num_buffers, store, server))
                sequences = [await stack.enter_async_context(server.sequence(stage.id)) for stage in plan.chain.stages]
                await job.output.append(bytes(VIDEO_HEADER_BYTES))
                strip = _ChunkPipeline(job, layout, uploads, buffers, sequences)
                num_chunks, num_frames = await self._make_chunks(strip)
            # Here Triton's sequences are ended and its memory is given back.
            shape = plan.output._replace(frames=num_frames)
            if num_frames == 0:
                return Cancelled(0, len(plan.chunks), 0, seed=plan.seed, unused=plan.unused)
            job.output.write_header(shape)
            output = job.output.commit()
            if num_chunks < len(plan.chunks):
                return Cancelled(num_chunks, len(plan.chunks), num_frames, output.name, shape, plan.seed, plan.unused)
            chunk_size = plan.chain.pipeline.chunk_size
            return Complete(output.name, shape, num_frames, num_chunks, chunk_size, plan.seed, plan.unused)

    async def _make_chunks(self, strip: "_ChunkPipeline") -> tuple[int, int]:
        """Make chunks until they are all made or a cancel comes; chunks and frames made."""
        chunks = strip.plan.chunks
        num_frames = 0
        async with strip.working():
            for index, chunk in enumerate(chunks):
                if self.cancel_requested:
                    return index, num_frames
                began = time.perf_counter()
                await strip.make(index)
                latency = time.perf_counter() - began
                num_frames += chunk.keep
                metrics.CHUNK_SECONDS.labels(strip.plan.chain.pipeline.id).observe(latency)
                metrics.FRAMES.inc(chunk.keep)
                self.events.append(
                    Progress(index + 1, len(chunks), chunk.keep, round(latency, 6), round(chunk.keep / latency, 3))
                )
        return len(chunks), num_frames


class _ChunkPipeline:
    """The chunks of one generation on their way.

    While one is with the model, the next is prepared and the one before is written. Chunks take turns in the lanes.
    """

    def __init__(
        self,
        job: Job,
        layout: StagingLayout,
        uploads: Mapping[Source, OpenUpload],
        buffers: Sequence[StagingBuffer],
        sequences: Sequence[triton.ModelSequence],
    ) -> None:
        self.plan = job.plan
        self._job = job
        self._layout = layout
        self._uploads = uploads
        self._buffers = buffers
        self._sequences = sequences
        self._main = int(job.plan.chain.pre_processor is not None)
        self._prepared: asyncio.Task[dict[str, TensorRef]]
        self._writes: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """All frames made are written when it ends well; otherwise nothing goes on behind."""
        self._prepared = asyncio.create_task(self._prepare(0, None), name="prepare chunk 0")
        try:
            yield
            for write in self._writes:
                await write
        finally:
            self._prepared.cancel()
            for write in self._writes:
                write.cancel()
            await run_to_end(_settled(self._prepared, *self._writes))

    async def make(self, index: int) -> None:
        """Bring a chunk through its stages and begin to write its frames."""
        tensors = await self._prepared
        before = self._writes[-1] if self._writes else None
        if index + 1 < len(self.plan.chunks):
            self._prepared = asyncio.create_task(self._prepare(index + 1, before), name=f"prepare chunk {index + 1}")
        chunk = self.plan.chunks[index]
        frames = await self._run_stage(self._main, chunk, tensors)
        for stage in range(self._main + 1, len(self._sequences)):
            frames = await self._run_stage(stage, chunk, {frames.name: frames})
        view = self._buffer(index).view(frames.place)[: chunk.keep * chunk.frames.frame_bytes]
        write = asyncio.create_task(self._write(view, before), name=f"write chunk {index}")
        self._writes = [*self._writes[-1:], write]

    async def _prepare(self, index: int, buffer_freed_by: asyncio.Task[None] | None) -> dict[str, TensorRef]:
        """Gather a chunk's tensors in its lane, once that is free, and run the pre-processor on them."""
        if buffer_freed_by is not None:
            await asyncio.shield(buffer_freed_by)
        chunk = self.plan.chunks[index]
        tensors = await stage_inputs(chunk, self._buffer(index), self._uploads, self._job.images)
        for stage in range(self._main):
            name = contract.INPUT_VIDEO.name
            tensors[name] = await self._run_stage(stage, chunk, {name: tensors[name]})
        return tensors

    async def _run_stage(self, stage: int, chunk: ChunkPlan, tensors: Mapping[str, TensorRef]) -> TensorRef:
        """One Triton call; the frames that it answers with."""
        params = chunk.parameters
        if stage != self._main:  # a frame processor beside the pipeline is told the frames' geometry alone
            params = ChunkParameters(params.index, params.num_frames, params.height, params.width, Mode.VIDEO)
        buffer = self._buffer(params.index)
        place = buffer.slice(self._layout.stage_offsets[stage], chunk.frames.num_bytes)
        sequence = self._sequences[stage]
        answer = await sequence.chunk(params, tuple(tensors.values()), place, chunk.frames)
        for name, seconds in answer.report.get("stages", {}).items():
            metrics.STAGE_SECONDS.labels(sequence.model, name).observe(seconds)
        return TensorRef.of(contract.INPUT_VIDEO, tuple(chunk.frames), place)

    async def _write(self, view: memoryview, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.shield(before)
        await self._job.output.append(view)

    def _buffer(self, index: int) -> StagingBuffer:
        return self._buffers[index % _NUM_BUFFERS]


async def _settled(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
