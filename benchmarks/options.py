"""What a run of the benchmarks was asked for."""

from dataclasses import dataclass
from pathlib import Path


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
