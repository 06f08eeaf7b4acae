"""Starts what is measured: frontends on one embedded Triton, one for each transport, all on loopback."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import psutil

from tests.support import http
from tests.support.server import MODELS, Frontend

_SHM = Path("/dev/shm")  # noqa: S108
_SAMPLE_S = 0.01


class Transport(StrEnum):
    """How a chunk's arrays reach Triton."""

    LANES = "shared memory"
    UPLOADS = "uploads in shared memory"
    GRPC = "gRPC"


_TRANSPORTS: dict[Transport, dict[str, object]] = {
    Transport.LANES: {},
    Transport.UPLOADS: {"uploads_in_shm": 1},
    Transport.GRPC: {"shared_memory": 0},
}
_SETTINGS: dict[str, object] = {
    "host": "127.0.0.1",
    "store_files": 100_000,
    "store_bytes": 2**50,
    "model_repository": MODELS,  # without what was exported beside them
}


class MeasuredFrontend(Frontend):
    """A frontend that is healthy; with `samples` it runs within `benchmarks.loop_sampler`."""

    def __init__(
        self,
        folder: Path,
        transport: Transport,
        triton: Frontend | None = None,
        samples: Path | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(
            folder,
            *(() if triton else ("--embedded",)),
            triton=triton,
            module=("frontend",) if samples is None else ("benchmarks.loop_sampler", str(samples)),
            settings=_SETTINGS | _TRANSPORTS[transport] | dict(settings or {}),
        )
        self.transport = transport
        self.samples = samples
        try:
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise

    def model_pid(self, model: str) -> int:
        """The process that a model of its embedded Triton runs in."""
        for child in psutil.Process(self.triton_pid).children():
            arguments = child.cmdline()[1:]
            if arguments and Path(arguments[0]).parent.parent.name == model:  # its model.py
                return child.pid
        raise RuntimeError(f"no process of {model}:\n{self.last_log_lines()}")

    def forget(self, *names: str) -> None:
        """Remove stored files, so that a long run does not fill the disk."""
        for name in names:
            for path in (*self.data_dir.glob(f"*/{name}"), *_SHM.glob(f"*-{name}")):
                path.unlink()
            # Asking for it makes the store notice; it looks each file up before it gives it out.
            http.get(f"{self.url}/api/v1/generate/download", params={"path": name})


@contextlib.contextmanager
def frontends(
    folder: Path, *transports: Transport, sampled: bool = False
) -> Iterator[dict[Transport, MeasuredFrontend]]:
    """Frontends for these transports; the first starts the Triton that all use."""
    folder.mkdir()
    started: dict[Transport, MeasuredFrontend] = {}
    with contextlib.ExitStack() as stack:
        for transport in transports:
            name = transport.name.lower()
            triton = next(iter(started.values())) if started else None
            samples = folder / f"{name}.samples" if sampled else None
            started[transport] = MeasuredFrontend(folder / name, transport, triton, samples)
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
