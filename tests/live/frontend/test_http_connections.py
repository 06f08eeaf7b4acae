"""What HTTP says of connections, over plain sockets: Expect, the framing of bodies, and half-closed clients."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.protocol
import psutil
import pytest
from hypercorn.config import Config
from quart import Quart, Response, request

from frontend import protocol
from frontend.connection import BoundedBody, BoundedRequest, Connection, on_close, will_stream
from frontend.protocol import OpenConnections
from tests.support.http import CANCEL, DOWNLOAD, GENERATE, UPLOAD, UPLOAD_DATA
from tests.support.probe_video import probe_video
from tests.support.raw_client import RawClient, raw_request, send_raw
from tests.support.recovery import PROBE, assert_recovers, eventually, noise
from tests.support.refusals import check_refusal
from tests.support.server import Frontend, frontend_on

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EXPECT = {"Expect": "100-continue"}
SMALL = {"X-Video-Frames": "1", "X-Video-Height": "64", "X-Video-Width": "64"}
KEY = {"Authorization": "Bearer secret"}
HUGE = str(12 * 10**9)


@pytest.fixture(scope="module")
def frontend(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(server, tmp_path_factory.mktemp("connections")) as frontend:
        yield frontend


@pytest.fixture(autouse=True)
def no_traceback(frontend: Frontend) -> Iterator[None]:
    yield
    assert "Traceback" not in frontend.log()


# -- Expect -------------------------------------------------------------------------------------------------------


def test_a_refusal_comes_instead_of_100_and_at_once(server: Frontend, tmp_path: Path) -> None:
    """The body, which the client holds back, is neither asked for nor waited for."""
    refused = [
        ("unauthorized", "POST", UPLOAD_DATA, {"Authorization": "Bearer wrong"}),
        ("forbidden_origin", "POST", UPLOAD_DATA, {"Origin": "http://evil.example"}),
        ("not_found", "POST", "/api/v1/nothing", {}),
        ("method_not_allowed", "PUT", UPLOAD, {}),
        ("bad_header", "POST", UPLOAD, {}),
        ("size_mismatch", "POST", UPLOAD, SMALL),
        ("too_large", "POST", UPLOAD, SMALL | {"X-Video-Frames": "1000000"}),
        ("too_large", "POST", UPLOAD_DATA, {"Content-Length": HUGE}),
        ("too_large", "POST", "/api/v1/assets", {"Content-Length": HUGE}),
        ("too_large", "POST", GENERATE, {"Content-Length": HUGE}),
        ("unsupported_media_type", "POST", UPLOAD_DATA, {"Content-Encoding": "gzip"}),
        ("unsupported_media_type", "POST", UPLOAD_DATA, {"Content-Type": "multipart/form-data; boundary=x"}),
        ("storage_full", "POST", UPLOAD_DATA, {}),
        ("expectation_failed", "POST", UPLOAD_DATA, {"Expect": "gold"}),
        ("expectation_failed", "POST", UPLOAD_DATA, {"Expect": "100-continue, gold"}),
    ]
    seconds = []
    with frontend_on(server, tmp_path, api_keys="me:secret", store_bytes=10_000) as frontend:
        for code, method, path, headers in refused:
            with RawClient(frontend.url) as client:
                began = time.monotonic()
                client.send_head(method, path, {"Content-Length": "20000"} | EXPECT | KEY | headers)
                answer = client.read_to_end()  # so the server closes the connection
                seconds.append(time.monotonic() - began)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert not head.startswith(b"HTTP/1.1 100"), code
            assert json.loads(body)["error"]["code"] == code
            assert b"\r\nconnection: close" in head.lower(), code
        assert "Traceback" not in frontend.log()
        assert frontend.stored() == []
    assert min(seconds) < 1  # no body is waited for


def test_100_is_sent_when_the_body_is_read(frontend: Frontend) -> None:
    body = noise(20).tobytes()
    for framing in ({"Content-Length": str(len(body))}, {"Transfer-Encoding": "chunked"}):
        with RawClient(frontend.url) as client:
            for _ in range(2):  # the connection can be used again
                client.send_head("POST", UPLOAD_DATA, EXPECT | framing)
                assert client.socket.recv(1000) == CONTINUE
                if "Content-Length" in framing:
                    client.send(body)
                else:
                    client.send_chunk(body)
                    client.send_chunk(b"")
                answer = client.read_head()
                name = json.loads(answer.read())["data_blob_path"]
                assert (frontend.data_dir / "blobs" / name).read_bytes() == body
                client.send_head("GET", "/health", EXPECT)  # nothing to wait for
                assert client.read_head().read()


def test_a_body_that_comes_without_waiting_is_taken(frontend: Frontend) -> None:
    body = noise(20).tobytes()
    head = f"POST {UPLOAD_DATA}", "Expect: 100-continue"
    assert send_raw(frontend.url, raw_request(*head, body=body)).status == 200
    old = raw_request(*head, body=body).replace(b"HTTP/1.1", b"HTTP/1.0", 1)  # HTTP/1.0 knows no 100
    assert ask_all(frontend, old).startswith(b"HTTP/1.1 200")


def ask_all(frontend: Frontend, sent: bytes) -> bytes:
    with RawClient(frontend.url) as client:
        client.send(sent)
        return client.read_to_end()


def test_a_body_that_comes_after_its_refusal_does_not_cost_the_answer(frontend: Frontend) -> None:
    """Some clients send it once they have waited a while, and read the answer after that."""
    body = bytes(20 * 2**20)
    with RawClient(frontend.url) as client:
        client.send_head("POST", UPLOAD, EXPECT | {"Content-Length": str(len(body))})
        client.send(body)
        assert client.read_json()[1]["error"]["code"] == "bad_header"
        assert client.read_to_end() == b""


def test_curl_sends_nothing_of_a_body_that_is_refused(frontend: Frontend, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(noise(20).tobytes())

    def curl(path: str, *headers: str) -> tuple[str, int]:
        fields = (part for header in ("Expect: 100-continue", *headers) for part in ("-H", header))
        shown = ["-s", "-S", "-o", str(tmp_path / "answer"), "-w", "%{http_code} %{size_upload}"]
        command = ["curl", *shown, *fields, "--data-binary", f"@{file}", frontend.url + path]
        status, sent = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
        return status, int(sent)

    assert curl(UPLOAD) == ("400", 0)
    assert curl(UPLOAD_DATA) == ("200", file.stat().st_size)
    sides = ("X-Video-Frames: 20", "X-Video-Height: 64", "X-Video-Width: 96")
    assert curl(UPLOAD, *sides) == ("200", file.stat().st_size)


# -- Framing ------------------------------------------------------------------------------------------------------

NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5, 5\r\ntransfer-encoding:\tCHUNKED ",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        b"Transfer-Encoding: chunked\nContent-Length: 5",
    ],
)
def test_after_two_lengths_the_connection_closes(frontend: Frontend, framing: bytes) -> None:
    """RFC 9112, 6.1: the chunks count, and what comes after them may be what another server took for the body."""
    head = f"POST {UPLOAD_DATA} HTTP/1.1\r\nHost: localhost\r\n".encode()
    answer = ask_all(frontend, head + framing + b"\r\n\r\n4\r\nabcd\r\n0\r\n\r\n" + NEXT)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\nconnection: close\r\n" in answer
    assert b'"size_bytes":4' in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n12345",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
        b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked;q=1\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: \r\nContent-Length: 5\r\n\r\n12345",
        b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Content-Length:\r\n 5\r\n\r\n12345",
        b"X-Folded: a\r\n\tb\r\nContent-Length: 0\r\n\r\n",
        b"X-Folded: a\n Content-Length: 5\n\n",
        b"Content-Length: 5, 6\r\n\r\n12345",
        b"Content-Length: +5\r\n\r\n12345",
        b"Content-Length: 0x5\r\n\r\n12345",
        b"Content-Length: ,5\r\n\r\n12345",
        b"Transfer-Encoding: chunked\r\n\r\n+5\r\n12345\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\n12345\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345XX0\r\n\r\n",
    ],
)
def test_no_second_request_can_hide_in_a_first(frontend: Frontend, rest: bytes) -> None:
    answer = send_raw(frontend.url, f"POST {CANCEL} HTTP/1.1\r\nHost: localhost\r\n".encode() + rest + NEXT)
    assert check_refusal(frontend, answer)["code"] == "bad_request"
    assert b"HTTP/1.1" not in answer.body


@pytest.mark.parametrize("stray", [b"\r\n", b"\r\n\r\n", b"\0\xff", b"\r\nGET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_nothing_counts_after_the_last_request(frontend: Frontend, version: bytes, stray: bytes) -> None:
    """RFC 9112, 9.6: also while the response is a stream, which continues to its end."""
    body = json.dumps(PROBE | {"num_frames": 33}).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with assert_recovers(frontend, outputs=1), RawClient(frontend.url) as client:
        client.send(head.encode().replace(b"HTTP/1.1", version) + body + stray)
        assert client.socket.recv(1).startswith(b"H")
        client.send(stray)
        answer = client.read_to_end()
        assert answer.startswith(b"TTP/1.1 200")
        assert b"event: complete\n" in answer
        assert answer.count(b"HTTP/1.1") == 0
    assert ask_all(frontend, NEXT.replace(b"HTTP/1.1\r\n", version + b"\r\nConnection: close\r\n") + stray).startswith(
        b"HTTP/1.1 200"
    )


def test_empty_lines_before_a_request_are_passed_over(frontend: Frontend) -> None:
    """RFC 9112, 2.2: some clients send one after a body."""
    upload = head_of(f"POST {UPLOAD_DATA}", "Content-Length: 3") + b"abc\r\n"
    with assert_recovers(frontend, inputs=2):
        answer = half_closed(frontend, b"\r\n" + NEXT + b"\r\n\r\n" + NEXT + upload + NEXT + b"\r\n")
        assert answer.count(b"HTTP/1.1 200") == 4
        assert answer.count(b"HTTP/1.1") == 4
        with RawClient(frontend.url) as client:
            for part in (b"\r", b"\n", upload[:-2]):  # a line break that comes in two pieces
                client.send(part)
            assert client.read_json()[0] == 200
            for part in (b"\r", b"\n" + NEXT):
                client.send(part)
            assert client.read_head().status == 200
    assert b" 400 " in half_closed(frontend, b"\n\r" + NEXT)
    assert half_closed(frontend, b"\r\n" * 100_000 + NEXT).startswith(b"HTTP/1.1 200")


def test_http_1_0_has_no_chunks(frontend: Frontend) -> None:
    head = f"POST {CANCEL} HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert check_refusal(frontend, send_raw(frontend.url, head.encode() + b"0\r\n\r\n" + NEXT))["code"] == "bad_request"


# -- Half-closed clients ------------------------------------------------------------------------------------------


def half_closed(frontend: Frontend, sent: bytes) -> bytes:
    """Everything that comes in answer to a client that closes its sending side right after what it sends."""
    with RawClient(frontend.url) as client:
        client.send(sent)
        client.half_close()
        return client.read_to_end()


def head_of(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def test_a_half_closed_client_is_answered(frontend: Frontend) -> None:
    video = noise(60, 320, 576)
    sides = ("X-Video-Frames: 60", "X-Video-Height: 320", "X-Video-Width: 576", f"Content-Length: {video.nbytes}")
    with assert_recovers(frontend, inputs=2, outputs=1):
        assert half_closed(frontend, NEXT).startswith(b"HTTP/1.1 200")
        assert half_closed(frontend, NEXT + NEXT + NEXT).count(b"HTTP/1.1 200") == 3
        assert half_closed(frontend, head_of("GET /api/v1/pipelines")).rstrip().endswith(b"]}")
        assert b'"size_bytes":3' in half_closed(frontend, head_of(f"POST {UPLOAD_DATA}", "Content-Length: 3") + b"abc")
        uploaded = half_closed(frontend, head_of(f"POST {UPLOAD}", *sides) + video.tobytes())
        assert b'"num_frames":60' in uploaded
        for body in (b"{", b"{}", b'{"pipeline_id": "nope", "prompt": "x"}'):
            answer = half_closed(frontend, head_of(f"POST {GENERATE}", f"Content-Length: {len(body)}") + body)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 422", b"HTTP/1.1 404")), answer
        output = frontend.generate(**PROBE | {"num_frames": 60}, height=320, width=576)[-1][1]["output_path"]
        head, _, data = half_closed(frontend, head_of(f"GET {DOWNLOAD}?path={output}")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert data[20:] == probe_video(60, height=320, width=576).tobytes()  # more than the kernel takes at once


def test_a_half_closed_client_of_a_generation_is_gone(frontend: Frontend) -> None:
    body = json.dumps(PROBE | {"prompt": "!sleep 60"}).encode()
    with assert_recovers(frontend):
        answer = half_closed(frontend, head_of(f"POST {GENERATE}", f"Content-Length: {len(body)}") + body)
        assert b"event:" not in answer
        frontend.wait_idle(5)


class App(Quart):
    request_class = BoundedRequest
    asgi_http_class = Connection


@asynccontextmanager
async def served(app: App, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, int]]:
    """The address of an app that is served in this process; 1 MiB of refused bodies is read."""
    monkeypatch.setattr(hypercorn.protocol, "H11Protocol", None)  # so that both are put back
    monkeypatch.setattr(hypercorn.asyncio.run, "TCPServer", None)
    protocol.install(OpenConnections(10), 2**20)
    listener, config, stopping = socket.create_server(("127.0.0.1", 0)), Config(), asyncio.Event()
    address = listener.getsockname()
    config.bind = [f"fd://{listener.detach()}"]
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stopping.wait))
    yield address
    stopping.set()
    await serving


async def test_a_half_closed_client_of_a_stream_waits_a_moment_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have left: what a long check costs is not spent on it."""
    app, ended = App(__name__), asyncio.Queue[str]()

    @app.post("/<how>")
    async def check(how: str) -> Response:
        on_close(request).callback(ended.put_nowait, how)
        will_stream(request)
        if how == "long":
            await asyncio.Event().wait()
        return Response("no", 422)

    async with served(app, monkeypatch) as address:
        for how, status in (("short", b"HTTP/1.1 422"), ("long", b"")):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head_of(f"POST /{how}", "Content-Length: 0"))
            writer.write_eof()
            assert (await asyncio.wait_for(reader.read(), 30))[:12] == status
            assert await asyncio.wait_for(ended.get(), 30) == how
            writer.close()


