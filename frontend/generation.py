"""One generation, from a checked request to its last event: its record, its slot, and its chunks.

Three tasks hand its chunks on through two buffers: while chunk k is with the model in one, the frames of chunk k-1 are
written from the other, which then takes the inputs of chunk k+1.
"""

import asyncio
import contextlib
import functools
import logging
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from filmstrip import contract
from filmstrip.contract import ChunkParameters, Mode
from filmstrip.errors import ClientGone, FilmstripError, InternalError, Restarted
from filmstrip.geometry import MAX_FPS_DENOMINATOR
from filmstrip.models import LAST_EVENTS, Cancelled, Complete, ErrorEvent, Event, Preview, Progress, State
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from . import logs, metrics
from .array_plan import UploadField
from .events import EventLog, EventSink, NumberedEvent
from .inference import FileSlice, TensorRef
from .jobs import Record
from .model_registry import ModelRegistry
from .plan import ChunkPlan
from .previews import PreviewEncoder, Previews
from .records import Records
from .request_check import CheckedRequest
from .schema import PreviewOptions
from .staging import OpenUpload, StagingBuffer, buffer_layout, open_buffers, open_uploads, stage_inputs
from .store import Draft, Kind, Store
from .triton import ModelSequence, TritonClient

log = logging.getLogger(__name__)

RESTARTED = "the server was restarted while the generation ran"

_NUM_BUFFERS = 2  # double buffering
_WRITE_RECORD_S = 1.0


