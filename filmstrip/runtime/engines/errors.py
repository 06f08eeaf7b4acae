"""Why an engine can't be used, in one tree.

    BadEngine
    ├── BadSidecar      the sidecar is missing, can't be read, or is of another version
    ├── DamagedEngine   a file of the engine is missing or isn't the one that was written
    ├── ForeignEngine   it was made for another device or another library
    └── MixedEngines    engines of one folder don't belong together, or to their pipeline

These are for the operator: raised while a model is loaded, they make the load fail, and Triton logs the message. No
client reads it, so it may name files. It says what is wrong and what to run.
"""


class BadEngine(Exception):
    """An engine that can't be used here."""


class BadSidecar(BadEngine):
    """A sidecar that is missing, can't be read, or is of another version."""


class DamagedEngine(BadEngine):
    """A file of an engine that is missing or isn't the one that was written."""


class ForeignEngine(BadEngine):
    """An engine that was made for another device or another library."""


class MixedEngines(BadEngine):
    """Engines of one folder that don't belong together, or to their pipeline."""
