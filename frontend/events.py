"""The log of a generation's events, which any number of readers follow, and its form on the wire."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import NamedTuple, Protocol

from filmstrip.models import EVENT_NAMES, LAST_EVENTS, Event, Preview

KEEP_ALIVE = b": keep-alive\n\n"
_TAIL_EVENTS = 64  # kept in memory; readers that are further behind read from the archive
_PAGE_EVENTS = 16  # a preview may have 32 KiB, and each reader that is behind holds a page


class NumberedEvent(NamedTuple):
    """An event that every reader gets once: its number, from 1, its name and its data in JSON."""

    number: int
    name: str
    data: str

    @classmethod
    def of(cls, number: int, event: Event) -> "NumberedEvent":
        """An event with its number; keys without a value are left out of its data, except that of a preview's image."""
        keeps_null = isinstance(event, Preview)
        data = {name: value for name, value in asdict(event).items() if value is not None or keeps_null}
        return cls(number, EVENT_NAMES[type(event)], json.dumps(data))

    def encode(self) -> bytes:
        """The event as a server-sent event."""
        return f"id: {self.number}\nevent: {self.name}\ndata: {self.data}\n\n".encode()


class EventSink(Protocol):
    """Takes the events of a generation."""

    def append(self, event: Event) -> None:
        """Take the next event."""


class EventArchive(Protocol):
    """Where the events of one generation are kept."""

    def add(self, event: NumberedEvent, done: Callable[[bool], None]) -> None:
        """Write an event; `done` is called in the event loop, in order, with whether it was written."""

    async def read(self, after: int, limit: int) -> list[NumberedEvent]:
        """The next events that were written, at most `limit`."""


class EventLog:
    """Events in order, numbered from 1; any number of followers may read it, from any event on.

    A follower gets an event after it was written, so a crash loses none that was sent. If writing fails, the event is
    sent anyway.

    Args:
        archive: where the events are kept.
        num_events: events in the archive. A generation that is made again repeats these first: they are not appended
            again.
        is_complete: the archive has the last event.
        on_complete: called when the last event has been written.
    """

    def __init__(
        self,
        archive: EventArchive,
        num_events: int = 0,
        *,
        is_complete: bool = False,
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self._archive = archive
        self._num_written = num_events
        self._num_numbered = num_events
        self._num_appended = 0
        self._tail: deque[NumberedEvent] = deque()
        self._all_written = True
        self._has_last = self.is_complete = is_complete
        self._on_complete = on_complete
        self._is_closed = False
        self._grown = asyncio.Event()

    @property
    def num_events(self) -> int:
        """Number of the newest event that can be read."""
        return self._num_written

    def append(self, event: Event) -> None:
        """Add an event; nothing can follow a last one."""
        if self._has_last:
            raise RuntimeError("the generation has ended")
        self._has_last = isinstance(event, LAST_EVENTS)
        self._num_appended += 1
        if self._num_appended <= self._num_numbered and not self._has_last:
            return  # from the first attempt
        self._num_numbered = max(self._num_appended, self._num_numbered + 1)
        numbered, is_last = NumberedEvent.of(self._num_numbered, event), self._has_last

        def done(is_written: bool) -> None:
            self._show(numbered, is_last=is_last, is_written=is_written)

        self._archive.add(numbered, done)

    def close(self) -> None:
        """End all readers without a last event."""
        self._is_closed = True
        self._wake()

    async def follow(self, *, after: int = 0, silence_s: float) -> AsyncIterator[NumberedEvent | None]:
        """The events up to the last one, and None after each long silence.

        Args:
            after: number of the last event that the reader already has.
            silence_s: longest silence.
        """
        position = after
        while True:
            if position < self._num_written:
                events = await self._next(position)
                if not events:
                    return  # the generation has been deleted
                for event in events:
                    position = event.number
                    yield event
                continue
            if self.is_complete or self._is_closed:
                return
            grown = self._grown
            try:
                async with asyncio.timeout(silence_s):
                    await grown.wait()
            except TimeoutError:
                yield None

    async def _next(self, position: int) -> list[NumberedEvent]:
        """Some events after `position`."""
        first = self._tail[0].number if self._tail else self._num_written + 1
        if first <= position + 1:
            return [event for event in self._tail if event.number > position]
        events = await self._archive.read(position, min(_PAGE_EVENTS, first - position - 1))
        return events or list(self._tail)

    def _show(self, event: NumberedEvent, *, is_last: bool, is_written: bool) -> None:
        self._all_written = self._all_written and is_written
        self._tail.append(event)
        if self._all_written and len(self._tail) > _TAIL_EVENTS:
            self._tail.popleft()
        self._num_written = event.number
        self.is_complete = is_last
        self._wake()
        if is_last:
            self._on_complete()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()
