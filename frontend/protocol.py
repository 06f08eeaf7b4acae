"""HTTP/1.1 as we speak it: refusals of what never reaches the application have the API's one shape of errors.

A head that is no HTTP, or is too large, is refused by hypercorn itself, with a bare status. It has no seam for
that, so `install` puts a class of ours in the place of its HTTP/1.1 protocol. hypercorn is pinned for that.

Nothing else is spoken. HTTP allows to pass over an offer to upgrade. Of hypercorn's other protocols, WebSocket ends
in a 500 where no route is one, and HTTP/2 loses the connection when a client resets a stream.
"""

import json
from urllib.parse import unquote, urlsplit

import h11
import hypercorn.protocol
from hypercorn.events import Closed
from hypercorn.protocol.h11 import H11Protocol

from filmstrip.errors import BadRequest, FilmstripError, HeadTooLarge

HEAD_BYTES = 32 * 1024


class Protocol(H11Protocol):
    """hypercorn's protocol with answers that clients can read, and no other protocol behind it."""

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
    """Let hypercorn use it for every connection from now on."""
    hypercorn.protocol.H11Protocol = Protocol  # type: ignore[attr-defined]
