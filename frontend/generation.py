"""One generation, from a checked request to its last event: its attempts, its slot and its record."""

import asyncio
import contextlib
import functools
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from filmstrip.errors import ClientGone, FilmstripError, InternalError, NotFound, NotReady, Restarted
from filmstrip.geometry import MAX_FPS_DENOMINATOR
from filmstrip.models import LAST_EVENTS, Cancelled, Complete, ErrorEvent, Event, Preview, Progress, State
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from . import logs, metrics
from .array_plan import UploadField
from .chunks import open_chunks
from .events import EventLog, EventSink
from .jobs import Record
from .model_registry import ModelRegistry
from .previews import PreviewEncoder, Previews
from .records import LiveArchive, Records
from .request_check import CheckedRequest
from .schema import PreviewOptions
from .store import Draft, Kind, Store
from .video_files import Growth

log = logging.getLogger(__name__)

RESTARTED = "the server was restarted while the generation ran"

_GROWTH_SILENCE_S = 60.0


class GenerationRun:
    """One attempt to make a generation, from its plan to its last event.

    Attributes:
        id: the client's or a random one; names it in logs and in `X-Generation-Id`.
        client: who asked for it.
        cancel_requested: no other chunk is to be started.
        slot: where it runs; None before the start.

    Args:
        events: takes what happens.
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
        self.cancel_requested = False
        self.slot: Slot | None = None
        self._events = events
        self._previews: Previews | None = None
        self._video_fps = video_fps
        self._preview_options = preview_options
        self._pipeline_id = ""
        self._output: tuple[Draft, VideoShape] | None = None
        self._task: asyncio.Task[Complete | Cancelled] | None = None
        self._abort_reason: FilmstripError | None = None

    def start(self, slot: "Slot", request: CheckedRequest, output: Draft) -> None:
        """Generate the video in a task.

        Args:
            slot: which it has taken; it is released at the end, just before the last event.
            request: to serve.
            output: the file for the frames; from now on the generation owns it.
        """
        plan = request.plan
        self.slot = slot
        self._pipeline_id = plan.chain.pipeline.id
        self._output = output, plan.output
        if self._video_fps is not None:
            output.fps = Fraction(self._video_fps).limit_denominator(MAX_FPS_DENOMINATOR)
        elif UploadField.INPUT in request.files:
            output.fps = request.files[UploadField.INPUT].fps
        if self._preview_options is not None:
            self._previews = Previews(
                self._preview_options,
                self._events,
                slot.encoder,
                slot.store,
                client=self.client,
                path=output.path,
                shape=plan.output,
            )
        self._task = asyncio.create_task(self._run(slot, request, output), name="generation")
        self._task.add_done_callback(functools.partial(self._end, slot, output))

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

    def on_generated(self, progress: Progress) -> None:
        """A chunk is generated."""
        assert self.slot is not None
        metrics.CHUNK_SECONDS.labels(self._pipeline_id, self.slot.name).observe(progress.latency)
        metrics.FRAMES.inc(progress.frames)
        self._append(replace(progress, slot=self.slot.shown_name))

    def on_written(self) -> None:
        """The frames of a chunk are written to the output."""
        frames = self.frames_so_far()
        if self._previews is not None and frames is not None:
            self._previews.on_written(frames[1].frames)

    def _append(self, event: Event) -> None:
        """Pass an event on, after a preview that is due."""
        (self._previews or self._events).append(event)

    async def wait(self, timeout_s: float) -> None:
        """Wait for its end, but no longer than `timeout_s`."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)

    async def _run(self, slot: "Slot", request: CheckedRequest, output: Draft) -> Complete | Cancelled:
        plan = request.plan
        with output:
            await output.append(bytes(VIDEO_HEADER_BYTES))
            async with open_chunks(self, request, output, slot.store, slot.registry.triton) as chunks:
                await chunks.run()
                num_chunks, num_frames = chunks.num_chunks, chunks.num_frames
            if self._previews is not None:
                await self._previews.finish()
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

    def _end(self, slot: "Slot", output: Draft, task: asyncio.Task[Complete | Cancelled]) -> None:
        """The one end of every run, even of one that was aborted before its task began.

        Whatever fails here, the slot is released and the last event is sent.
        """
        last: Complete | Cancelled | ErrorEvent = _internal_error()
        try:
            last = self._last_event(task)
            outcome = {Complete: "complete", Cancelled: "cancelled"}.get(type(last), getattr(last, "code", ""))
            metrics.GENERATIONS.labels(outcome).inc()
            log.info("ended: %s", outcome)
            slot.store.discard(output)
        except Exception:
            log.exception("cleaning up after a generation failed")
        finally:
            self._task = None
            slot.release()
            self._append(last)
            _break_reference_cycles(task)

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


