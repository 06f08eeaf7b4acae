"""Generations on this machine: checked, queued, run in the slots, and remembered in the records."""

import asyncio
import contextlib
import itertools
import logging
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filmstrip.errors import (
    Busy,
    ClientGone,
    FilmstripError,
    IdTaken,
    InternalError,
    NotFound,
    NotReady,
    QueueFull,
    Restarted,
    ShuttingDown,
    TritonUnavailable,
)
from filmstrip.models import Cancelled, ErrorEvent, State
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from . import logs, metrics
from .array_plan import UploadField
from .blobs import read_pieces
from .catalogue import Catalogue, Entry
from .events import EventLog
from .generation import RESTARTED, GrowingOutput, LiveGeneration, Slot
from .images import ImageDecoder, data_urls_to_assets
from .jobs import (
    MAX_SHOWN_PROMPT,
    EntryPoint,
    Followed,
    GenerationView,
    Page,
    QueuedEvent,
    Record,
    Submission,
    Submitted,
)
from .records import (
    EndedArchive,
    Records,
    defaulted_fields,
    digest_and_text,
    restored_request,
    stored_request,
    with_seed,
)
from .request_check import CheckCancelled, CheckedRequest, RequestChecker
from .scheduler import Scheduler
from .schema import CancelStatus, GenerateRequest
from .settings import Settings
from .store import Kind, Store, open_stored
from .tasks import in_thread, run_to_end
from .video_files import CompleteOutput, FrameSource

log = logging.getLogger(__name__)

_ID_BYTES = 16
_RETRY_S = 120.0  # Triton may be restarting, or still hold the sequence of a generation that was cut off
_SWEEP_S = 60.0
_MAX_RETRY_AFTER_S = 60


