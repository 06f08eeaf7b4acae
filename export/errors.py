"""Every error of the export, in one tree.

ExportError
├── BadConfig          config.json lacks a key, or holds a value that no network can be built from
├── BadCheckpoint      the weights are not those of the network
├── BadOptions         an engine is asked for that the library can't build
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
    """A `config.json` lacks a key, or holds a value that no network can be built from."""


class BadCheckpoint(ExportError):
    """Weights are missing, unexpected or of another shape than the network's."""


class BadOptions(ExportError):
    """An engine is asked for that the library can't build."""


class BuilderMissing(ExportError):
    """The library that builds engines is not installed."""


class BuildFailed(ExportError):
    """An ONNX file can't be parsed or built, or is not that of its spec; the library's own words are quoted."""


class UnusedInput(BuildFailed):
    """A graph or an engine ignores an input: a part of the network was lost, or an operator can't be read."""


class ToleranceExceeded(ExportError):
    """An engine's outputs differ from its module's by more than its spec allows."""


def abbreviate(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    shown = list(names)
    more = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
