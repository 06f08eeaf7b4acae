"""Work that must be completed even when its task is cancelled, and child processes that inherit no open files."""

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

NUM_THREADS = 32  # for files and parsing; so many that some are free while others wait for a slow disk
_FIRST_OWN_FD = 3  # after the three standard streams

P = ParamSpec("P")
T = TypeVar("T")


async def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` until it is done, even if the caller is cancelled meanwhile; the cancellation is raised then."""
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


def start_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Give an event loop a thread pool of `NUM_THREADS`, all started now, whatever the load."""
    executor = ThreadPoolExecutor(NUM_THREADS, "worker")
    all_run = threading.Barrier(NUM_THREADS + 1)
    for _ in range(NUM_THREADS):
        executor.submit(all_run.wait)  # an idle thread would be used again
    all_run.wait()
    loop.set_default_executor(executor)


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` in a thread and wait until it is done, cancelled or not: what it uses may be freed afterwards."""
    return await run_to_end(asyncio.to_thread(call, *args, **kwargs))


def close_in_thread(fd: int) -> None:
    """Close a deleted file: that frees its contents, which takes a while for gigabytes."""
    try:
        asyncio.get_running_loop().run_in_executor(None, os.close, fd)
    except RuntimeError:  # no event loop runs that it could block
        os.close(fd)


_Waiters = OrderedDict[Hashable, deque[asyncio.Future[None]]]


class FairSemaphore:
    """A semaphore that serves waiting clients in turn, and each client's requests in turn.

    Args:
        limit: maximum number of holders at a time.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._waiting: OrderedDict[str, _Waiters] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, client: str, request: Hashable, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for a turn and hold it until the context ends.

        Args:
            client: the client whose work it is.
            request: the request of the client that it belongs to.
            urgent: whether it comes before everything that is not urgent.
        """
        await self._take(client, request, urgent=urgent)
        try:
            yield
        finally:
            self._hand_on()

    async def _take(self, client: str, request: Hashable, *, urgent: bool) -> None:
        if self._free:  # then nobody is waiting
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
            if ready.done() and not ready.cancelled():  # the turn came at the same time as the cancellation
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
        if futures:  # to the end of the queue
            requests[request] = futures
        if requests:
            self._waiting[client] = requests
        return ready


async def spawn(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec` for a process that inherits only the three standard streams.

    Hypercorn makes its listening socket inheritable, and uvloop leaves inheritable files open in a child. If the child
    outlived us, our port would stay taken and accept connections that nobody answers.
    """
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd >= _FIRST_OWN_FD:
            with contextlib.suppress(OSError):  # closed meanwhile, like the listing's own
                os.set_inheritable(fd, False)
    return await asyncio.create_subprocess_exec(*command, **options)
