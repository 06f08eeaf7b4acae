"""How many connections may be open at once, and which one makes room for a new one.

Without a limit of our own, silent connections would use up the process's file descriptors, and then no file, process
or gRPC channel could be opened any more.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 192  # for logs, Triton, the generation's files, threads and processes
_DESCRIPTORS_A_CONNECTION = 2  # its socket, and the file that it uploads or downloads
_FEWEST = 8
_MOST_REFUSED = 32
_WARNING_PAUSE_S = 60.0


def raise_descriptor_limit() -> int:
    """Allow this process as many file descriptors as it may allow itself; returns their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def most_connections(wanted: int, descriptors: int) -> int:
    """How many of the `wanted` connections fit when the process may have this number of file descriptors."""
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(_FEWEST, (descriptors - RESERVED_DESCRIPTORS) // _DESCRIPTORS_A_CONNECTION))


class Closable(Protocol):
    """A connection as far as the limit is concerned."""

    @property
    def is_in_use(self) -> bool:
        """Bytes are on their way that closing it would lose."""

    def cut(self) -> None:
        """Close it."""


class OpenConnections:
    """The connections that are open: those with a request under way, and the idle ones, idle longest first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._busy: set[Closable] = set()
        self._idle: dict[Closable, None] = {}
        self._refused: dict[Closable, None] = {}
        self._cutting: asyncio.Task[None] | None = None
        self._warned_at = -_WARNING_PAUSE_S

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    def admit(self, connection: Closable) -> bool:
        """Add a new connection, as an idle one. Over the limit, the one that has been idle longest is cut.

        Returns:
            Whether it may be served: False when every other one has a request under way. A few that may not can
            stay until they have read why.
        """
        if len(self) < self.most or self._cut_one_idle():
            self._idle[connection] = None
            return True
        if len(self._refused) == _MOST_REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            oldest.cut()
        self._refused[connection] = None
        return False

    def _cut_one_idle(self) -> bool:
        victim = next((connection for connection in self._idle if not connection.is_in_use), None)
        self._warn("idle connections are closed" if victim else "new connections are refused")
        if victim is None:
            return False
        del self._idle[victim]
        victim.cut()
        return True

    def mark_busy(self, connection: Closable) -> None:
        """A request has begun."""
        self._idle.pop(connection, None)
        self._busy.add(connection)

    def mark_idle(self, connection: Closable) -> None:
        """Its request is answered."""
        self._busy.discard(connection)
        self._idle[connection] = None

    def remove(self, connection: Closable) -> None:
        """It is closed."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)
        self._refused.pop(connection, None)

    def cut_idle_when(self, stopping: Callable[[], Awaitable[None]]) -> None:
        """Cut the idle ones when the server stops."""
        if self._cutting is None:
            self._cutting = asyncio.create_task(self._cut_idle(stopping), name="cut idle connections")

    async def _cut_idle(self, stopping: Callable[[], Awaitable[None]]) -> None:
        await stopping()
        for connection in [connection for connection in self._idle if not connection.is_in_use]:
            connection.cut()

    def _warn(self, consequence: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_PAUSE_S:
            self._warned_at = now
            log.warning("all %d connections are taken: %s", self.most, consequence)
