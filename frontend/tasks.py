"""Work that must be completed even when its task is cancelled, and child processes that inherit no open files."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

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


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` in a thread and wait until it is done, cancelled or not: what it uses may be freed afterwards."""
    return await run_to_end(asyncio.to_thread(call, *args, **kwargs))


def close_in_thread(fd: int) -> None:
    """Close a deleted file: that frees its contents, which takes a while for gigabytes."""
    try:
        asyncio.get_running_loop().run_in_executor(None, os.close, fd)
    except RuntimeError:  # no event loop runs that it could block
        os.close(fd)


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
