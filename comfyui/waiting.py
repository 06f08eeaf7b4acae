"""Blocking work that the user can stop: it runs in a thread while this one polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

POLL_S = 0.1
_JOIN_S = 3.0

ResultT = TypeVar("ResultT")


def while_polling(work: Callable[[], ResultT], poll: Callable[[], None], abort: Callable[[], None]) -> ResultT:
    """Do the work, calling `poll` every 0.1 s.

    Args:
        work: runs in a thread of its own.
        poll: runs in this thread; what it raises (ComfyUI's interrupt) ends the wait.
        abort: makes the work end soon; called when `poll` has raised.

    Raises:
        BaseException: what the work or the poll raised.
    """
    outcome: Future[ResultT] = Future()
    done = threading.Event()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed over, to be raised in the thread that waits
            outcome.set_exception(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="filmstrip", daemon=True)
    thread.start()
    try:
        poll()
        while not done.wait(POLL_S):
            poll()
    except BaseException:
        abort()
        thread.join(_JOIN_S)  # a connection attempt cannot be aborted: the thread then ends by itself later
        raise
    return outcome.result()


def sleep_polling(seconds: float, poll: Callable[[], None]) -> None:
    """Sleep, calling `poll` every 0.1 s."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        poll()
        time.sleep(min(POLL_S, left))
