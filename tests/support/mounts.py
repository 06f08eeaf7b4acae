"""A frontend with file systems of its own: small ones that fill up, mounted where no other process sees them."""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Frontend


@functools.cache
def unshare() -> tuple[str, ...]:
    """The command that gives a process mounts of its own; the test is skipped where there is none."""
    for flags in (("-m",), ("-Urm",)):
        command = ("unshare", *flags)
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], check=False, capture_output=True).returncode
        ):
            return command
    pytest.skip("neither root nor user namespaces: nothing can be mounted here")


@contextlib.contextmanager
def mounted_frontend(folder: Path, *flags: str, mounts: dict[Path, str], **settings: object) -> Iterator[Frontend]:
    """A frontend with a tmpfs of these options at each of these folders; its `data_dir` is what it sees itself."""
    (folder / "data").mkdir(exist_ok=True)
    lines = [f"mount -t tmpfs -o {options} tmpfs {path}" for path, options in mounts.items()]
    script = " && ".join([*lines, 'exec "$@"'])
    frontend = Frontend(folder, *flags, launcher=(*unshare(), "sh", "-c", script, "sh"), **settings)
    try:
        frontend.data_dir = seen_by(frontend, frontend.data_dir)
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


def seen_by(frontend: Frontend, path: Path) -> Path:
    """A path for us to what the frontend finds at `path`."""
    return Path(f"/proc/{frontend.process.pid}/root{path}")


@contextlib.contextmanager
def filled(folder: Path, leave_bytes: int = 0) -> Iterator[None]:
    """The file system of a folder is full, but for so many bytes, until the context ends."""
    filler = folder / "filler"
    disk = os.statvfs(folder)
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave_bytes)
        yield
    finally:
        filler.unlink(missing_ok=True)
