"""What goes wrong, as one class whose message a user can read on the node."""

from __future__ import annotations


class FilmstripError(Exception):
    """A generation, or a call on the way to it, failed; the message is for the user.

    Attributes:
        code: the server's code (`busy`, `invalid_field`...), or one of ours: `unreachable`, `timed_out`, `broken`,
            `not_filmstrip`, `bad_input`, `cancelled`.
        field: the field of the request that is to blame, where the server named one.
    """

    def __init__(self, message: str, code: str = "bad_input", field: str | None = None) -> None:
        named = field is None or field in message
        super().__init__(message if named else f"{field}: {message}")
        self.code = code
        self.field = field
