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
from tests.support import http
from tests.support.sse import EventParser

ROOT = Path(__file__).resolve().parents[2]
MODELS = str(ROOT / "tests" / "support" / "model_repository")
"""The probe and, as links, the frame processors: not what else was exported beside them, which takes time to load."""
MODEL_NAMES = sorted(path.parent.name for path in Path(MODELS).glob("*/config.pbtxt"))
Frames = npt.NDArray[np.uint8]

# Requests of the tests themselves go to loopback without a proxy; what they start sees the environment's proxies.
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
    """A Python module that runs in a process of its own, with its output in a file."""

    def __init__(self, log_path: Path, *arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> None:
        """Start it.

        Args:
            log_path: for its output.
            arguments: the module's name and its arguments.
            launcher: a command that runs the command.
            environment: besides this process's own.
        """
        self.log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*launcher, sys.executable, "-m", *arguments],
                env=os.environ | PROXIES | environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end it in our own time
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def last_log_lines(self, num: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-num:])

    def wait_for_log(self, pattern: str, timeout_s: float = 120) -> str:
        """What the pattern's group matches in the output, as soon as it is there."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log())
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in the output:\n{self.last_log_lines()}")

    def cpu_s(self) -> float:
        """CPU seconds that it has used, without its children."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self, timeout_s: float = 20) -> int:
        """End it; gives its exit status."""
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
        flags: of the command.
        triton: whose Triton it uses, in place of a flag.
        module: what runs in place of `frontend`, with arguments of its own that come first.
        launcher: a command that runs the command.
        settings: by their names in lower case.
        more_settings: likewise.

    Attributes:
        started: all servers of this process, in the order of their starts.
        kept: those that are `running` now.
    """

    started: ClassVar[list["Frontend"]] = []
    kept: ClassVar[list["Frontend"]] = []
    probe_log: Path

    def __init__(
        self,
        folder: Path,
        *flags: str,
        triton: "Frontend | None" = None,
        module: tuple[str, ...] = ("frontend",),
        launcher: tuple[str, ...] = (),
        settings: Mapping[str, object] | None = None,
        **more_settings: object,
    ) -> None:
        settings = dict(settings or {}) | more_settings
        self._flags, self._module, self._launcher = flags, module, launcher or _LIMITED
        self._settings = {f"FILMSTRIP_{name.upper()}": str(value) for name, value in settings.items()}
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
        environment = {"PROBE_LOG": str(self.probe_log)} | self._settings
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
        """Replace a process that no longer works by another with the same settings and a new folder."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self._start(self.folder.with_name(f"{self.folder.name}+"))
        self.wait_healthy()

    def illness(self, *, ask: bool = True, timeout_s: float = 40) -> str | None:
        """Why it cannot serve another test, even after a wait; None if it can.

        Args:
            ask: if false, only check that its process is alive.
            timeout_s: how long it may take to be healthy and idle.
        """
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            if not ask:
                return None
            health = self._health()
            if health is not None and health.status_code == 200 and not health.json()["generating"]:
                return None
            if time.monotonic() > deadline:
                return f"after {timeout_s:g} s: {health.text if health is not None else 'no answer'}"
            time.sleep(0.02)
        return f"its process has ended with {self.process.returncode}"

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
        """Process of its newest embedded Triton."""
        self.wait_for_log(r"embedded Triton \(pid (\d+)\)")
        return int(re.findall(r"embedded Triton \(pid (\d+)\)", self.log())[-1])

    def triton_client(self) -> triton_grpc.InferenceServerClient:
        """A client of its Triton, beside the frontend."""
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
            time.sleep(0.1)
        raise AssertionError(f"not healthy:\n{self.log()}")

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
        answer = http.post(f"{self.url}/api/v1/generate/upload", content=video.tobytes(), headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["input_path"])

    def upload_data(self, blob: bytes) -> str:
        answer = http.post(f"{self.url}/api/v1/generate/upload-data", content=blob)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data_blob_path"])

    def post(self, **request: object) -> httpx.Response:
        """POST /generate for an answer that is expected to be a refusal."""
        return http.post(f"{self.url}/api/v1/generate", json=request)

    @contextlib.contextmanager
    def stream(self, **request: object) -> Iterator["Events"]:
        with http.stream("POST", f"{self.url}/api/v1/generate", json=request) as answer:
            if answer.status_code != 200:
                raise AssertionError(f"{answer.status_code}: {answer.read().decode()}")
            yield Events(answer)

    def generate(self, **request: object) -> list[tuple[str, dict[str, Any]]]:
        """All events of a generation, as (name, data)."""
        with self.stream(**request) as events:
            return list(events)

    def make(self, **request: object) -> Frames:
        """The frames of a generation that must complete."""
        name, data = self.generate(**request)[-1]
        assert name == "complete", data
        return self.download(data["output_path"])

    def download(self, name: str) -> Frames:
        answer = http.get(f"{self.url}/api/v1/generate/download", params={"path": name})
        assert answer.status_code == 200, answer.text
        ndim, *shape = np.frombuffer(answer.content[:20], "<u4")
        assert ndim == 4
        return np.frombuffer(answer.content[20:], np.uint8).reshape(shape)

    def cancel(self) -> str:
        return str(http.post(f"{self.url}/api/v1/generate/cancel").json()["status"])

    def wait_idle(self, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while http.get(f"{self.url}/health").json()["generating"]:
            assert time.monotonic() < deadline, "the slot is still taken"
            time.sleep(0.02)

    def in_shm(self) -> list[str]:
        """Names of its files in shared memory, those of Triton's own left out."""
        prefix = f"filmstrip-{hashlib.sha256(os.fsencode(self.data_dir.resolve())).hexdigest()[:12]}-"
        names = (file.name.removeprefix(prefix) for file in Path("/dev/shm").glob(f"{prefix}*"))
        return sorted(name for name in names if not name.startswith("-triton-") or self.process.poll() is not None)

    def stored(self, *kinds: str) -> list[str]:
        """Names of all files in the store: whole ones by kind, and half-written ones."""
        folders = kinds or ("videos", "blobs", "assets", "outputs", "partial", "work")
        return sorted(f"{folder}/{file.name}" for folder in folders for file in (self.data_dir / folder).iterdir())

    def wait_probed(self, more_than: int, timeout_s: float = 10) -> None:
        """Wait until the probe model has received another chunk."""
        deadline = time.monotonic() + timeout_s
        while len(self.probed()) <= more_than:
            assert time.monotonic() < deadline, "no chunk reached the model"
            time.sleep(0.02)

    def probed(self) -> list[dict[str, Any]]:
        """What the probe model received, one entry a chunk."""
        if not self.probe_log.exists():
            return []
        return [json.loads(line) for line in self.probe_log.read_text().splitlines()]


class Events:
    """The events of a stream, as (name, data)."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        self._parser = EventParser()

    @property
    def comments(self) -> list[str]:
        return self._parser.comments

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for event in self._parser.parse(self._lines):
            yield event.name, event.data


@contextlib.contextmanager
def running(frontend: Frontend) -> Iterator[Frontend]:
    """Healthy in the block; after it the server is stopped, and must end in good order."""
    try:
        frontend.wait_healthy()
        Frontend.kept.append(frontend)
        yield frontend
    finally:
        if frontend in Frontend.kept:
            Frontend.kept.remove(frontend)
        assert frontend.stop() == 0


@contextlib.contextmanager
def frontend_on(
    server: Frontend, folder: Path, *, launcher: tuple[str, ...] = (), **settings: object
) -> Iterator[Frontend]:
    """Another frontend, on the Triton of `server`."""
    with running(Frontend(folder, triton=server, launcher=launcher, settings=settings)) as frontend:
        yield frontend
