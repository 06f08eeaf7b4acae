"""The resources that the server holds, compared between two quiet phases, and the report of a soak."""

import contextlib
import datetime
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import machine
from benchmarks.servers import memory_of
from tests.soak.judge import Judge
from tests.soak.server import MIB, SoakServer

_SAMPLE_S = 3.0
_SETTLED_S = 6.0  # the server closes idle connections after 5


@dataclass(frozen=True)
class Figures:
    """The resources that a server holds; those that are slow to query are None in samples.

    Attributes:
        memory: anonymous memory of the frontend, in bytes.
        relay_memory: the same of the relay; None without one.
        descriptors: open file descriptors of the frontend.
        threads: threads of the frontend, without those that gRPC starts and names itself.
        processes: child processes, without the relay.
        files: files in the data directory, without Triton's logs.
        shm_files: files in shared memory, including Triton's own.
        shm_bytes: bytes of these files.
        regions: shared memory regions registered in Triton.
        sequences: open sequences in the models.
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
    """How much a resource may grow between the warm-up and the end.

    Attributes:
        resource: its name, for people.
        max_growth: the largest growth.
        exact: a decrease is wrong, too.
        reason: why it is not 0.
    """

    resource: str
    max_growth: int
    exact: bool = False
    reason: str = ""


LIMITS = {
    "memory": Limit("memory of the frontend", 32 * MIB, reason="the allocator keeps freed memory"),
    "relay_memory": Limit("memory of the relay", 32 * MIB, reason="likewise"),
    "descriptors": Limit("open descriptors", 3, reason="a relay started after a fault has two pipes and a connection"),
    "threads": Limit("threads, without gRPC's", 0),
    "processes": Limit("processes, without the relay", 0, exact=True),
    "files": Limit("files in the data directory", 0),
    "shm_files": Limit("files in shared memory", 0),
    "shm_bytes": Limit("bytes in shared memory", 0),
    "regions": Limit("regions registered in Triton", 0),
    "sequences": Limit("open sequences", 0),
}


def grown(before: Figures, after: Figures) -> dict[str, int]:
    """The growth of each figure that both have."""
    growth = {}
    for field in fields(Figures):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old is not None and new is not None:
            growth[field.name] = new - old
    return growth


def leaks(before: Figures, after: Figures) -> list[str]:
    """Names of the figures over their limits."""
    return [
        name
        for name, growth in grown(before, after).items()
        if growth > LIMITS[name].max_growth or (LIMITS[name].exact and growth != 0)
    ]


def sample(server: SoakServer) -> Figures:
    """The figures that are quick to query."""
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
        threads=num_own_threads(process.pid),
        processes=len(server.descendants()) - (relay is not None),
        files=len(server.stored_files()),
        shm_files=len(shm_files),
        shm_bytes=shm_bytes,
    )


def num_own_threads(pid: int) -> int:
    """Threads of a process that have its name; libraries give their own threads other names."""
    names = []
    for path in Path(f"/proc/{pid}/task").glob("*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            names.append(path.read_text())
    return names.count(Path(f"/proc/{pid}/comm").read_text())


def quiet(server: SoakServer, judge: Judge, timeout_s: float, interrupted: threading.Event) -> Figures | None:
    """Wait until nothing runs and all files have expired; the figures then, or None after an interrupt.

    A timeout is a failure.
    """
    deadline = time.monotonic() + timeout_s
    conditions: dict[str, Callable[[], bool]] = {
        "not healthy": lambda: server.health()[0],
        "still generating": lambda: not server.health()[1],
        "files are left": lambda: not server.stored_files(),
    }
    for problem, holds in conditions.items():
        while not holds():
            if interrupted.is_set():
                return None
            if time.monotonic() > deadline:
                left = [str(path.relative_to(server.data_dir)) for path in server.stored_files()[:5]]
                judge.fail("quiet", "", f"{problem} after {timeout_s:.0f} s: {left}")
                return sample(server)
            interrupted.wait(0.1)
    found = _settled(server, deadline)
    return replace(found, regions=server.num_regions(), sequences=server.num_sequences())


def _settled(server: SoakServer, deadline: float) -> Figures:
    """Figures that have not changed for a while, because connections take a moment to close."""
    found, since = sample(server), time.monotonic()
    while time.monotonic() - since < _SETTLED_S and time.monotonic() < deadline:
        time.sleep(0.2)
        now = sample(server)
        if (now.descriptors, now.threads, now.processes) != (found.descriptors, found.threads, found.processes):
            since = time.monotonic()
        found = now
    return found


class Sampler:
    """Samples figures in a thread while `running` is open, and remembers their maxima."""

    def __init__(self, server: SoakServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self.peaks: dict[str, int] = {}
        self.last: Figures | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Sample until the block ends."""
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


