"""Watches over the model processes of the embedded Triton, which itself does not notice when one dies."""

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from filmstrip.errors import LoadFailed, TritonUnavailable
from frontend.tasks import in_thread
from frontend.triton import Triton

STUB = "triton_python_backend_stub"
_QUIET_S = 30.0  # without a generation: a good moment for a new start
_MOST_DEAD = 16  # no more of them are put up with until then: each keeps its shared memory, 64 MiB
_STUBLESS_LOAD_S = 5.0  # how long a model may be loading without a process


class MustRestart(Exception):
    """Nothing but a new start helps Triton; the message says why."""


class ModelWatch:
    """Has models loaded anew whose process died; a task of its own does that as long as the context is open."""

    def __init__(self, server_pid: int, client: Triton) -> None:
        self._server_pid = server_pid
        self._client = client
        self._stubs: dict[int, str] = {}
        self._healing: asyncio.Task[None] | None = None
        self._stubless_since: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.gather(self._healing, return_exceptions=True)

    async def look(self) -> None:
        """Look once; call it again and again.

        Raises:
            MustRestart: a model can't be loaded, or what one has left behind stays.
        """
        alive, num_dead = await in_thread(_stubs, self._server_pid)
        now = asyncio.get_running_loop().time()
        loading = self._client.loading() - set(alive.values())
        self._stubless_since = {model: self._stubless_since.get(model, now) for model in loading}
        if any(now - since > _STUBLESS_LOAD_S for since in self._stubless_since.values()):
            raise MustRestart("a model's process died while it was loaded")
        if num_dead and self._client.quiet_s > (_QUIET_S if num_dead <= _MOST_DEAD else 0):
            raise MustRestart("Triton holds on to the memory of a model that died")
        with contextlib.suppress(TritonUnavailable):  # it died this moment
            for model in set(self._stubs.values()) - set(alive.values()):
                await self._client.notice_death(model)
            self._heal()
        self._stubs = alive

    def _heal(self) -> None:
        if self._healing is not None and self._healing.done():
            healed, self._healing = self._healing, None
            try:
                healed.result()
            except LoadFailed as error:
                raise MustRestart(error.message) from None
        self._healing = self._healing or asyncio.create_task(self._client.heal(), name="heal models")


def _stubs(server_pid: int) -> tuple[dict[int, str], int]:
    """The models' processes by pid, and the number of dead ones; the second argument of a stub is its model.py."""
    found = {}
    num_dead = 0
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(server_pid).children():
            with contextlib.suppress(psutil.Error):
                if child.status() == psutil.STATUS_ZOMBIE:
                    num_dead += STUB.startswith(child.name())  # of one that died in a chunk, Triton never lets go
                    continue
                command = child.cmdline()
                if command and Path(command[0]).name == STUB:
                    found[child.pid] = Path(command[1]).parent.parent.name
    return found, num_dead
