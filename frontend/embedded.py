"""A Triton of our own on loopback: the server that the `nvidia-pytriton` wheel carries, started and kept alive."""

import asyncio
import collections
import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

from filmstrip import triton_server
from filmstrip.errors import TritonUnavailable
from filmstrip.model_folders import DuplicateModel, check_unique
from frontend.call import SECRET_VARIABLE
from frontend.settings import MODELS_DIR, Settings
from frontend.spawn import spawn
from frontend.store import Store
from frontend.stored import SHM_DIR
from frontend.triton import Triton
from frontend.watch import STUB, ModelWatch, MustRestart

log = logging.getLogger(__name__)

_POLL_S = 0.1
_WATCH_S = 0.5
_EXIT_TIMEOUT_S = 3
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_PRIVATE = ("FILMSTRIP_API_KEYS", SECRET_VARIABLE)
_LAUNCHER = Path(__file__).with_name("launcher.py")


class EmbeddedUnsupported(RuntimeError):
    """This machine cannot run the embedded Triton."""


def check(settings: Settings) -> None:
    """See what would keep the embedded Triton from starting.

    Raises:
        EmbeddedUnsupported: the wheel or a model repository is missing, or two models have one name.
    """
    find_server()
    _check_repositories(settings.model_repository)


def _check_repositories(repositories: tuple[Path, ...]) -> None:
    if MODELS_DIR in repositories:
        MODELS_DIR.mkdir(exist_ok=True)  # so that what is exported while the server runs is seen
    for folder in repositories:
        if not folder.is_dir():
            raise EmbeddedUnsupported(
                f"no model repository {folder} (FILMSTRIP_MODEL_REPOSITORY is split at each colon; give a path with a "
                "colon as --model-repository)"
            )
    try:
        check_unique(repositories)
    except DuplicateModel as error:
        raise EmbeddedUnsupported(str(error)) from None


def find_server() -> Path:
    """The folder of the wheel's Triton.

    Raises:
        EmbeddedUnsupported: the wheel is not installed or not made for this machine.
    """
    spec = importlib.util.find_spec("pytriton")
    folders = spec.submodule_search_locations if spec else None
    server = Path(folders[0]) / "tritonserver" if folders else None
    if server is None or not (server / "bin" / "tritonserver").is_file():
        raise EmbeddedUnsupported(
            "--embedded needs the nvidia-pytriton wheel, which exists for Linux on x86-64 only: install "
            "filmstrip[embedded] there, or start a Triton container elsewhere and set FILMSTRIP_TRITON_URL"
        )
    stub = server / "python_backend_stubs" / _python_version() / STUB
    if not stub.is_file():
        raise EmbeddedUnsupported(f"the embedded Triton has no Python backend for Python {_python_version()}")
    return server


def link_backends(server: Path, folder: Path) -> Path:
    """Make a backends folder of our own: the stub must lie beside the library, and a copy of it would not start."""
    target = folder / "python"
    target.mkdir(parents=True, exist_ok=True)
    stub = server / "python_backend_stubs" / _python_version() / STUB
    for file in (*(server / "backends" / "python").iterdir(), stub):
        if file.is_file():
            link = target / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    return folder


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedTriton:
    """Starts tritonserver, starts it again when it dies, and ends it."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._server = find_server()
        self._folder = settings.data_dir.resolve() / "triton"
        self._shm_prefix = store.shm_name("triton")
        self.log_path = self._folder / "triton.log"
        self.url = f"127.0.0.1:{free_port()}"
        self.secret = settings.triton_secret or secrets.token_hex(16)
        self.failed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._was_ready = False
        self.is_up = False

    def start(self, client: Triton) -> None:
        """Begin; `Triton.is_ready` tells when it is up, `failed` when its first start came to nothing."""
        client.on_hung = self.kill
        self._supervisor = asyncio.create_task(self._supervise(client), name="embedded triton")

    async def stop(self) -> None:
        """End tritonserver and all its processes."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _EXIT_TIMEOUT_S)
            except TimeoutError:
                log.warning("tritonserver did not end in time and is killed")
        self.kill()
        self._remove_shm()

    def kill(self) -> None:
        """End it at once, with the models' processes; the supervisor starts it again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    # -- Supervision ------------------------------------------------------------------------------------

    async def _supervise(self, client: Triton) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                self._process = process = await self._spawn()
                log.info("embedded Triton (pid %d) starts on %s", process.pid, self.url)
                await self._wait_ready(process, client)
                log.info("embedded Triton is ready")
                client.mark_all_well()
                self._was_ready = self.is_up = True
                pause_s = _FIRST_PAUSE_S
                await self._watch(process, client)
            except TritonUnavailable as error:
                log.error("%s; its log ends with:\n%s", error.message, self._log_tail())
                if not self._was_ready:
                    self.failed.set()
            except OSError as error:  # no room for its log, perhaps: there may be some later
                log.error("the embedded Triton cannot be started: %s", error)
                if not self._was_ready:
                    self.failed.set()
            self.is_up = False
            self.kill()
            if self._process is not None:
                await self._process.wait()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._remove_shm()
        self._folder.mkdir(parents=True, exist_ok=True)
        backends = link_backends(self._server, self._folder / "backends")
        address, _, port = self.url.rpartition(":")
        with contextlib.suppress(FileNotFoundError):
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("wb") as log_file:
            return await spawn(
                sys.executable,
                *("-I", str(_LAUNCHER), str(os.getpid()), str(self._server / "bin" / "tritonserver")),
                *triton_server.flags(
                    self._settings.model_repository,
                    address=address,
                    port=int(port),
                    secret=self.secret,
                    shm_prefix=self._shm_prefix,
                    exit_timeout_s=_EXIT_TIMEOUT_S,
                    backends=backends,
                ),
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )

    async def _wait_ready(self, process: asyncio.subprocess.Process, client: Triton) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.triton_start_timeout_s
        while not await client.is_ready():
            if process.returncode is not None:
                raise TritonUnavailable(f"tritonserver ended with {process.returncode}")
            if asyncio.get_running_loop().time() > deadline:
                raise TritonUnavailable(f"tritonserver was not ready in {self._settings.triton_start_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    async def _watch(self, process: asyncio.subprocess.Process, client: Triton) -> None:
        """See to models whose process dies, until tritonserver itself ends.

        Raises:
            TritonUnavailable: tritonserver has ended, or must be ended.
        """
        ended = asyncio.ensure_future(process.wait())
        async with ModelWatch(process.pid, client) as models:
            while not ended.done():
                try:
                    await models.look()
                except MustRestart as reason:
                    log.warning("%s: Triton is started anew", reason)
                    return
                await asyncio.wait([ended], timeout=_WATCH_S)
        raise TritonUnavailable(f"tritonserver ended with {process.returncode}")

    def _log_tail(self) -> str:
        with self.log_path.open(errors="replace") as lines:
            return "".join(collections.deque(lines, 30))

    def _remove_shm(self) -> None:
        for leftover in SHM_DIR.glob(f"{self._shm_prefix}*"):
            leftover.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """Ours, without what the models need not know; the stub finds its packages through the python3 it sees first."""
    kept = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
