"""longlive-small, exported for the benchmark into a repository of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.shipped import CHECKPOINT, ID, LORAS, SIDES, export_shipped

PROMPT = "a red circle moving left on a blue background"


@dataclass(frozen=True)
class Model:
    """A pipeline that was exported.

    Attributes:
        id: of the pipeline.
        checkpoint: the folder that it was made of.
        repository: Triton's, with nothing else in it.
        sides: height and width of its videos, in pixels.
        loras: the files that it was exported with, by name.
    """

    id: str
    checkpoint: Path
    repository: Path
    sides: tuple[int, int]
    loras: Mapping[str, Path] = field(default_factory=dict)

    @property
    def version(self) -> Path:
        """The folder with its engines."""
        return self.repository / self.id / "1"


def shipped(repository: Path) -> Model:
    """The model of a repository that it was exported into."""
    return Model(ID, CHECKPOINT, repository, SIDES, LORAS)


def export(folder: Path) -> Model:
    """Export it, by a process that leaves nothing of PyTorch in this one; what `make model` has made is used.

    Raises:
        RuntimeError: the export failed, as where PyTorch is not installed.
    """
    return shipped(export_shipped(folder))
