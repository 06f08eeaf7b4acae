"""The real frontend as a process, and what tests do with it."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import tritonclient.grpc as triton_grpc

from filmstrip.triton_server import NO_PROXY
from frontend.inference import SendSecret
from frontend.settings import Settings
from tests.support import http
from tests.support.sse import EventParser

ROOT = Path(__file__).resolve().parents[2]
MODELS = str(ROOT / "tests" / "support" / "model_repository")
"""The probe and, as links, the frame processors; exported pipelines would take time to load."""
MODEL_NAMES = sorted(path.parent.name for path in Path(MODELS).glob("*/config.pbtxt"))
Frames = npt.NDArray[np.uint8]
_POLL_S = 0.05  # each request for the health takes milliseconds of the CPU that starts the server

# The tests' own requests go to loopback without a proxy. The processes they start see the environment's proxies.
PROXIES = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
# `TEST_SERVER_NOFILE=1024 make test` limits the file descriptors of each server, soft and hard.
_MAX_FILES = os.environ.get("TEST_SERVER_NOFILE")
_LIMITED = ("prlimit", f"--nofile={_MAX_FILES}:{_MAX_FILES}") if _MAX_FILES else ()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A Python module that runs as a process, with its output in a file."""

    def __init__(self, log_path: Path, *arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> None:
        """Start it.

        Args:
            log_path: file for its output.
            arguments: the module's name and its arguments.
            launcher: a command that runs the command.
            environment: variables in addition to this process's own.
        """
        self.log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*launcher, sys.executable, "-m", *arguments],
                env=os.environ | PROXIES | environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C reaches only the tests, which then stop it
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def last_log_lines(self, num: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-num:])

    def wait_for_log(self, pattern: str, timeout_s: float = 120) -> str:
        """Wait until the pattern is in the output; what its group matches."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log())
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in the output:\n{self.last_log_lines()}")

    def cpu_s(self) -> float:
        """CPU seconds used so far, without those of its children."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self, timeout_s: float = 20) -> int:
        """Stop it with SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Frontend(Process):
    """One `python -m frontend` and its files.

    Args:
        folder: for its files.
        flags: command-line flags.
        triton: the server whose Triton it uses, instead of a `--triton-url` flag.
        module: module and leading arguments to run instead of `frontend`.
        launcher: a command that runs the command.
        environment: variables in addition to this process's own and to the settings.
        settings: settings by their lower-case names.
        more_settings: likewise.

    Attributes:
        started: all servers of this process, in the order of their starts.
        serving: those within a `serving` context.

    Raises:
        TypeError: there is no such setting.
        AssertionError: the process ended instead of listening.
    """

    started: ClassVar[list["Frontend"]] = []
    serving: ClassVar[list["Frontend"]] = []
    probe_log: Path

    def __init__(
        self,
        folder: Path,
        *flags: str,
        triton: "Frontend | None" = None,
        module: tuple[str, ...] = ("frontend",),
        launcher: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        **more_settings: object,
    ) -> None:
        settings = dict(settings or {}) | more_settings
        if unknown := settings.keys() - Settings.model_fields.keys():
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        self._flags, self._module, self._launcher = flags, module, launcher or _LIMITED
        self._settings = {f"FILMSTRIP_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment = dict(environment or {})
        self.triton = triton
        self._triton_url = flags[flags.index("--triton-url") + 1] if "--triton-url" in flags else None
        self._triton_secret = str(settings.get("triton_secret", ""))
        self._start(folder)

    def _start(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data_dir = folder / "data"
        self.probe_log = self.triton.probe_log if self.triton else folder / "probe.jsonl"
        triton = ("--triton-url", self.triton.triton_url) if self.triton else ()
        address = ("--port", "0", "--data-dir", str(self.data_dir))
        environment = {"PROBE_LOG": str(self.probe_log)} | self._settings | self._environment
        super().__init__(
            folder / "frontend.log",
            *(*self._module, *address, *triton, *self._flags),
            launcher=self._launcher,
            **environment,
        )
        self.started.append(self)
        try:
            self.url = self.wait_for_log(r"listens on (http://[\w.:\[\]]+)")
        except BaseException:
            self.stop()
            raise

    def replace(self) -> None:
        """Replace a process that no longer works with another one: the same settings, a new folder."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self._start(self.folder.with_name(f"{self.folder.name}+"))
        self.wait_healthy()

    def why_unusable(self, *, check_health: bool = True, timeout_s: float = 40) -> str | None:
        """Wait until it can serve another test; the reason if it cannot, else None.

        Args:
            check_health: if false, only check that the process is alive.
            timeout_s: how long it may take to be healthy and idle.
        """
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            if not check_health:
                return None
            health = self._health()
            if health is not None and health.status_code == 200 and not health.json()["generating"]:
                return None
            if time.monotonic() > deadline:
                return f"after {timeout_s:g} s: {health.text if health is not None else 'no response'}"
            time.sleep(_POLL_S)
        return f"its process has exited with status {self.process.returncode}"

    def _health(self) -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            return http.get(f"{self.url}/health", timeout=10)
        return None

    @property
    def triton_url(self) -> str:
        """gRPC address of its Triton."""
        if self.triton is not None:
            return self.triton.triton_url
        if self._triton_url is not None:
            return self._triton_url
        return self.wait_for_log(r"embedded Triton \(pid \d+\) starts on ([^\s\"]+)")

    @property
    def triton_pid(self) -> int:
        """Process id of its newest embedded Triton."""
        self.wait_for_log(r"embedded Triton \(pid (\d+)\)")
        return int(re.findall(r"embedded Triton \(pid (\d+)\)", self.log())[-1])

    def triton_client(self) -> triton_grpc.InferenceServerClient:
        """A client of its Triton that bypasses the frontend."""
        client = triton_grpc.InferenceServerClient(self.triton_url, channel_args=[NO_PROXY])
        if self._triton_secret:
            client.register_plugin(SendSecret(self._triton_secret))
        return client

    def wait_healthy(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            health = self._health()
            if health is not None and health.status_code == 200:
                return
            if self.process.poll() is not None:
                break
            time.sleep(_POLL_S)
        raise AssertionError(f"not healthy:\n{self.last_log_lines()}")

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    # -- Requests -------------------------------------------------------------------------------------------

    def upload(self, video: Frames) -> str:
        frames, height, width, channels = video.shape
        headers = {
            "X-Video-Frames": str(frames),
            "X-Video-Height": str(height),
            "X-Video-Width": str(width),
            "X-Video-Channels": str(channels),
        }
        response = http.post(f"{self.url}/api/v1/generate/upload", content=video.tobytes(), headers=headers)
        assert response.status_code == 200, response.text
        return str(response.json()["input_path"])

    def upload_data(self, blob: bytes) -> str:
        response = http.post(f"{self.url}/api/v1/generate/upload-data", content=blob)
        assert response.status_code == 200, response.text
        return str(response.json()["data_blob_path"])

    def post(self, **request: object) -> httpx.Response:
        """POST /generate; for requests that the server should refuse."""
        return http.post(f"{self.url}/api/v1/generate", json=request)

    @contextlib.contextmanager
    def stream(self, **request: object) -> Iterator["Events"]:
        with http.stream("POST", f"{self.url}/api/v1/generate", json=request) as response:
            if response.status_code != 200:
                raise AssertionError(f"{response.status_code}: {response.read().decode()}")
            yield Events(response)

    def generate(self, **request: object) -> list[tuple[str, dict[str, Any]]]:
        """All events of a generation, as (name, data)."""
        with self.stream(**request) as events:
            return list(events)

    def generate_frames(self, **request: object) -> Frames:
        """Run a generation that must complete; its frames."""
        name, data = self.generate(**request)[-1]
        assert name == "complete", data
        return self.download(data["output_path"])

    def download(self, name: str) -> Frames:
        response = http.get(f"{self.url}/api/v1/generate/download", params={"path": name})
        assert response.status_code == 200, response.text
        ndim, *shape = np.frombuffer(response.content[:20], "<u4")
        assert ndim == 4
        return np.frombuffer(response.content[20:], np.uint8).reshape(shape)

    def cancel(self) -> str:
        return str(http.post(f"{self.url}/api/v1/generate/cancel").json()["status"])

    def wait_idle(self, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while http.get(f"{self.url}/health").json()["generating"]:
            assert time.monotonic() < deadline, "the slot is still taken"
            time.sleep(0.02)

    def all_in_shm(self) -> list[Path]:
        """Its files in shared memory, including those of its Triton."""
        prefix = f"filmstrip-{hashlib.sha256(os.fsencode(self.data_dir.resolve())).hexdigest()[:12]}-"
        return sorted(Path("/dev/shm").glob(f"{prefix}*"))

    def in_shm(self) -> list[str]:
        """Names of its files in shared memory, without the prefix; while it runs, without those of Triton itself."""
        names = [path.name.split("-", 2)[2] for path in self.all_in_shm()]
        return [name for name in names if not name.startswith("-triton-") or self.process.poll() is not None]

    def stored(self, *kinds: str) -> list[str]:
        """Names of all files in the store, complete and incomplete, as "folder/name"."""
        folders = kinds or ("videos", "blobs", "assets", "outputs", "partial", "work")
        return sorted(f"{folder}/{file.name}" for folder in folders for file in (self.data_dir / folder).iterdir())

    def wait_for_chunk(self, more_than: int, timeout_s: float = 10) -> None:
        """Wait until the probe log has more than so many entries."""
        deadline = time.monotonic() + timeout_s
        while len(self.probe_entries()) <= more_than:
            assert time.monotonic() < deadline, "no chunk reached the model"
            time.sleep(0.02)

    def probe_entries(self) -> list[dict[str, Any]]:
        """Entries of the probe model's log: one for each chunk it received, and one for each it cancelled."""
        if not self.probe_log.exists():
            return []
        return [json.loads(line) for line in self.probe_log.read_text().splitlines()]


class Events:
    """The events of a stream, as (name, data)."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self._parser = EventParser()

    @property
    def comments(self) -> list[str]:
        return self._parser.comments

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for event in self._parser.parse(self._lines):
            yield event.name, event.data


@contextlib.contextmanager
def serving(frontend: Frontend) -> Iterator[Frontend]:
    """Wait until it is healthy; after the block stop it, which must succeed."""
    try:
        frontend.wait_healthy()
        Frontend.serving.append(frontend)
        yield frontend
    finally:
        if frontend in Frontend.serving:
            Frontend.serving.remove(frontend)
        assert frontend.stop() == 0


@contextlib.contextmanager
def frontend_on(
    server: Frontend, folder: Path, *, launcher: tuple[str, ...] = (), **settings: object
) -> Iterator[Frontend]:
    """Another frontend on the Triton of `server`."""
    with serving(Frontend(folder, triton=server, launcher=launcher, settings=settings)) as frontend:
        yield frontend