class GenerationRun:
    """One attempt to make a generation, from its plan to its last event.

    Attributes:
        id: the client's or a random one; names it in logs and in `X-Generation-Id`.
        client: who asked for it.
        events: takes what happens.
        previews: makes the previews; None if there are none, and before the start.
        cancel_requested: no other chunk is to be started.
        slot: where it runs; None before the start.

    Args:
        video_fps: frames per second of the output's video files; None for those of the input video, if there is one.
        preview_options: which previews to make; None for none.
    """

    def __init__(
        self,
        id: str,
        client: str,
        events: EventSink,
        *,
        video_fps: float | None = None,
        preview_options: PreviewOptions | None = None,
    ) -> None:
        self.id = id
        self.client = client
        self.events = events
        self.previews: Previews | None = None
        self.cancel_requested = False
        self.slot: Slot | None = None
        self._video_fps = video_fps
        self._preview_options = preview_options
        self._output: tuple[Draft, VideoShape] | None = None
        self._task: asyncio.Task[Complete | Cancelled] | None = None
        self._abort_reason: FilmstripError | None = None

    def start(
        self,
        request: CheckedRequest,
        output: Draft,
        triton: TritonClient,
        store: Store,
        encoder: PreviewEncoder,
        *,
        on_end: Callable[[], None],
    ) -> None:
        """Generate the video in a task.

        Args:
            request: to serve.
            output: the file for the frames; from now on the generation owns it.
            triton: where the models are.
            store: where the files are.
            encoder: makes previews.
            on_end: called at the end, just before the last event is sent.
        """
        self._output = output, request.plan.output
        if self._video_fps is not None:
            output.fps = Fraction(self._video_fps).limit_denominator(MAX_FPS_DENOMINATOR)
        elif UploadField.INPUT in request.files:
            output.fps = request.files[UploadField.INPUT].fps
        if self._preview_options is not None:
            self.events = self.previews = Previews(
                self._preview_options,
                self.events,
                encoder,
                store,
                client=self.client,
                path=output.path,
                shape=request.plan.output,
            )
        self._task = asyncio.create_task(self._run(request, output, triton, store), name="generation")
        self._task.add_done_callback(functools.partial(self._end, store, output, on_end))

    def cancel(self) -> None:
        """End it after the current chunk and keep the frames made by then."""
        with logs.named(self.id):  # called by another request
            log.info("cancel requested")
        self.cancel_requested = True

    def abort(self, reason: FilmstripError) -> None:
        """End it as soon as the model stops; the reason of the first call becomes its last event."""
        if self._task is not None and not self._task.done():
            self._abort_reason = self._abort_reason or reason
            self._task.cancel()

    @property
    def output(self) -> tuple[Draft, VideoShape] | None:
        """The output and the shape that it is to have; None before the start."""
        return self._output

    def frames_so_far(self) -> tuple[Path, VideoShape] | None:
        """The output's file, with a header and frames, and the shape of those that are written; None if none are."""
        if self._output is None:
            return None
        output, shape = self._output
        num_frames = (output.written_bytes - VIDEO_HEADER_BYTES) // shape.frame_bytes
        return (output.path, shape._replace(frames=num_frames)) if num_frames > 0 else None

    def on_written(self) -> None:
        """More frames are written to the output."""
        frames = self.frames_so_far()
        if self.previews is not None and frames is not None:
            self.previews.on_written(frames[1].frames)

    async def wait(self, timeout_s: float) -> None:
        """Wait for its end, but no longer than `timeout_s`."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)

    async def _run(
        self, request: CheckedRequest, output: Draft, triton: TritonClient, store: Store
    ) -> Complete | Cancelled:
        plan = request.plan
        with output:
            async with contextlib.AsyncExitStack() as stack:
                enter = stack.enter_async_context
                frames_offsets, num_bytes = buffer_layout(plan)
                num_buffers = min(_NUM_BUFFERS, len(plan.chunks))
                uploads = await enter(open_uploads(request.files, triton))
                buffers = await enter(open_buffers(num_bytes, num_buffers, store, triton))
                sequences = [await enter(triton.sequence(pipeline.id)) for pipeline in plan.chain.pipelines]
                await output.append(bytes(VIDEO_HEADER_BYTES))
                chunks = ChunkRunner(
                    self,
                    request,
                    output,
                    frames_offsets=frames_offsets,
                    uploads=uploads,
                    buffers=buffers,
                    sequences=sequences,
                )
                await chunks.run()
                num_chunks, num_frames = chunks.num_chunks, chunks.num_frames
            # By now Triton's sequences are ended and its shared memory is released.
            if self.previews is not None:
                await self.previews.finish()
            shape = plan.output._replace(frames=num_frames)
            if num_frames == 0:
                return Cancelled(
                    chunk=0, total_chunks=len(plan.chunks), frames_completed=0, seed=plan.seed, unused=plan.unused
                )
            output.write_header(shape)
            file = output.commit()
            if num_chunks < len(plan.chunks):
                return Cancelled(
                    chunk=num_chunks,
                    total_chunks=len(plan.chunks),
                    frames_completed=num_frames,
                    output_path=file.name,
                    video_shape=shape,
                    seed=plan.seed,
                    unused=plan.unused,
                )
            return Complete(
                output_path=file.name,
                video_shape=shape,
                num_frames=num_frames,
                num_chunks=num_chunks,
                chunk_size=plan.chain.pipeline.chunk_size,
                seed=plan.seed,
                unused=plan.unused,
            )

    def _end(
        self, store: Store, output: Draft, on_end: Callable[[], None], task: asyncio.Task[Complete | Cancelled]
    ) -> None:
        """The one end of every generation, even of one that was aborted before its task began.

        Whatever fails here, `on_end` is called and the last event is sent.
        """
        last: Complete | Cancelled | ErrorEvent = _internal_error()
        try:
            last = self._last_event(task)
            outcome = {Complete: "complete", Cancelled: "cancelled"}.get(type(last), getattr(last, "code", ""))
            metrics.GENERATIONS.labels(outcome).inc()
            log.info("ended: %s", outcome)
            store.discard(output)
        except Exception:
            log.exception("cleaning up after a generation failed")
        finally:
            self._task = None
            on_end()
            self.events.append(last)
            _clear_frames(task)

    def _last_event(self, task: asyncio.Task[Complete | Cancelled]) -> Complete | Cancelled | ErrorEvent:
        if task.cancelled():
            reason = self._abort_reason or ClientGone("the client is gone")
            return ErrorEvent(reason.message, reason.code)
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, FilmstripError):
            log.warning("%s: %s", error.code, error.message)
            return ErrorEvent(error.message, error.code)
        log.error("a generation failed", exc_info=error)
        return _internal_error()


def _internal_error() -> ErrorEvent:
    return ErrorEvent("internal error; see the server's log", InternalError.code)


def _clear_frames(task: asyncio.Task[Complete | Cancelled]) -> None:
    """Let go of what the frames of a task that failed hold: `TaskGroup` leaves reference cycles."""
    error: BaseException | None
    try:
        error = task.exception()
    except asyncio.CancelledError as cancelled:
        error = cancelled
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


class Slot:
    """One Triton: holds at most one generation.

    Attributes:
        name: in metrics and in the health of the server.
        shown_name: in events and log lines; None if there is only one slot.
        registry: of the Triton's models.
        current: the run that has the slot; it may not have been started yet.
        awaits_triton: nothing that waits is started here before Triton is ready.
        on_free: called when the slot has become free.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        store: Store,
        encoder: PreviewEncoder,
        *,
        name: str = "0",
        shown_name: str | None = None,
    ) -> None:
        self.name = name
        self.shown_name = shown_name
        self.registry = registry
        self._store = store
        self._encoder = encoder
        self.current: GenerationRun | None = None
        self.awaits_triton = False
        self.on_free: Callable[[], None] = lambda: None
        metrics.SLOTS_IN_USE.labels(name).set(0)

    @property
    def is_free(self) -> bool:
        """No generation has the slot."""
        return self.current is None

    def take(self, run: GenerationRun) -> None:
        """Give the slot to a run."""
        if self.current is not None:
            raise RuntimeError("another generation has the slot")
        self.current = run
        metrics.SLOTS_IN_USE.labels(self.name).inc()

    def start(self, run: GenerationRun, request: CheckedRequest) -> None:
        """Start a run, which takes the slot unless it has it already and releases it at its end.

        Args:
            run: to start.
            request: to serve.

        Raises:
            StorageFull: the output does not fit; nothing has changed then.
        """
        plan = request.plan
        output = self._store.draft(Kind.OUTPUT, VIDEO_HEADER_BYTES + plan.output.num_bytes, owner=run.client)
        if self.current is not run:
            self.take(run)
        run.slot = self
        logs.name_slot(self.shown_name)
        log.info("%d frames of %s in %d chunks", plan.output.frames, plan.chain.pipeline.id, len(plan.chunks))
        run.start(request, output, self.registry.triton, self._store, self._encoder, on_end=self.release)

    def release(self) -> None:
        """Free the slot."""
        self.current = None
        metrics.SLOTS_IN_USE.labels(self.name).dec()
        self.on_free()


