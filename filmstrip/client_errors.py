"""What goes wrong between a client and a server; the server's own answers are `filmstrip.errors`.

    ClientError
    ├── ConnectionFailed              the server cannot be reached, or the connection broke
    │   ├── ServerUnreachable         no connection could be made: refused, unknown host, no route
    │   │   └── UntrustedCertificate  the server's TLS certificate is not trusted
    │   └── TimedOut                  nothing came for longer than the timeout
    └── UnexpectedAnswer              the answer is not Filmstrip's: a proxy, another program, another version

httpx's errors become one of these in `filmstrip.calls.mapped_errors`, and nowhere else.
"""


class ClientError(Exception):
    """Base of the errors of a client; the message is one readable line."""


class ConnectionFailed(ClientError):
    """The server cannot be reached, or the connection broke before the answer was whole."""


class ServerUnreachable(ConnectionFailed):
    """No connection could be made: nothing listens there, the host is unknown, or there is no way to it."""


class UntrustedCertificate(ServerUnreachable):
    """The server's TLS certificate is not trusted; `verify` of the clients names the authority that signed it."""


class TimedOut(ConnectionFailed):
    """Nothing came, or nothing was taken, for longer than the timeout."""


class UnexpectedAnswer(ClientError):
    """The answer is not Filmstrip's; the message says what it may be.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status
