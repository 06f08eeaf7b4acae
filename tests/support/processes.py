"""The processes that a frontend starts, for tests that kill them, and how an interrupted generation must end."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from tests.support.recovery import PROBE, eventually
from tests.support.server import Events, Frontend

MAX_ERROR_DELAY_S = 10  # from a fault to its error event


def descendants(frontend: Frontend) -> list[psutil.Process]:
    """All child processes of the frontend and their children."""
    return psutil.Process(frontend.process.pid).children(recursive=True)


def model_processes(frontend: Frontend, model: str) -> list[psutil.Process]:
    """The processes of a model in its embedded Triton: one, or none while it restarts."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(frontend.triton_pid).children()
        return [child for child in children if any(f"/{model}/" in argument for argument in command_line(child))]
    return []


def relay_processes(frontend: Frontend) -> list[psutil.Process]:
    """Its relay processes: one, or none before arrays first go through gRPC."""
    return [child for child in descendants(frontend) if "frontend.relay" in command_line(child)]


def worker_processes(module: str, server_pid: int | None = None) -> list[psutil.Process]:
    """The processes in which a server, or this process, runs a module of the frontend, such as `video_worker`."""
    children = psutil.Process(server_pid).children()
    return [child for child in children if any(module in argument for argument in command_line(child))]


def command_line(process: psutil.Process) -> list[str]:
    """The arguments of a process, [] if it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def is_running(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def chunk_in_progress(
    frontend: Frontend, index: int = 0, prompt: str = "!sleep 30", **more: object
) -> Iterator[Events]:
    """Run a generation of the probe; the block starts when the model has this chunk, which takes a while."""
    before = num_probed_chunks(frontend)
    specs = [{"chunk": index, "text": prompt}]
    with frontend.stream(**PROBE | more, chunk_specs=specs) as events:
        eventually(lambda: num_probed_chunks(frontend) > before + index)
        yield events


def num_probed_chunks(frontend: Frontend) -> int:
    """How many chunks the probe has received so far."""
    return sum(entry["event"] == "chunk" for entry in frontend.probe_entries())


def error_code(events: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Check that a generation ends soon with an error whose message is for clients; its code."""
    began = time.monotonic()
    name, data = list(events)[-1]
    assert time.monotonic() - began < MAX_ERROR_DELAY_S
    assert name == "error", data
    assert set(data) == {"error", "code"}
    assert not {"/", "\n", "Traceback"} & {*data["error"], *data["error"].split()}, data
    return str(data["code"])
