"""What a run was asked for, and what it measured: as a table for people and as a Markdown section for the README."""

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20
GIB = 2**30
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_HEAD = ("measurement", "value", "compared with", "ratio", "target", "")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was measured.
        value: what came out, with its unit: a median of the rounds unless it says otherwise.
        baseline: what it is compared with, measured in turns with it.
        ratio: median of the rounds' ratios, and their spread.
        target: what it should be.
        holds: whether it is; None where there is no target.
    """

    what: str
    value: str
    baseline: str = ""
    ratio: str = ""
    target: str = ""
    holds: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """The cells of the line."""
        verdict = {True: "ok", False: "MISSED", None: ""}[self.holds]
        return (self.what, self.value, self.baseline, self.ratio, self.target, verdict)


@dataclass(frozen=True)
class Ratio:
    """How one series compares with another that was measured in turns with it.

    Attributes:
        median: of the rounds' ratios.
        low: the least of them.
        high: the greatest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], baseline: Sequence[float]) -> "Ratio":
        """Round by round, so that what slows a whole round down does not count."""
        ratios = [value / other for value, other in zip(values, baseline, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def median(values: Sequence[float]) -> float:
    """The middle of several rounds."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all (0..1) do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def text_table(rows: Sequence[Row]) -> str:
    """The rows in columns."""
    lines = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(command: str, rounds: int, sections: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """The section that goes into the README: command, date, machine, tables."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    parts = [f"`{command}`, rounds: {rounds}, {today}. {machine()}"]
    for title, rows in sections:
        lines = [_HEAD, ("---",) * len(_HEAD), *(row.cells() for row in rows)]
        parts.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def write(path: Path, section: str) -> None:
    """Replace what stands between the README's two markers.

    Raises:
        ValueError: the markers are not there.
    """
    text = path.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{path} has no {_BEGIN} and {_END}")
    path.write_text(f"{before}{begin}\n\n{section}\n{end}{after}")


def machine() -> str:
    """The machine in a sentence or two."""
    load, *_ = os.getloadavg()
    return (
        f"{os.cpu_count()} cores ({_cpu_model()}), {psutil.virtual_memory().total / GIB:.0f} GiB of RAM, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}; load at the end {load:.1f}."
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


@dataclass(frozen=True)
class Options:
    """The command's flags.

    Attributes:
        folder: an empty folder for servers and their files.
        rounds: how often everything is measured, in turns.
        quick: smaller files and fewer chunks: tells whether the benchmarks work, not how fast the server is.
        large: 1 GB transfers and a 2 GiB blob as well.
    """

    folder: Path
    rounds: int
    quick: bool
    large: bool
