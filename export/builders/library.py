"""The two libraries, which share one API, and what they say while they work.

TensorRT was not run here: there is no GPU. Everything below was run with TensorRT-RTX.
"""

import importlib
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from export.builders.progress import BuildProgress
from export.errors import BuilderMissing
from filmstrip.runtime.engines.manifest import Builder

_MODULES = {
    Builder.TENSORRT_RTX: ("tensorrt_rtx", "pip install tensorrt-rtx"),
    Builder.TENSORRT: ("tensorrt", "pip install tensorrt, on a machine with an NVIDIA GPU"),
}
# "Unused Input: x"; "Input Tensor x is unused or used only at compile-time". A parser that does not know an
# operator's optional input says no more than this, and builds an engine that ignores it.
_UNUSED = re.compile(r"\bunused (input|weight)|\b(input|weight)s?\b.*\bunused\b", re.IGNORECASE)
_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")


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


@dataclass
class Log:
    """What a library said during a build.

    Attributes:
        messages: its warnings and errors.
        activation_bytes: GPU memory that a profile's tensors and scratch space take, profile by profile.
    """

    messages: list[Message] = field(default_factory=list)
    activation_bytes: list[int] = field(default_factory=list)

    def unused(self) -> list[str]:
        """Messages that tell of an input or a weight that has no effect."""
        return [message.text for message in self.messages if _UNUSED.search(message.text)]

    def errors(self) -> str:
        """Its errors in one line."""
        return "; ".join(one.text for one in self.messages if one.is_error) or "no reason was given"


def listen(library: Any, log: Log) -> Any:
    """A logger for a builder."""

    class Listener(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            level = library.ILogger
            if severity in (level.INTERNAL_ERROR, level.ERROR, level.WARNING):
                log.messages.append(Message(severity != level.WARNING, text))
            elif size := _ACTIVATION.match(text):
                log.activation_bytes.append(int(size[1]))

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
