"""A small LongLive with random weights, exported for the CPU: `python -m benchmarks.small_longlive FOLDER`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import ROOT

_ID = "longlive-small"
SIZES = ((64, 64), (128, 128))
# The chunk, window, sink and steps are LongLive's own; so is the length of a text.
_CONFIG: dict[str, Any] = {
    "dim": 256,
    "ffn_dim": 1024,
    "num_heads": 4,
    "num_layers": 6,
    "freq_dim": 256,
    "text_len": 512,
    "in_dim": 16,
    "out_dim": 16,
    "vace_layers": [],
    "vae": {"type": "tae", "base_dim": 32, "z_dim": 16},
}


@dataclass(frozen=True)
class Model:
    """A pipeline that was exported.

    Attributes:
        id: of the pipeline.
        checkpoint: the folder that it was made of.
        repository: Triton's, with nothing else in it.
        sizes: height and width of its videos, in pixels.
    """

    id: str
    checkpoint: Path
    repository: Path
    sizes: tuple[tuple[int, int], ...]

    @property
    def version(self) -> Path:
        """The folder with its engines."""
        return self.repository / self.id / "1"


def export(folder: Path) -> Model:
    """Write the checkpoint and export it, by processes that leave nothing of PyTorch in this one.

    Raises:
        RuntimeError: one of them failed, as where PyTorch is not installed.
    """
    model = Model(_ID, folder / "checkpoint", folder / "repository", SIZES)
    _run("benchmarks.small_longlive", str(model.checkpoint))
    sizes = [flag for height, width in model.sizes for flag in ("--size", f"{height}x{width}")]
    given = ["--checkpoint", str(model.checkpoint), "--id", model.id, "--repository", str(model.repository), *sizes]
    _run("export", "longlive", *given)
    return model


def _run(*arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"python -m {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")


def write(folder: Path) -> None:
    """Write the checkpoint."""
    from tests.export.checkpoints import write_checkpoint  # noqa: PLC0415 - it imports torch

    write_checkpoint(folder, **_CONFIG)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
