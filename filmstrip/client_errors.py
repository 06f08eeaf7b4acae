"""What goes wrong between a client and a server; the server's own answers are `filmstrip.errors`.

    ClientError
    ├── ConnectionFailed      the server cannot be reached, or the connection broke
    │   └── TimedOut          nothing came for longer than the timeout
    └── UnexpectedAnswer      the answer is none of Filmstrip's: another server, a proxy, another version

httpx's errors become one of these in `filmstrip.calls.mapped_errors`, and nowhere else.
"""


class ClientError(Exception):
    """Base of the errors of a client; the message is one readable line."""


class ConnectionFailed(ClientError):
    """The server cannot be reached, or the connection broke before the answer was whole."""


class TimedOut(ConnectionFailed):
    """Nothing came, or nothing was taken, for longer than the timeout."""


class UnexpectedAnswer(ClientError):
    """The answer is none of Filmstrip's.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status
