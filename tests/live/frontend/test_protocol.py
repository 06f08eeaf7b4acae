"""What is no HTTP, and what stays silent, over plain sockets."""

import ctypes
import socket
import struct
import time
from pathlib import Path

import pytest

from frontend.protocol import HEAD_BYTES
from tests.support.http import GENERATE
from tests.support.raw_client import RawClient, send_raw
from tests.support.recovery import PROBE, assert_recovers
from tests.support.refusals import check_refusal
from tests.support.server import Frontend, frontend_on

SO_ATTACH_FILTER = 26


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\nnonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no host
        b"GET /health HTTP/1.1\r\nHost: x\r\nNo colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-\x00: y\r\n\r\n",
        b"POST /api/v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /api/v1/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",  # TLS
    ],
)
def test_malformed_http_gets_the_usual_error_object(server: Frontend, request_bytes: bytes) -> None:
    assert check_refusal(server, send_raw(server.url, request_bytes))["code"] == "bad_request"


def test_a_head_that_is_too_large_is_refused(server: Frontend) -> None:
    """One that is a little too large may still pass: what has arrived in one piece is not measured."""
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    long = send_raw(server.url, head + b"X-Long: " + b"y" * 8 * HEAD_BYTES + b"\r\n\r\n")
    assert check_refusal(server, long)["code"] == "head_too_large"
    many = b"".join(b"X-%d: y\r\n" % number for number in range(30_000))
    assert check_refusal(server, send_raw(server.url, head + many + b"\r\n"))["code"] == "head_too_large"


def test_a_head_that_does_not_come_is_not_waited_for(server: Frontend) -> None:
    with RawClient(server.url) as client:
        client.send(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        began = time.monotonic()
        assert client.read_to_end() == b""
        assert time.monotonic() - began < 10


def test_a_client_that_vanished_ends_its_generation(server: Frontend, tmp_path: Path) -> None:
    """A filter on the client's socket drops all that comes: as after a cut cable, nothing is acknowledged."""
    with frontend_on(server, tmp_path, keep_alive_s=0.2, client_timeout_s=2) as frontend, assert_recovers(frontend):
        chunks = len(frontend.probe_entries())
        with RawClient(frontend.url) as client:
            client.post_json(GENERATE, PROBE | {"prompt": "!sleep 60"})
            frontend.wait_for_chunk(chunks)
            _drop_everything(client.socket)
            frontend.wait_idle(timeout_s=20)
        assert frontend.probe_entries()[-1]["event"] == "cancelled"


def _drop_everything(connection: socket.socket) -> None:
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: of each packet keep 0 bytes
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


# -- Triton's side --------------------------------------------------------------------------------------------


def test_keys_and_secrets_are_not_passed_to_models(server: Frontend) -> None:
    environment = Path(f"/proc/{server.triton_pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"FILMSTRIP_API_KEYS" not in environment
    assert b"FILMSTRIP_TRITON_SECRET" not in environment
