"""An HTTP/1.1 client that sends any bytes, and can stop, stall or leave at any point of a request.

For malformed traffic and broken connections; all other requests use `tests.support.http`.
"""

import contextlib
import http.client
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tests.support.sse import EventParser, ServerSentEvent


class RawClient:
    """One connection to a server.

    Args:
        url: of the server.
        small_buffers: keep the socket buffers of both sides small, so that a reader that stops also stops the server's
            writing after some 100 KB.
        timeout_s: for one read or write.
    """

    def __init__(self, url: str, *, small_buffers: bool = False, timeout_s: float = 60) -> None:
        address = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(timeout_s)
        if small_buffers:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
            # Linux sizes the other side's send buffer by the segments; loopback's large ones would make it 2.5 MB.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.connect((address.hostname, address.port))
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- Sending ------------------------------------------------------------------------------------------------

    def send_head(self, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())

    def send(self, data: bytes) -> None:
        """Send any bytes: a head, or part of a body with a Content-Length."""
        self.socket.sendall(data)

    def send_chunk(self, data: bytes) -> None:
        """Send a piece of a body with chunked transfer encoding; an empty one ends the body."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def post_json(self, path: str, request: dict[str, Any], *, keep_back: int = 0) -> bytes:
        """POST a JSON body without its last `keep_back` bytes, which are returned."""
        body = json.dumps(request).encode()
        self.send_head("POST", path, {"Content-Length": str(len(body))})
        cut = len(body) - keep_back
        self.send(body[:cut])
        return body[cut:]

    # -- Reading ------------------------------------------------------------------------------------------------

    def read_head(self) -> http.client.HTTPResponse:
        """Read status and headers of the response; its body can be read from the result."""
        self._response = http.client.HTTPResponse(self.socket)
        self._response.begin()
        return self._response

    def read_json(self) -> tuple[int, Any]:
        """Read the status and the JSON body of the response."""
        response = self._response or self.read_head()
        return response.status, json.loads(response.read())

    def read_events(self) -> Iterator[ServerSentEvent]:
        """Read the events of the stream, without comments.

        Raises:
            EOFError: the connection closed in the middle of the stream.
            ValueError: an event is not in the server's format.
        """
        response = self._response or self.read_head()
        assert response.status == 200, response.read()
        assert response.chunked
        yield from EventParser().parse(self._read_lines(response))

    def _read_lines(self, response: http.client.HTTPResponse) -> Iterator[str]:
        pending = b""
        for piece in self._read_chunks(response):
            *whole, pending = (pending + piece).split(b"\n")
            yield from (line.decode() for line in whole)
        assert pending == b""

    def _read_chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Read the chunks of the transfer encoding; http.client does not notice a stream that was cut off."""
        while size := int(self._read_line(response), 16):
            yield response.fp.read(size)
            self._read_line(response)
        self._read_line(response)

    @staticmethod
    def _read_line(response: http.client.HTTPResponse) -> str:
        line = response.fp.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the connection closed in the middle of the stream")
        return line.decode()

    def read_to_end(self) -> bytes:
        """Read until the server closes or resets the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(2**16):
                received += data
        return received

    # -- Leaving ------------------------------------------------------------------------------------------------

    def half_close(self) -> None:
        """Close the sending side only."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close normally; if unread data is left, the kernel sends a reset nevertheless."""
        if self._response is not None:
            self._response.close()  # it holds the socket open
        self.socket.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


@dataclass(frozen=True)
class RawResponse:
    """One response: `headers` have lower-case names; `body` is as it arrived, chunked or not."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """The same from httpx."""
        return cls(response.status_code, dict(response.headers), response.content, response.elapsed.total_seconds())

    def json(self) -> Any:
        """The body of a response that is not chunked."""
        return json.loads(self.body)


def raw_request(
    line: str, *headers: str, body: bytes = b"", length: int | None = None, host: str = "localhost"
) -> bytes:
    """The bytes of a request with "Connection: close"; `length` is that of the body unless given."""
    length = length if length is not None else len(body) or None
    fields = [f"Host: {host}", "Connection: close", *headers, *([f"Content-Length: {length}"] if length else [])]
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode("latin1") + body


def send_raw(url: str, sent: bytes, timeout_s: float = 60) -> RawResponse:
    """Send bytes to a server; the response is everything until it closes the connection, without a 100 Continue."""
    began = time.monotonic()
    with RawClient(url, timeout_s=timeout_s) as client:
        client.send(sent)
        received = client.read_to_end()
    if received.startswith(b"HTTP/1.1 100 "):
        received = received.partition(b"\r\n\r\n")[2]
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return RawResponse(int(status.split()[1]), headers, body, time.monotonic() - began)
