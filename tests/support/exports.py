"""Exports that several tests use; each takes a minute or more, and the first worker that needs it runs it."""

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from tests.support.server import ROOT


def export_once(module: str, shared: Path) -> Path:
    """Run `python -m MODULE FOLDER` once for all workers; the model repository that it exports.

    Raises:
        AssertionError: the export failed.
    """
    folder = shared / module
    done = folder / "done"
    with FileLock(shared / f"{module}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by another worker's failed attempt
            folder.mkdir()
            command = [sys.executable, "-m", module, str(folder)]
            ended = subprocess.run(
                command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert ended.returncode == 0, ended.stdout[-4000:]
            done.touch()
    return folder / "repository"