class LiveGeneration:
    """A generation that waits or runs: it takes its events, and keeps its record.

    Attributes:
        record: as of now.
        events: what has happened, for its followers.
        run: what the slot runs; it exists before it is started.
        held_files: keeps its inputs; closed at its end.
        retry_until: when it stops being tried again, by the event loop's clock; None before it had to be.
        stop_reason: why it has to end before it is started.
        num_followers: those who follow its events now.
        grace: the time that followers have to come back.
        ended: set when the last event is written; the slot is free by then.
    """

    def __init__(
        self,
        record: Record,
        records: Records,
        num_events: int,
        *,
        ttl_s: float,
        may_retry: Callable[["LiveGeneration", ErrorEvent], bool],
        on_end: Callable[["LiveGeneration"], None],
    ) -> None:
        self.record = record
        self.events = EventLog(self, num_events)
        self.run = self._new_run()
        self.held_files = contextlib.ExitStack()
        self.retry_until: float | None = None
        self.stop_reason: FilmstripError | None = None
        self.num_followers = 0
        self.grace: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()
        self._records = records
        self._ttl_s = ttl_s
        self._may_retry = may_retry
        self._on_end = on_end
        self._busy_s = 0.0
        self._written_at = 0.0
        self._is_suspended = False
        self._is_restarting = False

    @property
    def eta_s(self) -> float | None:
        """Seconds until its end at the rate so far."""
        if self.record.state is not State.RUNNING or not self.record.fps:
            return None
        return (self.record.num_frames - self.record.frames) / self.record.fps

    def renew_run(self) -> None:
        """Replace the run by one that has not been started."""
        self.run = self._new_run()

    def _new_run(self) -> GenerationRun:
        record = self.record
        return GenerationRun(
            record.id, record.client, self, video_fps=record.video_fps, preview_options=record.previews
        )

    def change(self, **changes: Any) -> None:
        """Change the record, also on disk."""
        self.record = self.record.model_copy(update=changes)
        self._records.update(self.record)

    def suspend(self) -> None:
        """Take no more events and end all followers: the next start of the server goes on with it."""
        self._is_suspended = True
        self.events.close()

    def restart(self) -> None:
        """Let the record say that it was interrupted, whatever its last event is."""
        self._is_restarting = True

    def append(self, event: Event) -> None:
        """Take the next event of the generation."""
        if self._is_suspended or (isinstance(event, ErrorEvent) and self._may_retry(self, event)):
            return
        if isinstance(event, Progress):
            self._busy_s += event.latency
            frames = self.record.frames + event.frames
            fps = round(frames / self._busy_s, 3) if self._busy_s else None
            self.record = self.record.model_copy(update={"chunk": event.chunk, "frames": frames, "fps": fps})
        elif isinstance(event, Preview):
            preview_bytes = self.record.preview_bytes + len(event.image or "")
            self.record = self.record.model_copy(update={"preview_bytes": preview_bytes})
        elif isinstance(event, LAST_EVENTS):
            now = time.time()
            changes = {"ended_at": now, "expires_at": now + self._ttl_s, **self._outcome(event)}
            self.record = self.record.model_copy(update=changes)
            self.held_files.close()
        self.events.append(event)

    def _outcome(self, event: Complete | Cancelled | ErrorEvent) -> dict[str, Any]:
        """What the last event changes in the record."""
        if isinstance(event, ErrorEvent):
            if self._is_restarting:
                event = ErrorEvent(RESTARTED, Restarted.code)
            return {"state": State.FAILED, "error_code": event.code, "error_message": event.error}
        state = State.COMPLETE if isinstance(event, Complete) else State.CANCELLED
        return {"state": state, "output_path": event.output_path, "video_shape": event.video_shape}

    # -- The archive of its events --------------------------------------------------------------------------------

    def add(self, event: NumberedEvent, done: Callable[[bool], None]) -> None:
        """Write an event; the record is written along with the last one, and from time to time."""
        is_last = not self.record.state.is_live
        now = asyncio.get_running_loop().time()
        writes_record = is_last or now > self._written_at + _WRITE_RECORD_S
        if writes_record:
            self._written_at = now

        def written(is_written: bool) -> None:
            done(is_written)
            if is_last:
                self._on_end(self)
                self.ended.set()

        self._records.add_event(self.record.seq, event, self.record if writes_record else None, written)

    async def read(self, after: int, limit: int) -> list[NumberedEvent]:
        """Read events back."""
        return await self._records.events(self.record.seq, after, limit)


