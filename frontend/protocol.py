"""hypercorn's part of a connection, where it must do otherwise than hypercorn does.

- A head that is no HTTP, or is too large, never reaches the application: hypercorn answers with a bare status. Here
  it gets the API's one shape of errors.
- A client that sends a second request behind a running stream and then goes away leaves a task that waits for ever.
- At a shutdown hypercorn waits for clients that have stopped reading. Here they are cut off.

hypercorn has no seams for these, so `install` puts classes of ours in the place of two of its own. It is pinned to
one minor version for that.
"""

import asyncio
import json

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

    async def _close(self) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self.writer.transport.abort()
        await super()._close()


def install() -> None:
    """Let hypercorn use them for every connection from now on, and read in larger pieces."""
    hypercorn.protocol.H11Protocol = Protocol  # type: ignore[attr-defined]
    hypercorn.asyncio.run.TCPServer = Server  # type: ignore[attr-defined]
    tcp_server.MAX_RECV = READ_BYTES
