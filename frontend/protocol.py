"""What hypercorn answers to requests that never reach the application, in the API's one shape of errors.

A head that is no HTTP, or is too large, is refused by hypercorn itself, with a bare status. It has no seam for
that, so `install` puts a class of ours in the place of its HTTP/1.1 protocol. hypercorn is pinned for that.
"""

import json

import h11
import hypercorn.protocol
from hypercorn.asyncio import tcp_server
from hypercorn.protocol.h11 import H11Protocol

from filmstrip.errors import BadRequest, FilmstripError, HeadTooLarge

HEAD_BYTES = 32 * 1024
READ_BYTES = 256 * 1024  # as much as uvloop reads from a socket at once; hypercorn's own are 64 KiB


class Protocol(H11Protocol):
    """hypercorn's protocol with answers that clients can read."""

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


def install() -> None:
    """Let hypercorn use it for every connection from now on, and read in larger pieces."""
    hypercorn.protocol.H11Protocol = Protocol  # type: ignore[attr-defined]
    tcp_server.MAX_RECV = READ_BYTES
