"""Starts the frontend for the demo, waits until it is healthy, and stops it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filmstrip.client import Client, ClientError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
_ROOT = Path(__file__).resolve().parent.parent
_LOG_TAIL_LINES = 40


class ServerDied(Exception):
    """The server did not become healthy, or did not stop as it should; the message ends with its log."""


@contextmanager
def started(log: Path, data_dir: Path) -> Iterator[str]:
    """Run a frontend with a Triton of its own; gives its URL, and stops it with SIGTERM.

    Args:
        log: file for what the server prints.
        data_dir: folder for its uploads and outputs.

    Raises:
        ServerDied: it was not healthy in time, or stopped with an error.
    """
    port = _free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "frontend", "--embedded", *address, "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url, log)
        yield url
    finally:
        _stop(process)
    # A server that ends by the signal itself, unhandled, has not cleaned up behind it.
    if process.returncode != 0:
        raise ServerDied(f"the server stopped with {process.returncode}\n{_tail(log)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(url) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerDied(f"the server ended at its start with {process.returncode}\n{_tail(log)}")
            try:
                if client.health().status == "healthy":
                    return
            except ClientError:
                pass  # it does not listen yet
            time.sleep(0.2)
    raise ServerDied(f"the server was not healthy after {START_TIMEOUT_S:.0f} s\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
