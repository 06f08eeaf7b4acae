"""hypercorn's part of a connection, where it must do otherwise than hypercorn does.

- A head that is no HTTP, is too large or names no path never reaches the application, or makes it fall over: hypercorn
  answers with a bare status. Here it gets the API's one shape of errors.
- HTTP/1.1 is spoken and nothing else. HTTP allows to pass over an offer to upgrade. Of hypercorn's other protocols,
  WebSocket ends in a 500 where no route is one, and HTTP/2 loses the connection when a client resets a stream.
- A client that sends a second request behind a running stream and then goes away leaves a task that waits for ever.
- At a shutdown hypercorn waits for clients that have stopped reading. Here they are cut off.

hypercorn has no seams for these, so `install` puts classes of ours in the place of two of its own. It is pinned to
one minor version for that.
"""

import asyncio
import json
from urllib.parse import unquote, urlsplit

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio import tcp_server
from hypercorn.events import Closed, Event
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection

from filmstrip.errors import BadRequest, FilmstripError, HeadTooLarge

HEAD_BYTES = 32 * 1024
READ_BYTES = 256 * 1024  # as much as uvloop reads from a socket at once; hypercorn's own are 64 KiB


class _NothingMore(H11WSConnection):
    """Stands for the parser of a connection whose client is gone: there is nothing to read, and no one to send to."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        pass

    def send(self, event: object) -> bytes:  # noqa: ARG002
        return b""


class Protocol(H11Protocol):
    """One connection's HTTP/1.1."""

    async def handle(self, event: Event) -> None:
        """Take what has happened to the connection."""
        await super().handle(event)
        if isinstance(event, Closed):
            self.connection = _NothingMore()
            await self.can_read.set()

    async def _check_protocol(self, event: h11.Request) -> None:
        """No HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        if not _has_path(request.target) or not all(
            _is_host(value) for name, value in request.headers if name == b"host"
        ):
            await self._send_error_response(BadRequest.status)
            await self.send(Closed())
            return
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]  # no WebSocket
        await super()._create_stream(
            h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        error: FilmstripError = BadRequest("this is no HTTP request")
        if status_code == HeadTooLarge.status:
            error = HeadTooLarge(f"the request's line and headers are over the limit of {HEAD_BYTES} bytes")
        body = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=error.status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class Server(tcp_server.TCPServer):
    """One connection's socket."""

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            await super().run()
        except asyncio.CancelledError:  # asyncio.streams of Python 3.11 would log it as an error
            if not self.context.terminated.is_set():
                raise
        finally:
            self._break_cycles()

    def _break_cycles(self) -> None:
        """Let go of what refers back to this connection: its memory is freed now, not when Python looks for cycles."""
        self.__dict__.pop("protocol", None)
        if (error := self.reader.exception()) is not None:
            error.__traceback__ = None

    async def _close(self) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self.writer.transport.abort()
        await super()._close()


def _has_path(target: bytes) -> bool:
    """Whether a request's target is a path or a whole URL: Quart falls over others. hypercorn unquotes it first."""
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    try:
        return path.startswith("/") or urlsplit(path).scheme in ("http", "https")
    except ValueError:
        return False


def _is_host(value: bytes) -> bool:
    """Whether a host has no label that is too long: werkzeug raises over it where no handler of errors is."""
    try:
        value.decode("latin1").lower().partition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True


def install() -> None:
    """Let hypercorn use them for every connection from now on, and read in larger pieces."""
    hypercorn.protocol.H11Protocol = Protocol  # type: ignore[attr-defined]
    hypercorn.asyncio.run.TCPServer = Server  # type: ignore[attr-defined]
    tcp_server.MAX_RECV = READ_BYTES