_SHOWN_FAILURES = 20


@dataclass
class Verdict:
    """The result of a soak.

    Attributes:
        judge: the counts and failures.
        peaks: the maximum of each figure.
        before: figures after the warm-up; None after an earlier interrupt.
        after: figures at the end; None after an interrupt.
        longest_recovery_s: the longest time from a fault until the server was healthy.
        interrupted: whether it was ended early.
    """

    judge: Judge
    peaks: dict[str, int]
    before: Figures | None = None
    after: Figures | None = None
    longest_recovery_s: float = 0.0
    interrupted: bool = False

    @property
    def status(self) -> int:
        """The exit status of the process."""
        if self.judge.failures or self.leaks():
            return 1
        return 130 if self.interrupted else 0

    def leaks(self) -> list[str]:
        """Figures over their limits."""
        return leaks(self.before, self.after) if self.before and self.after else []

    def check_log(self, log: Path) -> None:
        """Record tracebacks in the server's log as failures; quoted ones of Triton's log are not."""
        text = log.read_text(errors="replace")
        for found in list(re.finditer(r"^Traceback \(most recent call last\)", text, re.MULTILINE))[:_SHOWN_FAILURES]:
            self.judge.fail("log", "", text[max(0, found.start() - 200) : found.end() + 1500])


def counts(counter: Counter[Any]) -> str:
    """Keys and their counts, the most frequent first."""
    return ", ".join(f"{key} {count}" for key, count in counter.most_common()) or "none"


def status_line(judge: Judge, last: Figures | None) -> str:
    """The state so far, on one line."""
    now = time.strftime("%H:%M:%S")
    held = f"{last.memory / MIB:.1f} MiB, {last.descriptors} fds, {last.threads} threads" if last else "no figures yet"
    return (
        f"{now}  {held}; failures {len(judge.failures)}; answers: {counts(judge.statuses)}; "
        f"generations: {counts(judge.outcomes)}; faults: {counts(judge.faults)}"
    )


def markdown(command: str, seed: int, verdict: Verdict) -> str:
    """The report."""
    judge = verdict.judge
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    summary = "No failures." if verdict.status == 0 else f"{len(judge.failures)} failures."
    if verdict.leaks():
        summary += f" Over the limit: {', '.join(LIMITS[name].resource for name in verdict.leaks())}."
    if verdict.interrupted:
        summary += " Interrupted."
    return (
        "\n\n".join(
            [
                f"`{command}`, seed {seed}, {today}. {machine()}",
                f"**{summary}**",
                _table(verdict),
                f"- answers by status: {counts(judge.statuses)}\n"
                f"- generations by outcome: {counts(judge.outcomes)}\n"
                f"- faults: {counts(judge.faults)}; longest time until healthy {verdict.longest_recovery_s:.1f} s\n"
                f"- actions: {counts(judge.actions)}",
                *(f"{number}. {failure}" for number, failure in enumerate(judge.failures[:_SHOWN_FAILURES], 1)),
            ]
        )
        + "\n"
    )


def _table(verdict: Verdict) -> str:
    lines = [("resource", "after the warm-up", "at the end", "maximum", "growth", "limit", ""), ("---",) * 7]
    growth = grown(verdict.before, verdict.after) if verdict.before and verdict.after else {}
    for field in fields(Figures):
        name, limit = field.name, LIMITS[field.name]
        grew = growth.get(name)
        mark = "" if grew is None else "OVER" if name in verdict.leaks() else "ok"
        lines.append(
            (
                limit.resource,
                _shown(name, getattr(verdict.before, name, None)),
                _shown(name, getattr(verdict.after, name, None)),
                _shown(name, verdict.peaks.get(name)),
                _shown(name, grew, sign="+"),
                _shown(name, limit.max_growth, sign="+") + (f": {limit.reason}" if limit.reason else ""),
                mark,
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(name: str, value: int | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value / MIB:{sign}.1f} MiB" if name in {"memory", "relay_memory", "shm_bytes"} else f"{value:{sign}d}"
