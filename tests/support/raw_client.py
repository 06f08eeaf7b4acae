"""A client that speaks HTTP/1.1 piece by piece, so that it can stop, stall and go away at any point."""

import contextlib
import http.client
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.sse import EventParser, ServerSentEvent

GENERATE = "/api/v1/generate"
DOWNLOAD = "/api/v1/generate/download"


class RawClient:
    """One connection to a server.

    Args:
        url: of the server.
        narrow: hold little that was sent but not read, on both sides: a reader that stops then stops the server's
            writing after some 100 KB.
        timeout_s: how long one read or write may take.
    """

    def __init__(self, url: str, *, narrow: bool = False, timeout_s: float = 60) -> None:
        address = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(timeout_s)
        if narrow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
            # Linux sizes the other side's send buffer by the segments; loopback's large ones would make it 2.5 MB.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.connect((address.hostname, address.port))
        self._answer: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- Sending ------------------------------------------------------------------------------------------------

    def send_head(self, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())

    def send(self, data: bytes) -> None:
        """Bytes of a body whose length was told, or of anything else."""
        self.socket.sendall(data)

    def send_chunk(self, data: bytes) -> None:
        """A piece of a body that is sent with chunked transfer encoding; an empty one ends the body."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def post_json(self, path: str, request: dict[str, Any], *, keep_back: int = 0) -> bytes:
        """POST a JSON body but for its last `keep_back` bytes, which are returned."""
        body = json.dumps(request).encode()
        self.send_head("POST", path, {"Content-Length": str(len(body))})
        cut = len(body) - keep_back
        self.send(body[:cut])
        return body[cut:]

    # -- Reading ------------------------------------------------------------------------------------------------

    def read_head(self) -> http.client.HTTPResponse:
        """Status and headers of the answer; its body can be read from it."""
        self._answer = http.client.HTTPResponse(self.socket)
        self._answer.begin()
        return self._answer

    def read_json(self) -> tuple[int, Any]:
        """Status and body of an answer in JSON."""
        answer = self._answer or self.read_head()
        return answer.status, json.loads(answer.read())

    def read_events(self) -> Iterator[ServerSentEvent]:
        """The events of the stream, comments left out.

        Raises:
            EOFError: the stream was cut off.
            ValueError: it is not in the server's format.
        """
        answer = self._answer or self.read_head()
        assert answer.status == 200, answer.read()
        assert answer.chunked
        yield from EventParser().parse(self._read_lines(answer))

    def _read_lines(self, answer: http.client.HTTPResponse) -> Iterator[str]:
        pending = b""
        for piece in self._read_chunks(answer):
            *whole, pending = (pending + piece).split(b"\n")
            yield from (line.decode() for line in whole)
        assert pending == b""

    def _read_chunks(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """Chunks of the transfer encoding; http.client takes a stream that was cut off for one that has ended."""
        while size := int(self._read_line(answer), 16):
            yield answer.fp.read(size)
            self._read_line(answer)
        self._read_line(answer)

    @staticmethod
    def _read_line(answer: http.client.HTTPResponse) -> str:
        line = answer.fp.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the stream was cut off")
        return line.decode()

    def read_to_end(self) -> bytes:
        """All that comes until the server closes or resets the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(2**16):
                received += data
        return received

    # -- Leaving ------------------------------------------------------------------------------------------------

    def half_close(self) -> None:
        """Send nothing more; reading goes on."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in good order (with a reset all the same where something was left unread: the kernel does that)."""
        if self._answer is not None:
            self._answer.close()  # it holds the socket open
        self.socket.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()
