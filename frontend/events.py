"""The log of a generation's events, and the event stream that follows it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict

from filmstrip.models import EVENT_NAMES, LAST_EVENTS, Event

KEEP_ALIVE = b": keep-alive\n\n"


class EventLog:
    """Events in order, numbered from 1; any number of readers may follow it, from any event on."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._grown = asyncio.Event()

    def append(self, event: Event) -> None:
        """Add an event; nothing can follow a last one."""
        if self.is_complete:
            raise RuntimeError("the generation has ended")
        self._events.append(event)
        self._grown.set()
        self._grown = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """The last event is there."""
        return bool(self._events) and isinstance(self._events[-1], LAST_EVENTS)

    @property
    def last(self) -> Event | None:
        """The newest event."""
        return self._events[-1] if self._events else None

    async def follow(self, keep_alive_s: float, after: int = 0) -> AsyncIterator[bytes]:
        """The log as server-sent events, up to the last one, with comments in long silences.

        Args:
            keep_alive_s: longest silence before a comment.
            after: number of the last event that the reader already has.
        """
        position = after
        while position < len(self._events) or not self.is_complete:
            if position < len(self._events):
                position += 1
                yield encode_event(position, self._events[position - 1])
                continue
            grown = self._grown
            try:
                async with asyncio.timeout(keep_alive_s):
                    await grown.wait()
            except TimeoutError:
                yield KEEP_ALIVE


def encode_event(number: int, event: Event) -> bytes:
    """One event on the wire."""
    data = {name: value for name, value in asdict(event).items() if value is not None}
    return f"id: {number}\nevent: {EVENT_NAMES[type(event)]}\ndata: {json.dumps(data)}\n\n".encode()
