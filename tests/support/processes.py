"""The processes below a frontend, found so that tests can hurt them, and what a hurt generation must end with."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from tests.support.aftermath import PROBE, eventually
from tests.support.server import Events, Frontend

LONGEST_S = 10  # from a fault to the event that tells of it


def family(frontend: Frontend) -> list[psutil.Process]:
    """Every process that the frontend has started, and they in turn."""
    return psutil.Process(frontend.process.pid).children(recursive=True)


def stubs(frontend: Frontend, model: str) -> list[psutil.Process]:
    """The processes of a model of its embedded Triton: one, or none for a moment."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(frontend.triton_pid).children():
            with contextlib.suppress(psutil.Error):
                if any(f"/{model}/" in part for part in child.cmdline()):
                    found.append(child)
    return found


def relays(frontend: Frontend) -> list[psutil.Process]:
    """The process that carries its arrays: one, or none before it is needed."""
    return [child for child in family(frontend) if "frontend.relay" in child.cmdline()]


def is_running(process: psutil.Process) -> bool:
    """It has not ended; one that nobody has waited for yet has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def chunk_under_way(frontend: Frontend, index: int = 0, prompt: str = "!sleep 30", **more: object) -> Iterator[Events]:
    """A generation of the probe whose chunk of this index is with the model, and stays there a while."""
    before = num_probed(frontend)
    specs = [{"chunk": index, "text": prompt}]
    with frontend.stream(**PROBE | more, chunk_specs=specs) as events:
        eventually(lambda: num_probed(frontend) > before + index)
        yield events


def num_probed(frontend: Frontend) -> int:
    """Chunks that have reached the probe so far."""
    return sum(entry["event"] == "chunk" for entry in frontend.probed())


def error_of(events: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """The code of the error that a generation must now end with: soon, and with a message that is for clients."""
    began = time.monotonic()
    name, data = list(events)[-1]
    assert time.monotonic() - began < LONGEST_S
    assert name == "error", data
    assert set(data) == {"error", "code"}
    assert not {"/", "\n", "Traceback"} & {*data["error"], *data["error"].split()}, data
    return str(data["code"])
