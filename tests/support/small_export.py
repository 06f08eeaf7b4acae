"""`python -m tests.support.small_export FOLDER`: export longlive-small with the command of `make model`."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

ID = "longlive-small"
CHECKPOINT = ROOT / "checkpoints" / ID
LORAS = {"outlines": CHECKPOINT / "loras" / "outlines.safetensors"}
SIDES = (64, 64)


def export_arguments() -> list[str]:
    """The arguments of `python -m export`, without the repository."""
    found = ["longlive", "--checkpoint", CHECKPOINT.relative_to(ROOT).as_posix(), "--id", ID, "--size", "64x64"]
    for name, path in LORAS.items():
        found += ["--lora", f"{name}={path.relative_to(ROOT).as_posix()}"]
    return found


def export_small(folder: Path) -> Path:
    """Export it into `folder/repository`, which is returned.

    The export of `make model` is copied there first, unless the export's code has changed since. The command then only
    exports the engines that do not match the weights.

    Raises:
        RuntimeError: the export failed.
    """
    repository = folder / "repository"
    existing = ROOT / "models" / ID
    if (existing / "config.pbtxt").is_file() and _is_newer_than_the_code(existing / "config.pbtxt"):
        shutil.copytree(existing, repository / ID)
    command = [sys.executable, "-m", "export", *export_arguments(), "--repository", str(repository)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-4000:]}")
    return repository


def _is_newer_than_the_code(path: Path) -> bool:
    return all(code.stat().st_mtime < path.stat().st_mtime for code in (ROOT / "export").rglob("*.py"))


if __name__ == "__main__":
    export_small(Path(sys.argv[1]))
