"""Starts what is measured: frontends on one embedded Triton, one for each transport, all on loopback."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
_SHM = Path("/dev/shm")  # noqa: S108
_START_S = 120.0
_STOP_S = 20.0
_SAMPLE_S = 0.01


class Transport(StrEnum):
    """How a chunk's arrays reach Triton."""

    LANES = "shared memory"
    UPLOADS = "uploads in shared memory"
    GRPC = "gRPC"


_SETTINGS: dict[Transport, dict[str, str]] = {
    Transport.LANES: {},
    Transport.UPLOADS: {"FILMSTRIP_UPLOADS_IN_SHM": "1"},
    Transport.GRPC: {"FILMSTRIP_SHARED_MEMORY": "0"},
}


class Process:
    """A child whose output goes to a file; ended by its pid."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end it in our own time
            )
        self.pid = self._process.pid

    def wait_for(self, pattern: str) -> str:
        """What the pattern's group matches in the output, as soon as it is there."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text(errors="replace"))
            if found:
                return found[1]
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"no {pattern!r} in the output:\n{self.log.read_text(errors='replace')[-4000:]}")

    def cpu_s(self) -> float:
        """CPU seconds that it has used, without its children."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Frontend(Process):
    """A frontend that is healthy; with `samples` it runs within `benchmarks.loop_sampler`."""

    def __init__(
        self,
        folder: Path,
        transport: Transport,
        triton_url: str | None = None,
        samples: Path | None = None,
        own_settings: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir()
        self.data_dir = folder / "data"
        module = ["frontend"] if samples is None else ["benchmarks.loop_sampler", str(samples)]
        triton = ["--embedded"] if triton_url is None else ["--triton-url", triton_url]
        address = ["--host", "127.0.0.1", "--port", "0", "--data-dir", str(self.data_dir)]
        settings = _SETTINGS[transport] | {
            "FILMSTRIP_STORE_FILES": "100000",
            "FILMSTRIP_STORE_BYTES": str(2**50),
            "FILMSTRIP_MODEL_REPOSITORY": str(
                ROOT / "tests" / "support" / "model_repository"
            ),  # without what was exported beside them
        }
        super().__init__(folder / "frontend.log", *module, *triton, *address, **(settings | dict(own_settings or {})))
        self.transport = transport
        self.samples = samples
        try:
            self.url = self.wait_for(r"listens on (http://[\w.:]+)")
            self._wait_healthy()
        except BaseException:
            self.stop()
            raise

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):  # it says where it listens just before it does
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"not healthy:\n{self.log.read_text(errors='replace')[-4000:]}")

    @property
    def triton_url(self) -> str:
        """Address of its embedded Triton."""
        return self.wait_for(r"embedded Triton \(pid \d+\) starts on ([^\s\"]+)")

    @property
    def triton_pid(self) -> int:
        """Its embedded Triton."""
        return int(self.wait_for(r"embedded Triton \(pid (\d+)\)"))

    def model_pid(self, model: str) -> int:
        """The process that a model of its embedded Triton runs in."""
        for child in psutil.Process(self.triton_pid).children():
            arguments = child.cmdline()[1:]
            if arguments and Path(arguments[0]).parent.parent.name == model:  # its model.py
                return child.pid
        raise RuntimeError(f"no process of {model}:\n{self.log.read_text(errors='replace')[-4000:]}")

    def forget(self, *names: str) -> None:
        """Remove stored files, so that a long run does not fill the disk."""
        for name in names:
            for path in (*self.data_dir.glob(f"*/{name}"), *_SHM.glob(f"*-{name}")):
                path.unlink()
            # Asking for it makes the store notice; it looks each file up before it gives it out.
            httpx.get(f"{self.url}/api/v1/generate/download", params={"path": name})


@contextlib.contextmanager
def frontends(folder: Path, *transports: Transport, sampled: bool = False) -> Iterator[dict[Transport, Frontend]]:
    """Frontends for these transports; the first starts the Triton that all use."""
    folder.mkdir()
    started: dict[Transport, Frontend] = {}
    with contextlib.ExitStack() as stack:
        for transport in transports:
            name = transport.name.lower()
            url = next(iter(started.values())).triton_url if started else None
            samples = folder / f"{name}.samples" if sampled else None
            started[transport] = Frontend(folder / name, transport, url, samples)
            stack.callback(started[transport].stop)
        yield started


class Memory:
    """The memory of a process, sampled in a thread for as long as the context is open.

    Attributes:
        before_bytes: resident at the start.
        peak_bytes: the most that was resident.
        own_growth_bytes: growth of what is its own: without mapped files and shared memory.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Memory":
        self.before_bytes, self._own_before = self._read()
        self.peak_bytes, self._own_peak = self.before_bytes, self._own_before
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth_bytes(self) -> int:
        """The peak above the start."""
        return self.peak_bytes - self.before_bytes

    @property
    def own_growth_bytes(self) -> int:
        """See the class."""
        return self._own_peak - self._own_before

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            resident, own = self._read()
            self.peak_bytes = max(self.peak_bytes, resident)
            self._own_peak = max(self._own_peak, own)

    def _read(self) -> tuple[int, int]:
        return memory_of(self._pid)


def cpu_s_of(pid: int) -> float:
    """CPU seconds of a process with all its threads, without its children, to the nanosecond."""
    # As clock_getcpuclockid(3) makes it. What /proc tells, and psutil of it, are hundredths of a second.
    return time.clock_gettime(~pid << 3 | 2)


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """What is started in the `with` block runs on one core, and all that it starts does; so does this thread."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def peak_memory_of(pid: int) -> int:
    """The most bytes of a process that were ever resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes of a process that are resident, and those of them that are its own: no mapped files, no shared memory."""
    found = dict(re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
    return int(found["VmRSS"]) * 1024, int(found["RssAnon"]) * 1024
