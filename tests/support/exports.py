"""Exports that several tests use: each takes a minute or more; the first worker to need it makes it, once a run."""

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from tests.support.server import ROOT


def made_once(module: str, shared: Path) -> Path:
    """The model repository that `python -m MODULE FOLDER` makes in a folder that all workers share.

    Raises:
        AssertionError: the export has failed.
    """
    folder = shared / module
    done = folder / "done"
    with FileLock(shared / f"{module}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of another worker's attempt that failed
            folder.mkdir()
            command = [sys.executable, "-m", module, str(folder)]
            ended = subprocess.run(
                command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert ended.returncode == 0, ended.stdout[-4000:]
            done.touch()
    return folder / "repository"
