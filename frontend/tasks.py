"""Work that must not be left half-done when its task is cancelled, and processes that inherit none of our files."""

import asyncio
import contextlib
import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when the caller is cancelled meanwhile; the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001  raised from task.result() below
            break
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # its traceback holds this frame: a cycle, which would keep all that the caller holds
    return task.result()


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` in a thread and wait until it is done, cancelled or not: what it uses may be freed after that."""
    return await run_to_end(asyncio.to_thread(call, *args, **kwargs))


def close_in_thread(fd: int) -> None:
    """Close a file whose name is gone: what it held goes with it, which takes a while for gigabytes."""
    try:
        asyncio.get_running_loop().run_in_executor(None, os.close, fd)
    except RuntimeError:  # no loop runs that it could hold up
        os.close(fd)


_Waiters = OrderedDict[Hashable, deque[asyncio.Future[None]]]


class FairSemaphore:
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


_FIRST_OWN_FD = 3  # after the three standard streams


async def spawn(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec`, whose process inherits the three standard streams and no other file.

    Hypercorn makes its listening socket inheritable, and uvloop leaves open in a child what is: our port would stay
    taken, and take connections that nobody answers, for as long as the child outlives us.
    """
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd >= _FIRST_OWN_FD:
            with contextlib.suppress(OSError):  # it was closed meanwhile, as the listing's own is
                os.set_inheritable(fd, False)
    return await asyncio.create_subprocess_exec(*command, **options)
