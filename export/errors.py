"""Every error of the export, in one tree.

ExportError
├── BadConfig          config.json lacks a key, or holds a value that no network can be built from
└── BadCheckpoint      the weights are not those of the network
"""


class ExportError(Exception):
    """Base of the export's errors; the message says what to change."""


class BadConfig(ExportError):
    """A `config.json` lacks a key, or holds a value that no network can be built from."""


class BadCheckpoint(ExportError):
    """Weights are missing, unexpected or of another shape than the network's."""
