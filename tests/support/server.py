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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import tritonclient.grpc as triton_grpc

from filmstrip.triton_server import NO_PROXY
from frontend.relay import SendSecret

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


class Frontend:
    """One `python -m frontend` and its files."""

    def __init__(self, folder: Path, *flags: str, launcher: tuple[str, ...] = (), **settings: object) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.log_path = folder / "frontend.log"
        self.probe_log = folder / "probe.jsonl"
        self._triton_url = flags[flags.index("--triton-url") + 1] if "--triton-url" in flags else None
        self._triton_secret = str(settings.get("triton_secret", ""))
        environment = {f"FILMSTRIP_{name.upper()}": str(value) for name, value in settings.items()}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(launcher or _LIMITED),
                    sys.executable,
                    "-m",
                    "frontend",
                    "--port",
                    "0",
                    "--data-dir",
                    str(self.data_dir),
                    *flags,
                ],
                env=os.environ | PROXIES | {"PROBE_LOG": str(self.probe_log)} | environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        try:
            self.url = self._wait_for_log(r"listens on (http://[\w.:\[\]]+)")
        except BaseException:
            self.stop()
            raise

    def _wait_for_log(self, pattern: str, timeout_s: float = 30) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log())
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in the log:\n{self.log()}")

    @property
    def triton_url(self) -> str:
        """gRPC address of its Triton."""
        if self._triton_url is not None:
            return self._triton_url
        return self._wait_for_log(r"embedded Triton \(pid \d+\) starts on ([^\s\"]+)")

    @property
    def triton_pid(self) -> int:
        """Process of its newest embedded Triton."""
        self._wait_for_log(r"embedded Triton \(pid (\d+)\)")
        return int(re.findall(r"embedded Triton \(pid (\d+)\)", self.log())[-1])

    def triton_client(self) -> triton_grpc.InferenceServerClient:
        """A client of its Triton, beside the frontend."""
        client = triton_grpc.InferenceServerClient(self.triton_url, channel_args=[NO_PROXY])
        if self._triton_secret:
            client.register_plugin(SendSecret(self._triton_secret))
        return client

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_healthy(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"not healthy:\n{self.log()}")

    def stop(self, timeout_s: float = 15) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

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
        answer = httpx.post(f"{self.url}/api/v1/generate/upload", content=video.tobytes(), headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["input_path"])

    def upload_data(self, blob: bytes) -> str:
        answer = httpx.post(f"{self.url}/api/v1/generate/upload-data", content=blob, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data_blob_path"])

    def post(self, **request: object) -> httpx.Response:
        """POST /generate for an answer that is expected to be a refusal."""
        return httpx.post(f"{self.url}/api/v1/generate", json=request, timeout=60)

    @contextlib.contextmanager
    def stream(self, **request: object) -> Iterator["Events"]:
        with httpx.stream("POST", f"{self.url}/api/v1/generate", json=request, timeout=60) as answer:
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
        answer = httpx.get(f"{self.url}/api/v1/generate/download", params={"path": name}, timeout=60)
        assert answer.status_code == 200, answer.text
        ndim, *shape = np.frombuffer(answer.content[:20], "<u4")
        assert ndim == 4
        return np.frombuffer(answer.content[20:], np.uint8).reshape(shape)

    def cancel(self) -> str:
        return str(httpx.post(f"{self.url}/api/v1/generate/cancel").json()["status"])

    def wait_idle(self, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while httpx.get(f"{self.url}/health").json()["generating"]:
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
    """The events of a stream, parsed by the letter of the format."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        self.comments: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                assert list(fields) == ["id", "event", "data"]
                yield fields["event"], json.loads(fields["data"])
                fields = {}
