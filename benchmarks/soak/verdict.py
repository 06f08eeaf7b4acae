"""What a soak came to, for people."""

import datetime
import re
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from benchmarks.soak.figures import LIMITS, Figures, grown, leaks
from benchmarks.soak.judge import Judge
from benchmarks.soak.server import MIB

_SHOWN_FAILURES = 20


@dataclass
class Verdict:
    """What was found.

    Attributes:
        judge: with its counts and failures.
        peaks: the most of each figure.
        before: figures after the warm-up, None if it was interrupted by then.
        after: figures at the end, likewise.
        longest_recovery_s: the longest time from a fault to a healthy server.
        interrupted: it was ended early.
    """

    judge: Judge
    peaks: dict[str, int]
    before: Figures | None = None
    after: Figures | None = None
    longest_recovery_s: float = 0.0
    interrupted: bool = False

    @property
    def status(self) -> int:
        """The process's exit status."""
        if self.judge.failures or self.leaks():
            return 1
        return 130 if self.interrupted else 0

    def leaks(self) -> list[str]:
        """Figures over their limits."""
        return leaks(self.before, self.after) if self.before and self.after else []

    def look_at_log(self, log: Path) -> None:
        """Tracebacks in the server's log are failures, whatever the clients saw; those that it quotes are not."""
        text = log.read_text(errors="replace")
        for found in list(re.finditer(r"^Traceback \(most recent call last\)", text, re.MULTILINE))[:_SHOWN_FAILURES]:
            self.judge.fail("log", "", text[max(0, found.start() - 200) : found.end() + 1500])


def counts(counter: Counter[Any]) -> str:
    """Keys and their counts, the most frequent first."""
    return ", ".join(f"{key} {count}" for key, count in counter.most_common()) or "none"


def status_line(judge: Judge, last: Figures | None) -> str:
    """How it goes."""
    now = time.strftime("%H:%M:%S")
    held = f"{last.memory / MIB:.1f} MiB, {last.descriptors} fds, {last.threads} threads" if last else "no figures yet"
    return (
        f"{now}  {held}; failures {len(judge.failures)}; answers: {counts(judge.statuses)}; "
        f"generations: {counts(judge.outcomes)}; faults: {counts(judge.faults)}"
    )


def markdown(command: str, seed: int, found: Verdict) -> str:
    """The whole report."""
    judge = found.judge
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    verdict = "Nothing was wrong." if found.status == 0 else f"{len(judge.failures)} failures."
    if found.leaks():
        verdict += f" Over the limit: {', '.join(LIMITS[name].what for name in found.leaks())}."
    if found.interrupted:
        verdict += " Interrupted."
    return (
        "\n\n".join(
            [
                f"`{command}`, seed {seed}, {today}. {machine()}",
                f"**{verdict}**",
                _table(found),
                f"- answers by status: {counts(judge.statuses)}\n"
                f"- generations by their ends: {counts(judge.outcomes)}\n"
                f"- faults: {counts(judge.faults)}; longest time until healthy {found.longest_recovery_s:.1f} s\n"
                f"- actions: {counts(judge.actions)}",
                *(f"{number}. {failure}" for number, failure in enumerate(judge.failures[:_SHOWN_FAILURES], 1)),
            ]
        )
        + "\n"
    )


def _table(found: Verdict) -> str:
    lines = [("held", "after the warm-up", "at the end", "most", "growth", "limit", ""), ("---",) * 7]
    growth = grown(found.before, found.after) if found.before and found.after else {}
    for field in fields(Figures):
        name, limit = field.name, LIMITS[field.name]
        grew = growth.get(name)
        verdict = "" if grew is None else "OVER" if name in found.leaks() else "ok"
        lines.append(
            (
                limit.what,
                _shown(name, getattr(found.before, name, None)),
                _shown(name, getattr(found.after, name, None)),
                _shown(name, found.peaks.get(name)),
                _shown(name, grew, sign="+"),
                _shown(name, limit.most, sign="+") + (f": {limit.why}" if limit.why else ""),
                verdict,
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(name: str, value: int | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value / MIB:{sign}.1f} MiB" if name in {"memory", "relay_memory", "shm_bytes"} else f"{value:{sign}d}"
