"""Every error of the export, in one tree.

ExportError
├── BadConfig          config.json lacks a key, or holds a value that no network can be built from
├── BadCheckpoint      the weights are not those of the network
├── UnusedInput        a graph or an engine does nothing with one of its inputs
└── ToleranceExceeded  an engine's outputs differ from its module's by more than its spec allows
"""


class ExportError(Exception):
    """Base of the export's errors; the message says what to change."""


class BadConfig(ExportError):
    """A `config.json` lacks a key, or holds a value that no network can be built from."""


class BadCheckpoint(ExportError):
    """Weights are missing, unexpected or of another shape than the network's."""


class UnusedInput(ExportError):
    """A graph or an engine does nothing with one of its inputs: somewhere a part of the network was lost."""


class ToleranceExceeded(ExportError):
    """An engine's outputs differ from its module's by more than its spec allows."""
