"""The one error of the nodes, with a message for the user."""

from __future__ import annotations


class FilmstripError(Exception):
    """A generation or a server call failed; the message is shown on the node.

    Attributes:
        code: the server's code (`busy`, `invalid_field`...), or one of ours: `unreachable`, `timed_out`, `broken`,
            `not_filmstrip`, `bad_input`, `cancelled`.
        field: the field of the request that caused it, if the server named one.
    """

    def __init__(self, message: str, code: str = "bad_input", field: str | None = None) -> None:
        named = field is None or field in message
        super().__init__(message if named else f"{field}: {message}")
        self.code = code
        self.field = field