class EndedArchive:
    """The archive of a generation that has ended."""

    def __init__(self, records: Records, seq: int) -> None:
        self._records, self._seq = records, seq

    def add(self, event: NumberedEvent, done: Callable[[bool], None]) -> None:  # noqa: ARG002
        """Never called."""
        raise AssertionError("nothing follows a last event")

    async def read(self, after: int, limit: int) -> list[NumberedEvent]:
        """Read events back."""
        return await self._records.events(self._seq, after, limit)


# -- Its chunks -----------------------------------------------------------------------------------------------------


class ChunkRunner:
    """Runs the chunks of one generation: three tasks, which stage, generate and write them, share the buffers.

    Attributes:
        num_chunks: chunks generated so far.
        num_frames: pixel frames generated so far.
    """

    def __init__(
        self,
        generation: GenerationRun,
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
                staging = tasks.create_task(self._stage_chunks(), name="stage chunks")
                tasks.create_task(self._generate_chunks(staging), name="generate chunks")
                tasks.create_task(self._write_chunks(), name="write chunks")
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

    async def _generate_chunks(self, staging: asyncio.Task[None]) -> None:
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
            slot = self._generation.slot
            metrics.CHUNK_SECONDS.labels(self._plan.chain.pipeline.id, slot.name if slot else "").observe(latency)
            metrics.FRAMES.inc(num_frames)
            self._generation.events.append(
                Progress(
                    self.num_chunks,
                    num_chunks,
                    num_frames,
                    round(latency, 6),
                    round(num_frames / latency, 3),
                    slot.shown_name if slot else None,
                )
            )
            self._staged.task_done()
        staging.cancel()  # after a cancel or a failed write, the next chunk is not needed
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
        stage_seconds = await sequence.chunk(params, inputs, place, shape)
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
