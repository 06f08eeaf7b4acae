"""Starts the embedded tritonserver, restarts it when it or one of its models dies, and stops it."""

import asyncio
import collections
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from filmstrip import triton_server
from filmstrip.errors import LoadFailed, TritonUnavailable
from filmstrip.triton_server import TritonFolder

from .. import logs
from ..model_registry import ModelFolder, ModelRegistry
from ..settings import ENV_PREFIX, Settings
from ..store import SHM_DIR, Store
from ..tasks import in_thread, spawn
from . import folders
from .watch import ModelWatch
from .wheel import bin_folder, find_server, link_backends

log = logging.getLogger(__name__)

_POLL_S = 0.1
_WATCH_S = 0.5
_EXIT_TIMEOUT_S = 3
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_LOG_TAIL_LINES = 30
_LAUNCHER = Path(__file__).with_name("launcher.py")


class _RestartNeeded(Exception):
    """A model's process has died, and only a new Triton gets rid of what it left behind."""


class EmbeddedTriton:
    """Starts tritonserver, restarts it when it or one of its models dies, and stops it.

    Args:
        settings: of the server.
        store: knows the names for shared memory.
        number: which of several it is; it gets the GPU of this number. None if it is the only one, with all GPUs.
    """

    def __init__(self, settings: Settings, store: Store, number: int | None = None) -> None:
        self._settings = settings
        self._number = number
        self._server = find_server()
        # The models' processes use the packages of the first python3 in PATH.
        self._path = f"{bin_folder()}:{os.environ.get('PATH', '')}"
        self._folder = TritonFolder.create()
        name = "triton" if number is None else f"triton-{number}"
        self._shm_prefix = store.shm_prefix(name)
        self.log_path = settings.data_dir.resolve() / "triton" / f"{name}.log"
        self.url = self._folder.url
        self.failed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._models: ModelRegistry | None = None
        self._was_ready = False
        self._restart_for: set[str] = set()
        self._died_before: set[str] = set()
        self._ready_since: dict[str, float] = {}
        self._restart_over = asyncio.Event()
        self._restart_over.set()
        self.is_up = False

    @property
    def has_started(self) -> bool:
        """It has once tried to load all its models."""
        return self._was_ready

    def start(self, models: ModelRegistry) -> None:
        """Start in the background; `failed` is set if the first start fails."""
        self._models = models
        models.own_triton = self
        models.is_starting = True
        self._task = asyncio.create_task(self._supervise(models), name="embedded triton")

    async def stop(self) -> None:
        """Stop tritonserver and all its processes."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _EXIT_TIMEOUT_S)
            except TimeoutError:
                log.warning("tritonserver did not exit in time and is killed")
        self.kill()
        self._remove_shm()
        self._folder.remove()

    def kill(self) -> None:
        """Kill it with the models' processes; the supervisor then restarts it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def on_model_ready(self, name: str) -> None:
        """Note when a model was loaded. A restart because of another model does not change that time."""
        self._ready_since.setdefault(name, time.monotonic())

    def schedule_restart(self, name: str) -> None:
        """Restart Triton because a model's process has died, without that model if it dies again too soon.

        Loading may take longer than the window, which therefore starts when the model is ready again. A process that
        dies while the model is being loaded does not count: that load fails.
        """
        models = self._models
        if models is None or name in self._restart_for:
            return
        now, window_s = time.monotonic(), self._settings.model_restart_window_s
        log.warning("the process of %s has died", name)
        models.mark_unhealthy(name)
        ready_since = self._ready_since.pop(name, None)
        if ready_since is not None and name in self._died_before and now - ready_since < window_s:
            self._died_before.discard(name)  # whoever loads it explicitly may have repaired it
            models.mark_failed(name, f"its process died again within {window_s:g} s after it was loaded")
        elif ready_since is not None:
            self._died_before.add(name)
        self._restart_for.add(name)
        self._restart_over.clear()

    @property
    def is_restarting(self) -> bool:
        """Whether a restart because of a dead model is in progress."""
        return not self._restart_over.is_set()

    async def wait_for_restart(self) -> None:
        """Wait until a restart because of a dead model is over, successful or not."""
        await self._restart_over.wait()

    def link_models(self) -> None:
        """Link the current model folders into the repository that Triton reads.

        Raises:
            OSError: a link cannot be made.
        """
        self._folder.link_models(self._settings.model_repository)

    def model_names(self) -> set[str]:
        """The models that have a folder."""
        return folders.model_names(self._settings.model_repository)

    def read_folders(self, names: Collection[str]) -> dict[str, ModelFolder]:
        """The folders of these models, by name."""
        return folders.read_folders(self._settings.model_repository, names)

    async def _supervise(self, models: ModelRegistry) -> None:
        if self._number is not None:
            logs.name_slot(str(self._number))
        pause_s = _FIRST_PAUSE_S
        while True:
            self.is_up = False
            models.is_starting = True
            try:
                await self._run_once(models)
            except _RestartNeeded as reason:
                log.warning("%s: restarting Triton", reason)
                pause_s = 0.0
            except TritonUnavailable as error:
                log.error("%s; the end of its log:\n%s", error.message, self._log_tail())
                self._note_failure()
            except OSError as error:
                log.error("cannot start the embedded Triton: %s", error)
                self._note_failure()
            except Exception:
                log.exception("supervising the embedded Triton failed; restarting it")
                self._note_failure()
            self.kill()
            if self._process is not None:
                await self._process.wait()
            if self.is_up:
                pause_s = min(pause_s, _FIRST_PAUSE_S)
            await asyncio.sleep(pause_s)
            pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    def _note_failure(self) -> None:
        if not self.is_up:  # answer whoever waits for the restart, even if Triton does not come back
            self._restart_over.set()
        if not self._was_ready:
            self.failed.set()

    async def _run_once(self, models: ModelRegistry) -> None:
        """Start Triton with its models and watch it until it ends.

        Raises:
            TritonUnavailable: it has ended, or could not be reached in time.
            _RestartNeeded: a model's process has died, and no generation is running.
        """
        process = self._process = await self._spawn()
        log.info("embedded Triton (pid %d) starts on %s", process.pid, self.url)
        self._restart_for.clear()
        models.mark_all_healthy()
        ended = asyncio.ensure_future(process.wait())
        starting = asyncio.create_task(self._bring_up(process, models), name="start the models")
        watch = ModelWatch(process.pid, models, self.schedule_restart)
        problem = ""
        try:
            while True:
                await asyncio.wait([ended] if starting.done() else [ended, starting], timeout=self._look_after_s)
                if ended.done():
                    raise TritonUnavailable(f"tritonserver exited with status {process.returncode}")
                if starting.done():
                    starting.result()
                if self._restart_for and not models.triton.is_generating:
                    raise _RestartNeeded(f"the process of {' and '.join(sorted(self._restart_for))} has died")
                try:
                    await watch.look()
                    problem = ""
                except Exception as error:  # noqa: BLE001 - a failed look does not mean that something is wrong
                    if problem != repr(error):
                        log.warning("cannot inspect the models' processes: %s", error)
                    problem = repr(error)
        finally:
            for task in (starting, ended):
                task.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    @property
    def _look_after_s(self) -> float:
        return _POLL_S if self._restart_for else _WATCH_S

    async def _bring_up(self, process: asyncio.subprocess.Process, models: ModelRegistry) -> None:
        """Wait until Triton answers, and load every model that can be loaded."""
        deadline = asyncio.get_running_loop().time() + self._settings.triton_start_timeout_s
        names = await self._reach(process, models, deadline)
        models.to_load = set(names) - models.failed()
        if self._was_ready:  # each request waits for its own models only
            self._end_restart(models)
        try:
            async with asyncio.TaskGroup() as group:
                for name in sorted(models.to_load):
                    group.create_task(self._load(name, models, deadline))
        finally:
            models.to_load = set()
        log.info("embedded Triton is ready")
        self._was_ready = self.is_up = True
        self._end_restart(models)

    def _end_restart(self, models: ModelRegistry) -> None:
        models.is_starting = False
        if not self._restart_for:
            self._restart_over.set()

    async def _reach(self, process: asyncio.subprocess.Process, models: ModelRegistry, deadline: float) -> list[str]:
        """Wait until Triton answers; returns the names of its models.

        Raises:
            TritonUnavailable: it does not answer in time.
        """
        while True:
            try:
                problem = await models.triton.why_unreachable()
                if problem is None:
                    return await models.model_names()
            except Exception as error:  # noqa: BLE001 - a failed call does not mean that Triton is gone
                problem = str(error)
            if asyncio.get_running_loop().time() > deadline:
                raise TritonUnavailable(
                    f"tritonserver is running (pid {process.pid}) but could not be reached on {self.url} within "
                    f"{self._settings.triton_start_timeout_s:g} s ({problem})"
                )
            await asyncio.sleep(_POLL_S)

    async def _load(self, name: str, models: ModelRegistry, deadline: float) -> None:
        """Load a model; if that fails, leave it unloaded."""
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await models.load_now(name)
            except TritonUnavailable:
                await asyncio.sleep(_POLL_S)
                continue
            except LoadFailed:
                pass  # it is in the log
            except TimeoutError:
                models.mark_failed(
                    name, f"it was not ready within {self._settings.triton_start_timeout_s:g} s of the start"
                )
            models.to_load.discard(name)
            return

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._remove_shm()
        self._folder.renew()
        await in_thread(self.link_models)
        backends = link_backends(self._server, self._folder.path / "backends")
        with self._open_log() as log_file:
            return await spawn(
                sys.executable,
                *("-I", str(_LAUNCHER), str(os.getpid()), str(self._server / "bin" / "tritonserver")),
                *triton_server.flags(
                    [self._folder.models],
                    address=self._folder.address,
                    port=self._folder.port,
                    shm_prefix=self._shm_prefix,
                    exit_timeout_s=_EXIT_TIMEOUT_S,
                    models=(),  # we load them, so that Triton answers at once and each can fail on its own
                    backends=backends,
                ),
                "--disable-auto-complete-config",  # else it first starts each model once to ask for its configuration
                env=_environment() | {"PATH": self._path} | visible_gpu(self._number, os.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )

    def _open_log(self) -> BinaryIO:
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # there is no old log, or it cannot be kept
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
            return self.log_path.open("wb")
        except OSError as error:
            log.warning("cannot write %s, so Triton's output is lost: %s", self.log_path, error.strerror)
            return Path(os.devnull).open("wb")

    def _log_tail(self) -> str:
        try:
            with self.log_path.open(errors="replace") as lines:
                return "".join(collections.deque(lines, _LOG_TAIL_LINES))
        except OSError as error:
            return f"(cannot read it: {error.strerror})"

    def _remove_shm(self) -> None:
        for leftover in SHM_DIR.glob(f"{self._shm_prefix}*"):
            leftover.unlink(missing_ok=True)


def visible_gpu(number: int | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable that shows a process one GPU alone, of those that the environment shows to us."""
    if number is None:
        return {}
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return {"CUDA_VISIBLE_DEVICES": str(number)}
    return {"CUDA_VISIBLE_DEVICES": dict(enumerate(shown.split(","))).get(number, "").strip()}


def _environment() -> dict[str, str]:
    """The environment without our settings and keys, which models do not need. Settings ignore case."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
