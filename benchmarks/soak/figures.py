"""What the server holds: sampled while it runs, and compared between two quiet moments."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import psutil

from benchmarks.servers import memory_of
from benchmarks.soak.judge import Judge
from benchmarks.soak.server import MIB, Server
from frontend.tasks import NUM_THREADS

_SAMPLE_S = 3.0
_SETTLED_S = 6.0  # idle connections are kept for 5


@dataclass(frozen=True)
class Figures:
    """What a server holds; what is dear to ask for is None in samples.

    Attributes:
        memory: anonymous memory of the frontend in bytes.
        relay_memory: likewise of the relay, None without one.
        descriptors: open in the frontend.
        threads: of the frontend.
        processes: that it started, without the relay.
        files: in the data directory, without Triton's logs.
        shm_files: in shared memory, with Triton's own.
        shm_bytes: of them.
        regions: registered in Triton.
        sequences: open in the models.
    """

    memory: int
    relay_memory: int | None
    descriptors: int
    threads: int
    processes: int
    files: int
    shm_files: int
    shm_bytes: int
    regions: int | None = None
    sequences: int | None = None


@dataclass(frozen=True)
class Limit:
    """How much more there may be at the end than after the warm-up.

    Attributes:
        what: the figure, for people.
        most: the most growth.
        exact: less is wrong, too.
        why: why not 0.
    """

    what: str
    most: int
    exact: bool = False
    why: str = ""


LIMITS = {
    "memory": Limit("memory of the frontend", 32 * MIB, why="what the allocator keeps"),
    "relay_memory": Limit("memory of the relay", 32 * MIB, why="likewise"),
    "descriptors": Limit("open descriptors", 3, why="a relay that a fault made needful has two pipes and a connection"),
    "threads": Limit("threads", NUM_THREADS, why="the pool starts its threads when they are first needed"),
    "processes": Limit("processes, without the relay", 0, exact=True),
    "files": Limit("files in the data directory", 0),
    "shm_files": Limit("files in shared memory", 0),
    "shm_bytes": Limit("bytes in shared memory", 0),
    "regions": Limit("regions registered in Triton", 0),
    "sequences": Limit("open sequences", 0),
}


def grown(before: Figures, after: Figures) -> dict[str, int]:
    """How much more there is; figures that one of the two lacks are left out."""
    growth = {}
    for field in fields(Figures):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old is not None and new is not None:
            growth[field.name] = new - old
    return growth


def leaks(before: Figures, after: Figures) -> list[str]:
    """Names of the figures that are over their limits."""
    return [
        name
        for name, growth in grown(before, after).items()
        if growth > LIMITS[name].most or (LIMITS[name].exact and growth != 0)
    ]


def sample(server: Server) -> Figures:
    """What can be told at any time."""
    process, relay = server.process(), server.relay()
    shm_bytes = 0
    shm_files = server.shm_files()
    for path in shm_files:
        with contextlib.suppress(FileNotFoundError):
            shm_bytes += path.stat().st_size
    return Figures(
        memory=memory_of(server.pid)[1],
        relay_memory=memory_of(relay.pid)[1] if relay else None,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        processes=len(server.family()) - (relay is not None),
        files=len(server.stored_files()),
        shm_files=len(shm_files),
        shm_bytes=shm_bytes,
    )


def quiet(server: Server, judge: Judge, timeout_s: float, interrupted: threading.Event) -> Figures | None:
    """Wait until nothing runs and all files have expired; the figures then, None when it was interrupted.

    What does not come to rest is a failure.
    """
    deadline = time.monotonic() + timeout_s
    conditions: dict[str, Callable[[], bool]] = {
        "it is not healthy": lambda: server.health()[0],
        "it still generates": lambda: not server.health()[1],
        "files are left": lambda: not server.stored_files(),
    }
    for unrest, holds in conditions.items():
        while not holds():
            if interrupted.is_set():
                return None
            if time.monotonic() > deadline:
                left = [str(path.relative_to(server.data_dir)) for path in server.stored_files()[:5]]
                judge.fail("quiet", "", f"{unrest} after {timeout_s:.0f} s: {left}")
                return sample(server)
            interrupted.wait(0.1)
    found = _settled(server, deadline)
    return replace(found, regions=server.num_regions(), sequences=server.num_sequences())


def _settled(server: Server, deadline: float) -> Figures:
    """Figures that stay the same for a while: connections take a moment to close."""
    found, since = sample(server), time.monotonic()
    while time.monotonic() - since < _SETTLED_S and time.monotonic() < deadline:
        time.sleep(0.2)
        now = sample(server)
        if (now.descriptors, now.threads, now.processes) != (found.descriptors, found.threads, found.processes):
            since = time.monotonic()
        found = now
    return found


class Sampler:
    """Samples in a thread while it is open, and remembers the most of each figure."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.peaks: dict[str, int] = {}
        self.last: Figures | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Sample."""
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _work(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            with contextlib.suppress(psutil.Error, FileNotFoundError):  # a process ended meanwhile
                self.last = sample(self._server)
                for field in fields(Figures):
                    value = getattr(self.last, field.name)
                    if value is not None:
                        self.peaks[field.name] = max(value, self.peaks.get(field.name, 0))