class StoredFrames:
    """The frames in an open file, after its header; see `FramesSoFar`."""

    def __init__(self, fd: int, shape: VideoShape) -> None:
        self._fd = fd
        self.shape = shape

    def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes of the frames from `start` up to `stop`."""
        num_bytes = self.shape.frame_bytes
        return read_pieces(self._fd, VIDEO_HEADER_BYTES + start * num_bytes, VIDEO_HEADER_BYTES + stop * num_bytes)


class LocalJobs:
    """The generations of one machine; see `Jobs`.

    Args:
        settings: of the server.
        store: where inputs and outputs are.
        decoder: of images.
        checker: checks requests.
        slots: where generations run, one in each.
        records: where generations are remembered; opened by `open`.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        decoder: ImageDecoder,
        checker: RequestChecker,
        slots: Sequence[Slot],
        *,
        records: Records,
    ) -> None:
        self._settings = settings
        self._store = store
        self._decoder = decoder
        self._checker = checker
        self._records = records
        self._catalogue = Catalogue(records, store)
        self._pending: dict[tuple[str, str], _Pending] = {}
        self._last_seq = 0
        limits = {EntryPoint.RESOURCE: settings.queue_length, EntryPoint.GENERATE: settings.generate_queue_length}
        self._scheduler = Scheduler(slots, limits, self._on_turn)
        self._checking_streams: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def is_closed(self) -> bool:
        """No more generations are accepted or started."""
        return self._scheduler.is_closed

    @property
    def is_generating(self) -> bool:
        """A generation runs."""
        return any(not slot.is_free for slot in self._scheduler.slots)

    # -- Start and end of the server ----------------------------------------------------------------------------

    def open(self) -> None:
        """Read the records; what waited waits again, and what ran has failed or starts again."""
        for record, num_events in self._records.open():
            self._last_seq = max(self._last_seq, record.seq)
            entry = self._catalogue.add(record, num_events)
            if record.state.is_live:
                self._restore(entry, record, num_events)
        self._catalogue.expire()
        self._keep(self._sweep(), "sweep of generations")
        self._scheduler.open()

    def _restore(self, entry: Entry, record: Record, num_events: int) -> None:
        live = entry.live = self._new_live(record, num_events)
        is_stream = record.entry_point is EntryPoint.GENERATE
        if is_stream or (record.state is State.RUNNING and not self._settings.resume):
            with logs.named(record.id):
                log.warning("%s", RESTARTED)
            metrics.GENERATIONS.labels(Restarted.code).inc()
            self._drop_assets(record.assets)
            live.append(ErrorEvent(RESTARTED, Restarted.code))
            return
        self._hold_inputs(live)
        if record.state is State.RUNNING:
            live.change(state=State.QUEUED, started_at=None, chunk=0, frames=0, fps=None)
        self._scheduler.add(live, first=record.state is State.RUNNING)
        self._start_grace(live)

    def _hold_inputs(self, live: LiveGeneration) -> None:
        record = live.record
        live.held_files.callback(self._drop_assets, record.assets)
        for name in record.inputs:
            with contextlib.suppress(FilmstripError):  # if the file is gone, the check at the start refuses the request
                kinds = (Kind.VIDEO, Kind.BLOB, Kind.ASSET)
                file = self._store.find(name, *kinds, owner=record.client, allow_expired=True)
                live.held_files.enter_context(self._store.holding(file))

    async def close(self, timeout_s: float) -> None:
        """Accept no more generations, and end what runs; what waits stays in the records for the next start."""
        self._scheduler.close()
        self._checker.close()
        for live in self._scheduler.waiting:
            if live.record.entry_point is EntryPoint.GENERATE:
                self._scheduler.remove(live)
                live.mark_interrupted()
                self._end_unstarted(live, _error_event(ShuttingDown("the server is stopping")))
            else:
                live.suspend()
        for live in self._running():
            if self._settings.resume and live.record.entry_point is EntryPoint.RESOURCE:
                live.suspend()
            live.mark_interrupted()
            live.run.abort(ShuttingDown("the server is stopping"))
        await asyncio.gather(*(live.run.wait(timeout_s) for live in self._running()))
        if self._starting:
            await asyncio.wait(self._starting, timeout=timeout_s)

    async def stop(self) -> None:
        """Stop the work in the background and close the records."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._scheduler.stop(), *self._tasks, return_exceptions=True)
        await self._records.close()

    # -- Accepting ----------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission) -> Submitted:
        """Accept a generation; see `Jobs.submit`."""
        self._check_is_open()
        if submission.entry_point is EntryPoint.GENERATE:  # its id is new
            text = await in_thread(stored_request, submission.request, submission.request)
            return await self._accept(submission, secrets.token_hex(8), "", text)
        digest, text = await in_thread(digest_and_text, submission.request)
        while True:
            generation_id = self._id_of(submission)
            entry = self._catalogue.get(submission.client, generation_id)
            if entry is not None:
                _check_same(entry.digest, digest, generation_id)
                return Submitted(await self.get(submission.client, generation_id), is_new=False)
            pending = self._pending.get((submission.client, generation_id))
            if pending is None:
                return await self._accept_once(submission, generation_id, digest, text)
            _check_same(pending.digest, digest, generation_id)
            await pending.done.wait()
            if pending.error is not None:
                raise pending.error

    def _id_of(self, submission: Submission) -> str:
        if submission.id is not None:
            return submission.id
        key = submission.idempotency_key
        known = self._catalogue.id_of_key(submission.client, key) if key is not None else None
        return known or secrets.token_hex(_ID_BYTES)

    async def _accept_once(self, submission: Submission, id: str, digest: str, text: str) -> Submitted:
        """Accept a generation whose id is not known; the same submission waits meanwhile, and has the same outcome."""
        name, key = (submission.client, id), submission.idempotency_key
        pending = self._pending[name] = _Pending(digest)
        if key is not None:
            self._catalogue.keep_key(submission.client, key, id)
        try:
            return await self._accept(submission, id, digest, text)
        except BaseException as error:
            if key is not None and self._catalogue.get(*name) is None:
                self._catalogue.drop_key(submission.client, key)
            if isinstance(error, FilmstripError):  # otherwise the next one tries again
                pending.error = error
            raise
        finally:
            del self._pending[name]
            pending.done.set()

    async def _accept(self, submission: Submission, id: str, digest: str, text: str) -> Submitted:
        """Check a request, then start its generation or let it wait.

        The slot is not held during the check: of several requests that are checked at once, the first to pass takes
        it. A request of /generate that its client cancels meanwhile gives a generation whose only event is `cancelled`.
        """
        client, entry_point = submission.client, submission.entry_point
        self._check_room(entry_point)
        logs.name_generation(id)
        with contextlib.ExitStack() as held_files:
            request = with_seed(submission.request)
            held_files.callback(self._drop_assets, submission.own_files)
            assets: tuple[str, ...] = ()
            if entry_point is EntryPoint.RESOURCE:
                request, assets = await data_urls_to_assets(request, client, self._store, self._decoder)
                held_files.callback(self._drop_assets, assets)
            if assets:
                text = await in_thread(stored_request, submission.request, request)
            cancelled: CheckCancelled | None = None
            try:
                checked = await self._check(request, id, client, held_files, entry_point)
            except CheckCancelled as error:
                cancelled = error
            # Nothing is awaited from here until the generation has its place.
            self._last_seq += 1
            record = _new_record(
                submission, request, seq=self._last_seq, id=id, digest=digest, assets=assets, text=text
            )
            if cancelled is not None:
                return self._submitted(self._cancelled_in_check(record, text, cancelled), text)
            record = _with_plan(record, checked)
            self._store.check_fits(VIDEO_HEADER_BYTES + checked.plan.output.num_bytes, owner=client)
            live = self._place(record, checked, held_files)
        writing = self._records.insert(live.record, text)  # before its events: nothing was awaited since it was placed
        if entry_point is EntryPoint.RESOURCE:
            try:
                await self._records.written(writing)
            except FilmstripError as error:
                self._abort(live, error)
                await run_to_end(self._remove_at_end(self._catalogue.find(client, id)))
                raise
            finally:  # the grace period starts only now, because the client could not follow earlier
                self._start_grace(live)
        return self._submitted(live, text)

    def _submitted(self, live: LiveGeneration, text: str) -> Submitted:
        """The answer to a new generation, from memory, because its client may have deleted the record already."""
        return Submitted(self._view(live)._replace(request=text), is_new=True)

    async def _check(
        self, request: GenerateRequest, id: str, client: str, held_files: contextlib.ExitStack, entry_point: EntryPoint
    ) -> CheckedRequest:
        if entry_point is EntryPoint.GENERATE:
            self._checking_streams.add((client, id))
        try:
            return await self._checker.check(request, id, client, held_files, candidates=self._scheduler.best_first())
        finally:
            self._checking_streams.discard((client, id))

    def _cancelled_in_check(self, record: Record, text: str, cancelled: CheckCancelled) -> LiveGeneration:
        """A generation of /generate whose only event is `cancelled`."""
        plan = cancelled.plan
        if plan is not None:
            record = record.model_copy(update={"unused": plan.unused, "total_chunks": len(plan.chunks)})
        live = self._new_live(record, 0)
        self._catalogue.add(record, live=live)
        self._records.insert(record, text)
        log.info("cancelled before it started")
        self._end_unstarted(live, _cancelled_event(record))
        return live

    def _place(self, record: Record, checked: CheckedRequest, held_files: contextlib.ExitStack) -> LiveGeneration:
        """Start a generation or put it in the queue."""
        self._check_room(record.entry_point, record.pipelines)
        slot = self._scheduler.free_slot(record.pipelines, checked.registry)
        if slot is not None and slot.registry is checked.registry:
            record = record.model_copy(update={"state": State.RUNNING, "started_at": record.created_at})
            live = self._new_live(record, 0)
            slot.start(live.run, checked)
        else:  # all are taken; or another Triton is free, in which it is checked once more
            live = self._new_live(record, 0)
            self._scheduler.add(live)
            if slot is None:
                log.info("waits in the queue at position %s", self._scheduler.position(live))
        live.held_files = held_files.pop_all()
        self._catalogue.add(record, live=live)
        self._scheduler.dispatch()
        return live

    def _check_is_open(self) -> None:
        if self.is_closed:
            raise ShuttingDown("the server is stopping")

    def _check_room(self, entry_point: EntryPoint, pipelines: Collection[str] = ()) -> None:
        """Refuse a generation that could neither start now nor wait."""
        self._check_is_open()
        if self._scheduler.free_slot(pipelines) is not None or self._scheduler.has_room(entry_point):
            return
        if entry_point is EntryPoint.GENERATE:
            raise Busy("all slots are taken" if self._scheduler.has_several else "another generation runs")
        error = QueueFull(f"{self._settings.queue_length} generations are waiting, which is the limit; try again later")
        error.headers = {"Retry-After": str(self._retry_after_s())}
        raise error

    def _retry_after_s(self) -> int:
        """When the queue may have moved."""
        etas = [live.eta_s or 1.0 for live in self._running()]
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(min(etas, default=1.0))))

    # -- Running ------------------------------------------------------------------------------------------------

    def _on_turn(self, live: LiveGeneration, slot: Slot) -> None:
        """Start a generation that has waited, in the slot that it now has."""
        live.change(state=State.RUNNING, started_at=time.time())
        starting = self._keep(self._start_waiting(live, slot), "start a generation")
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)

    async def _start_waiting(self, live: LiveGeneration, slot: Slot) -> None:
        """Check a request that has waited once more, as its plan and its images were dropped, and start it."""
        record = live.record
        logs.name_generation(record.id)
        logs.name_slot(slot.shown_name)
        waited_s = time.time() - record.created_at
        log.info("starts after %.3f s in the queue", waited_s)
        try:
            request = await in_thread(restored_request, record, await self._records.request(record.seq) or "")
            self._check_may_start(live)
            checked = await self._checker.check(
                request, record.id, record.client, live.held_files, allow_expired=True, candidates=[slot.registry]
            )
            self._check_may_start(live)
            slot.start(live.run, checked)
        except CheckCancelled:
            stop = live.stop_reason
            last = _cancelled_event(record) if stop is None else _error_event(stop)
        except TritonUnavailable as error:
            self._requeue(live, slot, error.message)
            slot.release()
            return
        except ShuttingDown as error:
            if record.entry_point is EntryPoint.RESOURCE:
                live.change(state=State.QUEUED, started_at=None)
                live.suspend()
                slot.release()
                return
            live.mark_interrupted()
            last = _error_event(error)
        except FilmstripError as error:
            log.warning("%s: %s", error.code, error.message)
            last = _error_event(error)
        except Exception:
            log.exception("a generation could not be started")
            last = _error_event(InternalError("internal error; see the server's log"))
        else:
            metrics.QUEUE_WAIT_SECONDS.observe(waited_s)
            return
        slot.release()
        self._end_unstarted(live, last)

    def _check_may_start(self, live: LiveGeneration) -> None:
        self._check_is_open()
        if live.stop_reason is not None or live.run.cancel_requested:
            raise CheckCancelled(None)

    def _end_unstarted(self, live: LiveGeneration, last: Cancelled | ErrorEvent) -> None:
        """End a generation that has not been started, or could not be."""
        outcome = last.code if isinstance(last, ErrorEvent) else State.CANCELLED
        metrics.GENERATIONS.labels(outcome).inc()
        log.info("ended: %s", outcome)
        live.append(last)

    def _retry_if_possible(self, live: LiveGeneration, event: ErrorEvent) -> bool:
        """Let a generation that Triton did not even begin wait for its turn once more; False if it must end."""
        is_early = event.code == TritonUnavailable.code and not live.record.chunk
        if (
            not is_early
            or live.record.entry_point is EntryPoint.GENERATE
            or self.is_closed
            or live.stop_reason is not None
        ):
            return False
        now = asyncio.get_running_loop().time()
        live.retry_until = live.retry_until or now + _RETRY_S
        if now > live.retry_until or live.run.cancel_requested:
            return False
        slot = live.run.slot
        live.renew_run()
        self._requeue(live, slot, event.error)
        return True

    def _requeue(self, live: LiveGeneration, slot: Slot | None, reason: str) -> None:
        """Put a generation back at the head of the queue until Triton is ready."""
        log.warning("waits for Triton: %s", reason)
        live.change(state=State.QUEUED, started_at=None)
        self._scheduler.add(live, first=True)
        if slot is not None:
            self._scheduler.pause_until_ready(slot)
        self._scheduler.dispatch()  # perhaps on another Triton

    # -- Following and ending -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def follow(
        self, client: str, id: str, *, after: int = 0, silence_s: float
    ) -> AsyncIterator[AsyncIterator[Followed]]:
        """Follow a generation's events; see `Jobs.follow`."""
        entry = self._catalogue.find(client, id)
        live = entry.live
        if live is None:
            archive = EndedArchive(self._records, entry.seq)
            yield EventLog(archive, entry.num_events, is_complete=True).follow(after=after, silence_s=silence_s)
            return
        live.num_followers += 1
        if live.grace is not None:
            live.grace.cancel()
            live.grace = None
        try:
            yield self._events(live, after, silence_s)
        finally:
            live.num_followers -= 1
            if not live.num_followers and live.record.entry_point is EntryPoint.GENERATE:
                self._abandon(live)
            elif not live.num_followers:
                self._start_grace(live)

    async def _events(self, live: LiveGeneration, after: int, silence_s: float) -> AsyncIterator[Followed]:
        shown = None
        while live.record.state is State.QUEUED and not self.is_closed:
            moved = self._scheduler.moved
            position = self._scheduler.position(live)
            if position is not None and position != shown:
                shown = position
                yield QueuedEvent(position)
                continue
            try:
                async with asyncio.timeout(silence_s):
                    await moved.wait()
            except TimeoutError:
                yield None
        async for event in live.events.follow(after=after, silence_s=silence_s):
            yield event

    def _start_grace(self, live: LiveGeneration) -> None:
        """Give followers time to come, if the generation is not to go on without any."""
        is_alone = not live.num_followers and live.record.state.is_live
        if is_alone and live.record.on_disconnect == "cancel" and not self.is_closed:
            live.grace = asyncio.get_running_loop().call_later(self._settings.reattach_s, self._abandon, live)

    def _abandon(self, live: LiveGeneration) -> None:
        """End a generation that nobody follows."""
        if not live.record.state.is_live or self.is_closed:
            return
        with logs.named(live.record.id):  # called by a connection, which serves other requests too
            log.info("the client is gone")
        if live.record.entry_point is EntryPoint.GENERATE:
            self._abort(live, ClientGone("the client is gone"))
        else:
            self._cancel(live)

    async def cancel(self, client: str, id: str) -> CancelStatus:
        """Cancel a generation; see `Jobs.cancel`."""
        live = self._catalogue.find(client, id).live
        return "idle" if live is None else self._cancel(live)

    def _cancel(self, live: LiveGeneration) -> CancelStatus:
        if not live.record.state.is_live:
            return "idle"
        if self._scheduler.remove(live):
            with logs.named(live.record.id):  # called by another request
                log.info("cancel requested")
                self._end_unstarted(live, _cancelled_event(live.record))
            return "cancelled"
        live.run.cancel()
        self._checker.cancel(live.record.client, live.record.id)
        return "cancelling"

    async def cancel_streams(self, client: str) -> bool:
        """Cancel the client's generations that came by /generate; see `Jobs.cancel_streams`."""
        found = False
        for live in self._catalogue.live(client):
            if live.record.entry_point is EntryPoint.GENERATE:
                found |= self._cancel(live) != "idle"
        for owner, generation_id in list(self._checking_streams):
            if owner == client:
                found |= self._checker.cancel(client, generation_id)
        return found

    def _abort(self, live: LiveGeneration, reason: FilmstripError) -> None:
        """End a generation as soon as the model stops, with an error as its last event."""
        if self._scheduler.remove(live):
            with logs.named(live.record.id):
                self._end_unstarted(live, _error_event(reason))
            return
        live.stop_reason = live.stop_reason or reason
        live.run.abort(reason)
        self._checker.cancel(live.record.client, live.record.id)

    async def delete(self, client: str, id: str) -> None:
        """End a generation and remove it; see `Jobs.delete`."""
        entry = self._catalogue.find(client, id)
        if entry.live is not None:
            self._abort(entry.live, ClientGone("the generation was deleted"))
        await run_to_end(self._remove_at_end(entry))

    async def _remove_at_end(self, entry: Entry) -> None:
        if entry.live is not None:
            await entry.live.ended.wait()
        self._catalogue.remove(entry)

    def _generation_ended(self, live: LiveGeneration) -> None:
        """Note the end of a generation; its last event is written."""
        if live.grace is not None:
            live.grace.cancel()
        self._catalogue.note_end(live)

    def _drop_assets(self, names: Iterable[str]) -> None:
        """Remove what was made from data URLs, unless the next start of the server needs it."""
        if not self.is_closed:
            for name in names:
                self._store.remove(name)

    def _new_live(self, record: Record, num_events: int) -> LiveGeneration:
        return LiveGeneration(
            record,
            self._records,
            num_events,
            ttl_s=self._settings.store_ttl_s,
            retry_if_possible=self._retry_if_possible,
            on_end=self._generation_ended,
        )

    def _running(self) -> Sequence[LiveGeneration]:
        """What has a slot."""
        running = [slot.current for slot in self._scheduler.slots if slot.current is not None]
        entries = [self._catalogue.get(generation.client, generation.id) for generation in running]
        return [entry.live for entry in entries if entry is not None and entry.live is not None]

    # -- What clients see ---------------------------------------------------------------------------------------------

    async def get(self, client: str, id: str, *, with_request: bool = True) -> GenerationView:
        """A generation; see `Jobs.get`."""
        entry = self._catalogue.find(client, id)
        view = await self._view_of(entry)
        if not with_request:
            return view
        return view._replace(request=await self._records.request(entry.seq))

    async def list(
        self,
        client: str,
        *,
        state: State | None = None,
        limit: int = 20,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> Page:
        """The client's generations; see `Jobs.list`."""
        last = None if after is None else self._catalogue.find(client, after).seq
        matching = (
            entry
            for entry in self._catalogue.in_order(client, oldest_first=oldest_first)
            if (last is None or (entry.seq > last if oldest_first else entry.seq < last))
            and (state is None or entry.current_state is state)
        )
        found = list(itertools.islice(matching, limit + 1))
        shown = found[:limit]
        records = await self._records.get([entry.seq for entry in shown if entry.live is None])
        generations = [
            self._view(entry.live) if entry.live is not None else GenerationView(records[entry.seq])
            for entry in shown
            if entry.live is not None or entry.seq in records
        ]
        return Page(generations, shown[-1].id if len(found) > limit else None)

    async def _view_of(self, entry: Entry) -> GenerationView:
        if entry.live is not None:
            return self._view(entry.live)
        records = await self._records.get([entry.seq])
        if entry.seq not in records:
            raise NotFound("the generation has just been removed")
        return GenerationView(records[entry.seq])

    def _view(self, live: LiveGeneration) -> GenerationView:
        return GenerationView(live.record, self._scheduler.position(live), live.eta_s)

    @contextlib.asynccontextmanager
    async def frames(self, client: str, id: str) -> AsyncIterator[StoredFrames]:
        """The frames that a generation has made so far; see `Jobs.frames`."""
        entry = self._catalogue.find(client, id)
        path, shape = self._frames_of(entry, client)
        try:
            fd = open_stored(path)
        except FileNotFoundError:
            if entry.live is None:
                raise NotFound("the generation has just been removed") from None
            await entry.live.ended.wait()  # the output has just been given its name
            path, shape = self._frames_of(self._catalogue.find(client, id), client)
            fd = open_stored(path)
        try:
            yield StoredFrames(fd, shape)
        finally:
            os.close(fd)

    def _frames_of(self, entry: Entry, client: str) -> tuple[Path, VideoShape]:
        if entry.live is not None:
            frames = entry.live.run.frames_so_far()
            if frames is not None:
                return frames
        elif entry.output_path is not None:
            file = self._store.find(entry.output_path, Kind.OUTPUT, owner=client)
            if file.shape is not None:
                return file.path, file.shape
        raise NotReady(f"id: the generation is {entry.current_state} and has no frames", "id")

    async def frame_source(self, client: str, id: str) -> FrameSource:
        """The frames of a generation for an encoder; see `Jobs.frame_source`."""
        entry = self._catalogue.find(client, id)
        if entry.live is not None and entry.live.record.state is State.RUNNING:
            output = entry.live.run.output
            if output is not None:
                return GrowingOutput(entry.live, *output, self._store)
        elif entry.live is not None and entry.live.record.state is not State.QUEUED:
            await entry.live.ended.wait()
        name = entry.output_path or (entry.live.record.output_path if entry.live is not None else None)
        if name is None:
            raise NotReady(f"id: the generation is {entry.current_state} and has no frames", "id")
        return CompleteOutput(self._store.find(name, Kind.OUTPUT, owner=client))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._settings.store_ttl_s / 4))
            self._catalogue.expire()

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run work in a task that is cancelled by `stop`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@dataclass
class _Pending:
    """A submission whose request is being checked."""

    digest: str
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: FilmstripError | None = None


