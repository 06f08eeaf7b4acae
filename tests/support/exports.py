"""The exports that tests will ask for, made beside the first tests: they take a minute or more each."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.server import ROOT

MODULES = {"tiny_repository": "tests.models.export.exported", "small_repository": "tests.support.shipped"}
"""By the fixture that waits for it: each, run with a folder, makes `repository` in it."""
_NICENESS = 10  # the servers of the tests come first


class Exports:
    """One export after the other, in processes of their own, for as long as the context is open.

    Args:
        folders: for what is made, by the name of the fixture; the first is made first.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._closed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._pool = ThreadPoolExecutor(1)
        self._made: dict[str, Future[Path]] = {
            name: self._pool.submit(self._make, MODULES[name], folder) for name, folder in folders.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._end()
        self._pool.shutdown(cancel_futures=True)

    def repository(self, name: str) -> Path:
        """Wait for a model repository.

        Raises:
            AssertionError: its export has failed.
        """
        return self._made[name].result()

    def _make(self, module: str, folder: Path) -> Path:
        command = ["nice", "-n", str(_NICENESS), sys.executable, "-m", module, str(folder)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        if self._closed.is_set():
            self._end()
        told, _ = self._process.communicate()
        assert self._process.returncode == 0, told[-4000:]
        return folder / "repository"

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended just now
                os.killpg(self._process.pid, signal.SIGTERM)  # it has started one itself
