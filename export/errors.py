"""Every error of the export, in one tree.

ExportError
├── BadConfig          a config.json, an id or a size is wrong
├── BadCheckpoint      the weights are not those of the network
├── BadOptions         the library can't build an engine with these options
├── BuilderMissing     the library is not installed
├── BuildFailed        an ONNX file can't be parsed or built
│   └── UnusedInput    an input has no effect
└── ToleranceExceeded  an engine's outputs differ from its module's by more than its spec allows
"""

from collections.abc import Iterable

_NAMES_SHOWN = 8


class ExportError(Exception):
    """Base of the export's errors; the message says what to change."""


class BadConfig(ExportError):
    """A `config.json` has a missing, unknown or wrong key, or the id or a size is not possible."""


class BadCheckpoint(ExportError):
    """Weights are missing, unexpected, or have another shape than the network's."""


class BadOptions(ExportError):
    """The library can't build an engine with these options."""


class BuilderMissing(ExportError):
    """The library that builds engines is not installed."""


class BuildFailed(ExportError):
    """An ONNX file can't be parsed or built, or does not match its spec; the message quotes the library."""


class UnusedInput(BuildFailed):
    """A graph or an engine ignores an input: part of the network was lost, or an operator was not understood."""


class ToleranceExceeded(ExportError):
    """An engine's outputs differ from its module's by more than its spec allows."""


def abbreviate(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    shown = list(names)
    more = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
