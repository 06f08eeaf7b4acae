"""The two libraries, which share one API, and what they say while they work.

TensorRT was not run here: there is no GPU. Everything below was run with TensorRT-RTX.
"""

import importlib
import re
from typing import Any, NamedTuple

from export.builders.progress import BuildProgress
from export.errors import BuilderMissing
from filmstrip.runtime.engines.sidecar import Builder

_MODULES = {
    Builder.TENSORRT_RTX: ("tensorrt_rtx", "pip install tensorrt-rtx"),
    Builder.TENSORRT: ("tensorrt", "pip install tensorrt, on a machine with an NVIDIA GPU"),
}
# "Unused Input: x"; "Input Tensor x is unused or used only at compile-time". A parser that does not know an
# operator's optional input says no more than this, and builds an engine that ignores it.
_UNUSED = re.compile(r"\bunused (input|weight)|\b(input|weight)s?\b.*\bunused\b", re.IGNORECASE)


def load_library(builder: Builder) -> Any:
    """The module of a library.

    Raises:
        BuilderMissing: it is not installed.
    """
    module, command = _MODULES[builder]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BuilderMissing(f"{builder} is not installed ({command}): {error}") from error


class Message(NamedTuple):
    """One line of a library's log."""

    is_error: bool
    text: str

    @property
    def tells_of_unused(self) -> bool:
        """Whether an input or a weight of the graph has no effect."""
        return _UNUSED.search(self.text) is not None


def listen(library: Any, messages: list[Message]) -> Any:
    """A logger for a builder that keeps its warnings and errors."""

    class Listener(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            level = library.ILogger
            if severity in (level.INTERNAL_ERROR, level.ERROR, level.WARNING):
                messages.append(Message(severity != level.WARNING, text))

    return Listener()


def monitor(library: Any, progress: BuildProgress) -> Any:
    """A progress monitor for a builder's configuration."""

    class Monitor(library.IProgressMonitor):
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
