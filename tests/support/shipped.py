"""longlive-small, exported by the command that `make model` gives: `python -m tests.support.shipped FOLDER`."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

ID = "longlive-small"
CHECKPOINT = ROOT / "checkpoints" / ID
LORAS = {"outlines": CHECKPOINT / "loras" / "outlines.safetensors"}
SIDES = (64, 64)


def arguments() -> list[str]:
    """Of `python -m export`, but for the repository."""
    given = ["longlive", "--checkpoint", CHECKPOINT.relative_to(ROOT).as_posix(), "--id", ID, "--size", "64x64"]
    for name, path in LORAS.items():
        given += ["--lora", f"{name}={path.relative_to(ROOT).as_posix()}"]
    return given


def export_shipped(folder: Path) -> Path:
    """Export it into `repository` in a folder, which is returned.

    What `make model` has made is copied there first, unless the code of the export has changed since: the export keeps
    what is of these weights, and makes the rest again.

    Raises:
        RuntimeError: the export has failed.
    """
    repository = folder / "repository"
    made = ROOT / "models" / ID
    if (made / "config.pbtxt").is_file() and _is_newer_than_the_code(made / "config.pbtxt"):
        shutil.copytree(made, repository / ID)
    command = [sys.executable, "-m", "export", *arguments(), "--repository", str(repository)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-4000:]}")
    return repository


def _is_newer_than_the_code(path: Path) -> bool:
    return all(code.stat().st_mtime < path.stat().st_mtime for code in (ROOT / "export").rglob("*.py"))


if __name__ == "__main__":
    export_shipped(Path(sys.argv[1]))
