"""Unit tests of the frontend run on the server's event loop."""

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop: asyncio's own loop may lose the exit status of a process that is killed as it ends."""
    return {"uvloop": uvloop.new_event_loop}
