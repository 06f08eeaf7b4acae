"""One HTTP request on the standard library, which another thread can abort.

ComfyUI's users share one Python environment among many node packs: what is not needed cannot break.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .errors import FilmstripError
from .foreign_answers import describe

CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 2**20
_READ_ERROR_BYTES = 2**16

_HOW_TO_GIVE_A_KEY = (
    " (give the key as the token of the Server node, or in FILMSTRIP_TOKEN in ComfyUI's environment, which goes only to"
    " the address that FILMSTRIP_SERVER names there)"
)

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Server:
    """Where a server is and how to talk to it.

    Attributes:
        url: such as http://127.0.0.1:8000, without a slash at its end.
        token: sent as `Authorization: Bearer`; empty for none. Never part of a repr, so never in a log.
        timeout_s: longest silence of a connection.
    """

    url: str
    token: str = field(default="", repr=False)
    timeout_s: float = 60.0


def make_server(url: str, token: str = "", timeout_s: float = 60.0) -> Server:
    """Check an address.

    Raises:
        FilmstripError: it is not one of an HTTP server.
    """
    stripped = url.strip().rstrip("/")
    try:
        parts = urlsplit(stripped)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that isn't closed
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise FilmstripError(f"{url!r} is not the address of a server, such as http://127.0.0.1:8000")
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise FilmstripError("the token holds characters that no token has")
    return Server(stripped, token, timeout_s)


class Connection:
    """One request and its answer; close it after use."""

    def __init__(self, server: Server) -> None:
        self._server = server
        parts = urlsplit(server.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._prefix = parts.path
        self._http = kind(parts.hostname or "", parts.port, timeout=min(CONNECT_TIMEOUT_S, server.timeout_s))
        self._socket: socket.socket | None = None
        self._aborted = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def abort(self) -> None:
        """End the request from another thread; that one meets an error."""
        self._aborted = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it was closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[Bytes] = (),
        also_good: frozenset[int] = frozenset(),
    ) -> http.client.HTTPResponse:
        """Send a request; gives the answer, whose body is still to be read.

        Statuses besides 2xx that carry an answer and not an error are those of `also_good`.

        Raises:
            FilmstripError: the server refused, or it could not be reached.
        """
        with self.readable_errors():
            response = self._send(method, path, headers, body)
            if response.status // 100 != 2 and response.status not in also_good:
                raise read_error(response, self._server)
        return response

    def check_stream(self, response: http.client.HTTPResponse, media_type: str) -> None:
        """Check that an answer is a stream of this type, and not a login page, say.

        Raises:
            FilmstripError: it is something else.
        """
        with self.readable_errors():
            if response.headers.get_content_type() != media_type:
                raise foreign_answer(response, response.peek(), self._server)

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterable[Bytes]
    ) -> http.client.HTTPResponse:
        self._http.connect()
        self._socket = self._http.sock
        if self._aborted:
            raise FilmstripError("the request was given up", "cancelled")
        self._socket.settimeout(self._server.timeout_s)
        self._http.putrequest(method, self._prefix + path)
        if self._server.token:
            self._http.putheader("Authorization", f"Bearer {self._server.token}")
        for name, value in headers.items():
            self._http.putheader(name, value)
        self._http.endheaders()
        try:
            for whole in body:
                raw = memoryview(whole).cast("B")
                for start in range(0, raw.nbytes, _PIECE_BYTES):
                    self._http.send(raw[start : start + _PIECE_BYTES])
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a body answers and closes: what it says is worth more than the broken pipe.
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._http.getresponse()
            raise
        return self._http.getresponse()

    @contextlib.contextmanager
    def readable_errors(self) -> Iterator[None]:
        """The boundary where the standard library's errors become ours."""
        url = self._server.url
        try:
            yield
        except TimeoutError:
            if self._socket is None:
                raise FilmstripError(f"no Filmstrip server answers at {url}", "unreachable") from None
            silence = f"{self._server.timeout_s:g} s"
            raise FilmstripError(
                f"nothing came from the Filmstrip server at {url} for {silence}", "timed_out"
            ) from None
        except ssl.SSLError as error:
            why = error.reason or "TLS failed"
            raise FilmstripError(
                f"no secure connection to the Filmstrip server at {url}: {why}", "unreachable"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            if self._socket is None:
                why = getattr(error, "strerror", None) or "no connection"
                raise FilmstripError(f"no Filmstrip server answers at {url}: {why}", "unreachable") from None
            raise FilmstripError(
                f"the connection to the Filmstrip server at {url} broke: it went away, or was stopped", "broken"
            ) from None


def read_error(response: http.client.HTTPResponse, server: Server) -> FilmstripError:
    """What an error answer says."""
    body = response.read(_READ_ERROR_BYTES)
    try:
        error: Any = json.loads(body)["error"]
        message, code, blamed = error["message"], error["code"], error.get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        return foreign_answer(response, body, server)
    if not isinstance(message, str) or not isinstance(code, str):
        return foreign_answer(response, body, server)
    if code == "unauthorized":
        message += _HOW_TO_GIVE_A_KEY
    return FilmstripError(message, code, None if blamed is None else str(blamed))


def foreign_answer(response: http.client.HTTPResponse, body: bytes, server: Server) -> FilmstripError:
    """The error for an answer that does not come from Filmstrip."""
    message = describe(server.url, response.status, response.headers.get, body)
    return FilmstripError(message + (_HOW_TO_GIVE_A_KEY if response.status == 401 else ""), "not_filmstrip")
