"""A client that costs next to nothing: plain sockets, files sent by the kernel, events with their times.

httpx would use a core of its own and be measured in place of the server.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_RECEIVE_BYTES = 2**20
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Arrival:
    """An event and when it came.

    Attributes:
        at: seconds of the monotonic clock.
        name: of the event.
        data: its fields.
    """

    at: float
    name: str
    data: dict[str, Any]


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = socket.create_connection((parts.hostname, parts.port or 80), timeout=_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"the connection ended within {data[:200]!r}")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.splitlines()[0]:
        raise ConnectionError(f"{head.splitlines()[0]!r} {rest[:400]!r}")
    return head.lower(), rest


def send_file(url: str, path: str, source: Path, headers: Mapping[str, str]) -> bytes:
    """POST a file; gives the answer's body."""
    size = source.stat().st_size
    with closing(_connect(url)) as connection, source.open("rb") as file:
        sizes = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        connection.sendall(_head("POST", path, {**headers, **sizes}))
        connection.sendfile(file)
        head, body = _read_head(connection)
        length = int(head.partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += connection.recv(65536)
        return body


def receive_file(url: str, path: str) -> int:
    """GET, and throw the body away; gives its bytes."""
    buffer = bytearray(_RECEIVE_BYTES)
    with closing(_connect(url)) as connection:
        connection.sendall(_head("GET", path, {}))
        head, body = _read_head(connection)
        length = int(head.partition(b"content-length:")[2].split()[0])
        received = len(body)
        while received < length:
            count = connection.recv_into(buffer)
            if count == 0:
                raise ConnectionError(f"the connection ended after {received} of {length} bytes")
            received += count
        return received


def break_upload(url: str, source: Path, times: int) -> None:
    """Send a file so many times as the body of one upload of data, and go away before the body is whole."""
    size = source.stat().st_size
    with closing(_connect(url)) as connection, source.open("rb") as file:
        sizes = {"Content-Length": str((times + 1) * size), "Content-Type": "application/octet-stream"}
        connection.sendall(_head("POST", "/api/v1/generate/upload-data", sizes))
        for _ in range(times):
            connection.sendfile(file, 0, size)


def upload(url: str, source: Path, frames: int, height: int, width: int) -> str:
    """Upload a raw video from a file; gives its name."""
    headers = {"X-Video-Frames": str(frames), "X-Video-Height": str(height), "X-Video-Width": str(width)}
    return str(json.loads(send_file(url, "/api/v1/generate/upload", source, headers))["input_path"])


def upload_data(url: str, source: Path) -> str:
    """Upload a blob from a file; gives its name."""
    return str(json.loads(send_file(url, "/api/v1/generate/upload-data", source, {}))["data_blob_path"])


def generate(url: str, **fields: object) -> Iterator[Arrival]:
    """The events of a generation and when they came; see `generate_at`."""
    return generate_at(url, "/api/v1/generate", **fields)


def generate_at(url: str, path: str, **fields: object) -> Iterator[Arrival]:
    """The events of a generation, which a POST to `path` starts, and when they came.

    Raises:
        RuntimeError: it ended with an error.
    """
    body = json.dumps({"prompt": "", **fields}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Accept": "text/event-stream"}
    with closing(_connect(url)) as connection:
        connection.sendall(_head("POST", path, headers) + body)
        _, data = _read_head(connection)
        while True:
            at = time.monotonic()
            *events, data = data.split(b"\n\n")
            for text in events:
                event = _event(at, text)
                if event is not None:
                    yield event
                    if event.name not in ("progress", "preview"):
                        return
            piece = connection.recv(65536)
            if not piece:
                raise ConnectionError("the event stream ended without a last event")
            data += piece


def _event(at: float, text: bytes) -> Arrival | None:
    """An event of the stream, whose lines may have the frames of chunked encoding between them."""
    fields = dict(line.partition(b": ")[::2] for line in text.splitlines())
    if b"data" not in fields:
        return None
    event = Arrival(at, fields[b"event"].decode(), json.loads(fields[b"data"]))
    if event.name == "error":
        raise RuntimeError(f"the generation failed: {event.data}")
    return event


def cancel(url: str) -> tuple[float, float]:
    """Cancel the generation; when the request left and when its answer came, by the monotonic clock."""
    with closing(_connect(url)) as connection:
        left = time.monotonic()
        connection.sendall(_head("POST", "/api/v1/generate/cancel", {"Content-Length": "0"}))
        _read_head(connection)
        return left, time.monotonic()


def write_noise(path: Path, num_bytes: int) -> Path:
    """Fill a file with bytes that nothing can compress, unless it has them."""
    if not path.exists() or path.stat().st_size != num_bytes:
        piece = os.urandom(min(num_bytes, 2**22))
        with path.open("wb") as file:
            while file.tell() < num_bytes:
                file.write(piece[: num_bytes - file.tell()])
    return path


def warm_memory(folder: Path, num_bytes: int) -> None:
    """Write so many bytes to a file and remove it again.

    A virtual machine may have to get memory back from its host, which takes ten times as long as to write to it.
    What is written next gets the pages that this file gives free, whoever writes it.
    """
    path = folder / "warm"
    piece = bytes(2**22)
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-num_bytes // len(piece))):
            file.write(piece)
    path.unlink()