@pytest.mark.parametrize(("longest_s", "piece"), [(0.5, bytes(10)), (3600, bytes(2**16))], ids=["slow", "large"])
async def test_a_body_that_is_not_read_ends_after_a_time_and_a_size(
    monkeypatch: pytest.MonkeyPatch, longest_s: float, piece: bytes
) -> None:
    monkeypatch.setattr(protocol, "_LONGEST_LINGER_S", longest_s)
    app = App(__name__)

    @app.post("/")
    async def refuse() -> Response:
        await cast("BoundedBody", request.body).discard(0, 0)
        return Response("no", 422)

    async with served(app, monkeypatch) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(head_of("POST /", "Content-Length: 1000000000"))
        answer = await asyncio.wait_for(reader.read(), 30)  # it comes while the body still does
        assert answer.startswith(b"HTTP/1.1 422")
        assert b"\r\nconnection: close\r\n" in answer

        async def send_on() -> None:
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_on(), 30)
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", NEXT[:-2], head_of(f"POST {UPLOAD_DATA}", "Content-Length: 9") + b"12"]
)
def test_a_half_closed_client_that_has_not_sent_its_request_is_let_go(frontend: Frontend, sent: bytes) -> None:
    with assert_recovers(frontend):
        assert half_closed(frontend, sent)[:12] in (b"", b"HTTP/1.1 400")


def test_connections_that_were_closed_or_half_closed_are_let_go(frontend: Frontend) -> None:
    process = psutil.Process(frontend.process.pid)
    frontend.wait_idle()
    before = process.num_fds()
    clients = [RawClient(frontend.url) for _ in range(60)]
    for number, client in enumerate(clients):
        if number % 3:
            client.send(NEXT)
            assert client.read_json()[0] == 200
    assert process.num_fds() >= before + 50
    for client in clients:
        client.half_close()
    assert [client.read_to_end() for client in clients] == [b""] * 60  # while they are still open on our side
    for client in clients:
        client.close()
    eventually(lambda: process.num_fds() <= before)