def _new_record(
    submission: Submission,
    request: GenerateRequest,
    *,
    seq: int,
    id: str,
    digest: str,
    assets: Collection[str],
    text: str,
) -> Record:
    """The record of a submission, without what the check finds out.

    Args:
        submission: as it came.
        request: the same, with a seed and with assets for its data URLs.
        seq: its number.
        id: its id.
        digest: hash of the request that was sent.
        assets: made from data URLs.
        text: the request as it is kept.
    """
    return Record(
        seq=seq,
        client=submission.client,
        id=id,
        entry_point=submission.entry_point,
        state=State.QUEUED,
        pipeline_id=request.pipeline_id,
        prompt=_shown_prompt(request),
        digest=digest,
        idempotency_key=submission.idempotency_key,
        on_disconnect=submission.on_disconnect,
        previews=submission.previews,
        seed=request.seed,
        defaulted=tuple(sorted(defaulted_fields(submission.request))),
        assets=(*submission.own_files, *assets),
        request_bytes=len(text),
        created_at=time.time(),
        total_chunks=0,
        num_frames=request.num_frames,
        video_fps=submission.video_fps,
    )


def _with_plan(record: Record, checked: CheckedRequest) -> Record:
    """The record with what the check has found out."""
    plan = checked.plan
    own_fps = checked.files[UploadField.INPUT].fps if UploadField.INPUT in checked.files else None
    return record.model_copy(
        update={
            "video_fps": record.video_fps or (None if own_fps is None else float(own_fps)),
            "unused": plan.unused,
            "total_chunks": len(plan.chunks),
            "pipelines": tuple(pipeline.id for pipeline in plan.chain.pipelines),
            "inputs": checked.file_names,
            "height": plan.output.height,
            "width": plan.output.width,
        }
    )


def _shown_prompt(request: GenerateRequest) -> str:
    prompt = request.prompt
    text = prompt if isinstance(prompt, str) else " + ".join(weighted.text for weighted in prompt)
    return text[:MAX_SHOWN_PROMPT]


def _check_same(stored_digest: str, digest: str, id: str) -> None:
    if stored_digest != digest:
        raise IdTaken(f"id: there is a generation {id!r} with another request", "id")


def _cancelled_event(record: Record) -> Cancelled:
    return Cancelled(0, record.total_chunks, 0, seed=record.seed, unused=record.unused)


def _error_event(error: FilmstripError) -> ErrorEvent:
    return ErrorEvent(error.message, error.code)
