"""A few turns at once at scarce work, shared out fairly between clients."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable

_Waiters = OrderedDict[Hashable, deque[asyncio.Future[None]]]


class Turns:
    """At most `limit` holders at once; who waits is served in a round of clients, and of each client's requests.

    Args:
        limit: holders at once.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._waiting: OrderedDict[str, _Waiters] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, client: str, request: Hashable, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for a turn and hold it until the context ends.

        Args:
            client: whose work it is.
            request: which of the client's requests it belongs to.
            urgent: comes before everything that is not.
        """
        await self._take(client, request, urgent=urgent)
        try:
            yield
        finally:
            self._hand_on()

    async def _take(self, client: str, request: Hashable, *, urgent: bool) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        ready = asyncio.get_running_loop().create_future()
        if urgent:
            self._urgent.append(ready)
        else:
            self._waiting.setdefault(client, OrderedDict()).setdefault(request, deque()).append(ready)
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # the turn came together with the cancellation
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while (ready := self._next()) is not None:
            if not ready.done():
                ready.set_result(None)
                return
        self._free += 1

    def _next(self) -> asyncio.Future[None] | None:
        if self._urgent:
            return self._urgent.popleft()
        if not self._waiting:
            return None
        client, requests = self._waiting.popitem(last=False)
        request, futures = requests.popitem(last=False)
        ready = futures.popleft()
        if futures:  # to the end of the round
            requests[request] = futures
        if requests:
            self._waiting[client] = requests
        return ready
