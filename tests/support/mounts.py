"""A frontend with small file systems that fill up, mounted where no other process sees them."""

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
    """The command that runs a process in its own mount namespace; skips the test if there is none."""
    for flags in (("-m",), ("-Urm",)):
        command = ("unshare", *flags)
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], check=False, capture_output=True).returncode
        ):
            return command
    pytest.skip("cannot mount file systems: neither root nor user namespaces")


@contextlib.contextmanager
def mounted_frontend(folder: Path, *flags: str, mounts: dict[Path, str], **settings: object) -> Iterator[Frontend]:
    """A frontend with a tmpfs at each of these folders (folder: mount options); `data_dir` is the path that we see."""
    (folder / "data").mkdir(exist_ok=True)
    lines = [f"mount -t tmpfs -o {options} tmpfs {path}" for path, options in mounts.items()]
    script = " && ".join([*lines, 'exec "$@"'])
    frontend = Frontend(folder, *flags, launcher=(*unshare(), "sh", "-c", script, "sh"), **settings)
    try:
        frontend.data_dir = path_inside(frontend, frontend.data_dir)
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


def path_inside(frontend: Frontend, path: Path) -> Path:
    """The path by which we see what the frontend sees at `path`."""
    return Path(f"/proc/{frontend.process.pid}/root{path}")


@contextlib.contextmanager
def disk_filled(folder: Path, leave_bytes: int = 0) -> Iterator[None]:
    """Fill a folder's file system, except for `leave_bytes`, until the block ends."""
    filler = folder / "filler"
    disk = os.statvfs(folder)
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - leave_bytes)
        yield
    finally:
        filler.unlink(missing_ok=True)
