"""Requests as bytes on a socket, where a client library would refuse to send them, and what every refusal must be."""

import json
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from filmstrip import __version__
from filmstrip.errors import ERRORS
from tests.support.server import ROOT, Frontend

LONGEST_S = 5.0  # of a machine with other work; what is slow here takes ten seconds or never ends
MOST_BYTES = 4096
GENERATE = "/api/v1/generate"
UPLOAD = "/api/v1/generate/upload"
UPLOAD_DATA = "/api/v1/generate/upload-data"
ASSETS = "/api/v1/assets"
DOWNLOAD = "/api/v1/generate/download"
LOAD = "/api/v1/pipeline/load"


@dataclass(frozen=True)
class Answer:
    """One answer: `headers` have lower-case names; `body` is as it came, chunked or not."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @classmethod
    def of(cls, answer: httpx.Response) -> "Answer":
        return cls(answer.status_code, dict(answer.headers), answer.content, answer.elapsed.total_seconds())


def request(line: str, *headers: str, body: bytes = b"", length: int | None = None, host: str = "localhost") -> bytes:
    """A request that asks to close the connection; without a length it has that of its body, if there is one."""
    length = length if length is not None else len(body) or None
    fields = [f"Host: {host}", "Connection: close", *headers, *([f"Content-Length: {length}"] if length else [])]
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode("latin1") + body


def ask(frontend: Frontend, sent: bytes) -> Answer:
    """Send bytes; the answer is what comes until the server closes the connection."""
    address = urlsplit(frontend.url)
    began = time.monotonic()
    with closing(socket.create_connection((str(address.hostname), int(address.port or 0)), LONGEST_S)) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    if received.startswith(b"HTTP/1.1 100 "):
        received = received.partition(b"\r\n\r\n")[2]
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), headers, body, time.monotonic() - began)


def generate(frontend: Frontend, **fields: object) -> Answer:
    """POST /generate for an answer that is expected to be a refusal; quicker than with a client of httpx's."""
    return ask(frontend, request(f"POST {GENERATE}", body=json.dumps(fields).encode()))


def refusal(frontend: Frontend, answer: Answer | httpx.Response) -> dict[str, Any]:
    """The error of an answer that must be a refusal: small, quick, in the one shape, and telling nothing of the server.

    Returns:
        code, message and maybe field.
    """
    if isinstance(answer, httpx.Response):
        answer = Answer.of(answer)
    text = answer.body.decode()
    assert 400 <= answer.status < 500, text[:500]
    assert answer.seconds < LONGEST_S
    assert len(text) < MOST_BYTES
    assert answer.headers["content-type"] == "application/json"
    assert "x-evil" not in answer.headers
    assert "server" not in answer.headers
    body: dict[str, Any] = json.loads(text)
    assert set(body) == {"error", "detail"}
    error: dict[str, Any] = body["error"]
    assert set(error) in ({"code", "message"}, {"code", "message", "field"})
    assert error["message"] == body["detail"]
    assert ERRORS[error["code"]].status == answer.status
    for secret in ("Traceback", "site-packages", str(ROOT), str(frontend.folder), __version__, "Python/", "quart"):
        assert secret not in text
    return error


def tracebacks(frontend: Frontend) -> int:
    return frontend.log().count("Traceback")
