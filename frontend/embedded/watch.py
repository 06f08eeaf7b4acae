"""Watches the model processes of the embedded Triton, which does not notice itself when one dies."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from filmstrip.errors import TritonUnavailable

from ..model_registry import ModelRegistry
from ..tasks import in_thread
from ..triton import DIED_AT_START
from .wheel import STUB

_ANSWER_S = 5.0  # after a process ends, Triton may still answer or start another one
_LAUNCH_S = 15.0  # how long a model may be loading without a process


class ModelWatch:
    """Notices model processes that die."""

    def __init__(self, server_pid: int, models: ModelRegistry, on_exit: Callable[[str], None]) -> None:
        """Watch the processes of one tritonserver.

        Args:
            server_pid: of tritonserver.
            models: its models.
            on_exit: called with the name of each model that was loaded and has lost a process.
        """
        self._server_pid = server_pid
        self._models = models
        self._on_exit = on_exit
        self._alive: dict[int, str] = {}
        self._started_in_load: set[int] = set()
        self._lost: dict[str, float] = {}
        self._unlaunched: dict[str, float] = {}
        self._missing: dict[str, int] = {}

    async def look(self) -> None:
        """Look once; to be called repeatedly.

        Raises:
            Exception: looking failed, which says nothing about the models.
        """
        alive = await in_thread(model_processes, self._server_pid)
        if alive is None:
            return
        loading = self._models.loading()
        gone = {pid: model for pid, model in self._alive.items() if pid not in alive}
        for model in set(gone.values()) - loading:
            self._missing.setdefault(model, Counter(self._alive.values())[model])
        self._watch_loads(alive, loading, {model for pid, model in gone.items() if pid in self._started_in_load})
        started = {pid for pid, model in alive.items() if model in loading and pid not in self._alive}
        self._started_in_load = (self._started_in_load | started) & alive.keys()
        self._alive = alive
        with contextlib.suppress(TritonUnavailable):  # the next look asks again
            await self._check_missing()

    def _watch_loads(self, alive: dict[int, str], loading: set[str], died: set[str]) -> None:
        """Fail loads whose process has ended: Triton may wait forever for one that never answered."""
        now = asyncio.get_running_loop().time()
        # A model whose load failed may be loading again: that the first load's process ended does not fail this one.
        replaced = {model for pid, model in alive.items() if pid not in self._alive}
        lost = dict.fromkeys(died, now + _ANSWER_S) | self._lost
        self._lost = {model: deadline for model, deadline in lost.items() if model in loading - replaced}
        self._unlaunched = {
            model: self._unlaunched.get(model, now + _LAUNCH_S) for model in loading - set(alive.values())
        }
        for model, deadline in [*self._lost.items(), *self._unlaunched.items()]:
            if now > deadline and model not in self._models.failed():
                self._models.mark_failed(model, DIED_AT_START)

    async def _check_missing(self) -> None:
        """A model that has lost a process has died, unless it was unloaded or loaded again."""
        for model, num_before in list(self._missing.items()):
            num_alive = Counter(self._alive.values())[model]
            if num_alive < num_before and model not in self._models.loading() and await self._models.is_loaded(model):
                self._on_exit(model)
            del self._missing[model]


def model_processes(server_pid: int) -> dict[int, str] | None:
    """The models of a tritonserver by the ids of their processes; None when it has ended.

    Raises:
        psutil.Error, OSError: the processes could not be listed.
    """
    try:
        children = psutil.Process(server_pid).children()
    except psutil.NoSuchProcess:
        return None
    found = {}
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # also of one that has ended and was not waited for
            command = child.cmdline()  # of a stub, the second argument is its model.py
            if command and Path(command[0]).name == STUB:
                found[child.pid] = Path(command[1]).parent.parent.name
    return found