def _break_reference_cycles(task: asyncio.Task[Complete | Cancelled]) -> None:
    """Let go of what the traceback of a task that failed holds: `TaskGroup` leaves reference cycles."""
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
        store: where the files are.
        encoder: makes previews.
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
        self.store = store
        self.encoder = encoder
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
        output = self.store.draft(Kind.OUTPUT, VIDEO_HEADER_BYTES + plan.output.num_bytes, owner=run.client)
        if self.current is not run:
            self.take(run)
        logs.name_slot(self.shown_name)
        log.info("%d frames of %s in %d chunks", plan.output.frames, plan.chain.pipeline.id, len(plan.chunks))
        run.start(self, request, output)

    def release(self) -> None:
        """Free the slot."""
        self.current = None
        metrics.SLOTS_IN_USE.labels(self.name).dec()
        self.on_free()


class LiveGeneration:
    """A generation that waits or runs: it takes its events, and keeps its record.

    Attributes:
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
        retry_if_possible: Callable[["LiveGeneration", ErrorEvent], bool],
        on_end: Callable[["LiveGeneration"], None],
    ) -> None:
        self._archive = LiveArchive(records, record)
        self.events = EventLog(self._archive, num_events, on_complete=self._note_end)
        self.run = self._new_run()
        self.held_files = contextlib.ExitStack()
        self.retry_until: float | None = None
        self.stop_reason: FilmstripError | None = None
        self.num_followers = 0
        self.grace: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()
        self._ttl_s = ttl_s
        self._retry_if_possible = retry_if_possible
        self._on_end = on_end
        self._busy_s = 0.0
        self._is_suspended = False
        self._is_interrupted = False

    @property
    def record(self) -> Record:
        """What is kept of it, as of now."""
        return self._archive.record

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
        self._archive.change(**changes)
        self._archive.write()

    def suspend(self) -> None:
        """Take no more events and end all followers: the next start of the server goes on with it."""
        self._is_suspended = True
        self.events.close()

    def mark_interrupted(self) -> None:
        """Let the record say that a restart of the server interrupted it, whatever its last event is."""
        self._is_interrupted = True

    def append(self, event: Event) -> None:
        """Take the next event of the generation."""
        if self._is_suspended or (isinstance(event, ErrorEvent) and self._retry_if_possible(self, event)):
            return
        record = self.record
        if isinstance(event, Progress):
            self._busy_s += event.latency
            frames = record.frames + event.frames
            fps = round(frames / self._busy_s, 3) if self._busy_s else None
            self._archive.change(chunk=event.chunk, frames=frames, fps=fps)
        elif isinstance(event, Preview):
            self._archive.change(preview_bytes=record.preview_bytes + len(event.image or ""))
        elif isinstance(event, LAST_EVENTS):
            now = time.time()
            self._archive.change(ended_at=now, expires_at=now + self._ttl_s, **self._outcome(event))
            self.held_files.close()
        self.events.append(event)

    def _outcome(self, event: Complete | Cancelled | ErrorEvent) -> dict[str, Any]:
        """What the last event changes in the record."""
        if isinstance(event, ErrorEvent):
            if self._is_interrupted:
                event = ErrorEvent(RESTARTED, Restarted.code)
            return {"state": State.FAILED, "error_code": event.code, "error_message": event.error}
        state = State.COMPLETE if isinstance(event, Complete) else State.CANCELLED
        return {"state": state, "output_path": event.output_path, "video_shape": event.video_shape}

    def _note_end(self) -> None:
        self._on_end(self)
        self.ended.set()


class GrowingOutput:
    """The frames of a generation that runs; see `FrameSource`."""

    def __init__(self, live: LiveGeneration, draft: Draft, shape: VideoShape, store: Store) -> None:
        self._live = live
        self._draft = draft
        self._store = store
        self.name = f"generation-{live.record.seq}"
        self.owner = live.record.client
        self.shape = shape
        self.fps = draft.fps

    def open(self) -> int:
        """Open the output's file, which may be about to get its name, for reading alone."""
        try:
            return os.open(f"/proc/self/fd/{self._draft.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise NotReady("id: the generation has just ended; try again", "id") from None

    async def growth(self) -> AsyncIterator[Growth]:
        """How many frames there are; see `FrameSource.growth`."""
        events = self._live.events
        after = events.num_events
        while True:
            frames = self._live.run.frames_so_far()
            if frames is not None:
                yield Growth(frames[1].frames)
            if self._live.ended.is_set() or events.is_complete:
                break
            async for event in events.follow(after=after, silence_s=_GROWTH_SILENCE_S):
                if event is not None:
                    after = event.number
                    break
            else:
                break
        await self._live.ended.wait()
        name = self._live.record.output_path
        if name is None:
            raise NotFound("the generation has ended without a video")
        output = self._store.find(name, Kind.OUTPUT, owner=self.owner)
        assert output.shape is not None
        yield Growth(output.shape.frames, output)
