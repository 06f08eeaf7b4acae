"""A generation that waits or runs: its events, its record, and those who follow it."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from filmstrip.errors import FilmstripError, Restarted
from filmstrip.models import Cancelled, Complete, ErrorEvent, Event, Progress

from .events import EventLog, NumberedEvent
from .generation import Generation
from .jobs import Record, State
from .records import Records

RESTARTED = "the server was restarted while the generation ran"

_WRITE_RECORD_S = 1.0


class Job:
    """A generation that waits or runs: it takes its events, and keeps its record.

    Attributes:
        record: as of now.
        log: its events.
        generation: what runs; it exists before it is started.
        uses: keeps its inputs; closed at its end.
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
        may_retry: Callable[["Job", ErrorEvent], bool],
        on_end: Callable[["Job"], None],
    ) -> None:
        self.record = record
        self.log = EventLog(self, num_events)
        self.generation = Generation(record.id, record.client, self)
        self.uses = contextlib.ExitStack()
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

    def change(self, **changes: Any) -> None:
        """Change the record, also on disk."""
        self.record = self.record.model_copy(update=changes)
        self._records.update(self.record)

    def suspend(self) -> None:
        """Take no more events and end all followers: the next start of the server goes on with it."""
        self._is_suspended = True
        self.log.close()

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
        else:
            now = time.time()
            changes = {"ended_at": now, "expires_at": now + self._ttl_s, **self._outcome(event)}
            self.record = self.record.model_copy(update=changes)
            self.uses.close()
        self.log.append(event)

    def _outcome(self, event: Complete | Cancelled | ErrorEvent) -> dict[str, Any]:
        """What the last event changes in the record."""
        if isinstance(event, ErrorEvent):
            if self._is_restarting:
                event = ErrorEvent(RESTARTED, Restarted.code)
            return {"state": State.FAILED, "error_code": event.code, "error_message": event.error}
        state = State.COMPLETE if isinstance(event, Complete) else State.CANCELLED
        return {"state": state, "output_path": event.output_path, "video_shape": event.video_shape}

    # -- The archive of its log ---------------------------------------------------------------------------------

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
