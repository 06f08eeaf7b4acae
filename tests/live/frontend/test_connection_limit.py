"""How many connections may be open: descriptors stay in reserve, idle connections make room, busy ones are served."""

import asyncio
import itertools
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.protocol import RESERVED_DESCRIPTORS, connection_limit
from tests.support import http
from tests.support.http import UPLOAD_DATA
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, assert_recovers, eventually, noise
from tests.support.server import MODELS, Frontend, frontend_on

CROWD = 1300
DESCRIPTORS = 1024


@pytest.mark.parametrize(
    ("descriptors", "most"), [(1024, 416), (65_536, 4096), (100, 8), (resource.RLIM_INFINITY, 4096)]
)
def test_every_connection_may_have_a_file_open_too(descriptors: int, most: int) -> None:
    assert connection_limit(4096, descriptors) == most


@contextmanager
def crowd(frontend: Frontend, sent: bytes = b"") -> Iterator[Callable[[], int]]:
    """Hold connections that say nothing more, each opened again when it is cut; yields how many have been opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    address = httpx.URL(frontend.url)
    opened = 0

    async def hold() -> None:
        nonlocal opened
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                opened += 1
                try:
                    writer.write(sent)
                    await reader.read()
                finally:
                    writer.close()

    async def hold_all() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CROWD):
                group.create_task(hold())
            await asyncio.to_thread(leaving.wait)
            raise asyncio.CancelledError

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(hold_all())

    leaving = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: opened
    finally:
        leaving.set()
        thread.join()


def test_a_crowd_of_silent_connections_keeps_nobody_out(tmp_path: Path) -> None:
    """The server has 1,024 descriptors, soft and hard, and the crowd has 1,300 connections."""
    launcher = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", "--")
    frontend = Frontend(tmp_path, "--embedded", launcher=launcher, model_repository=MODELS)
    try:
        frontend.wait_healthy()
        process = psutil.Process(frontend.process.pid)
        triton, descriptors = frontend.triton_pid, process.num_fds()
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with frontend.stream(**PROBE | {"prompt": "!sleep 1", "num_frames": 3600}) as events:  # for minutes
                begun, *_ = itertools.islice(events, 1)
                with crowd(frontend, sent) as opened:
                    while opened() < 2 * CROWD:
                        time.sleep(0.02)
                    for _ in range(10):
                        assert http.get(f"{frontend.url}/health", timeout=5).json()["generating"]
                        assert process.num_fds() < DESCRIPTORS - RESERVED_DESCRIPTORS / 2
                    frontend.upload_data(noise(20).tobytes())
                    frontend.cancel()
                    name, data = list(events)[-1]
                    assert (begun[0], name) == ("progress", "cancelled"), data
                    assert frontend.download(data["output_path"]).shape == (data["frames_completed"], 64, 96, 3)
        eventually(lambda: process.num_fds() <= descriptors + 5)
        assert frontend.triton_pid == triton
        assert "Traceback" not in frontend.log()
        assert "[error" not in frontend.log()
        assert frontend.log().count("connections is reached") == 1  # at most one line a minute
    finally:
        assert frontend.stop() == 0


def test_more_requests_than_connections_are_refused_and_leave_descriptors_for_the_rest(
    tmp_path: Path, server: Frontend
) -> None:
    launcher = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", "--")
    frontend = Frontend(tmp_path, "--triton-url", server.triton_url, launcher=launcher, body_timeout_s=20)
    try:
        frontend.wait_healthy()
        process = psutil.Process(frontend.process.pid)
        with crowd(
            frontend, f"POST {UPLOAD_DATA} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc".encode()
        ) as opened:
            eventually(lambda: opened() > 3 * CROWD)
            assert len(frontend.stored("partial")) == connection_limit(4096, DESCRIPTORS)
            assert process.num_fds() < DESCRIPTORS - RESERVED_DESCRIPTORS / 2
            assert http.get(f"{frontend.url}/health").status_code == 503
        frontend.wait_healthy()
        eventually(lambda: not frontend.stored("partial"))
        assert "Too many open files" not in frontend.log()
        assert "Traceback" not in frontend.log()
    finally:
        assert frontend.stop() == 0


def test_the_one_idle_longest_makes_room_and_those_with_a_request_never(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, max_connections=4) as frontend, assert_recovers(frontend, inputs=4):
        clients = [RawClient(frontend.url) for _ in range(4)]
        for client in clients:  # the first one is now the last to go
            assert health(client) == 200
        assert health(clients[0]) == 200
        clients[2].send(b"GET /health HTTP/1.1\r\nX-Slow: ")  # half a head makes it no younger
        newer = []
        for oldest in (clients[1], clients[2], clients[3], clients[0]):
            newer.append(RawClient(frontend.url))
            assert oldest.read_to_end() == b""
            newer[-1].send_head("POST", UPLOAD_DATA, {"Content-Length": "6"})
            newer[-1].send(b"abc")
            eventually(lambda: len(frontend.stored("partial")) == len(newer))
        for _ in range(3):
            with RawClient(frontend.url) as refused:
                status, body = refused.read_json()
                assert (status, body["error"]["code"]) == (503, "too_many_connections")
                assert refused.read_to_end() == b""
        for client in newer:
            client.send(b"def")
            assert client.read_json()[0] == 200
            client.close()
        for client in clients:
            client.close()


def test_bodies_that_are_refused_keep_nobody_out(server: Frontend, tmp_path: Path) -> None:
    """Clients without a key are answered at once, however slowly they send; then their connections make room."""
    head = {"Content-Length": str(10**9)}
    requests = (("POST", UPLOAD_DATA, 401), ("POST", "/nothing", 401), ("GET", "/health", 200))
    with frontend_on(server, tmp_path, api_keys="me:secret", max_connections=10) as frontend:
        clients = [RawClient(frontend.url, timeout_s=20) for _ in range(10)]
        expected = [requests[number % len(requests)] for number in range(10)]
        leaving = threading.Event()

        def trickle() -> None:
            while not leaving.wait(0.02):
                for client in clients:
                    with suppress(OSError):
                        client.send(bytes(1000))

        trickling = threading.Thread(target=trickle)
        try:
            for client, (method, path, _) in zip(clients, expected, strict=True):
                client.send_head(method, path, head)
            trickling.start()
            for client, (_, _, status) in zip(clients, expected, strict=True):
                answer = client.read_head()
                assert (answer.status, answer.headers["Connection"]) == (status, "close")
                answer.read()
            for _ in range(3):
                assert http.get(f"{frontend.url}/health").status_code == 200
        finally:
            leaving.set()
            trickling.join()
            for client in clients:
                client.close()


def health(client: RawClient) -> int:
    client.send_head("GET", "/health")
    answer = client.read_head()
    answer.read()
    return answer.status


def test_the_soft_limit_on_descriptors_is_raised_to_the_hard_one(server: Frontend, tmp_path: Path) -> None:
    frontend = Frontend(tmp_path, "--triton-url", server.triton_url, launcher=("prlimit", "--nofile=256:2048", "--"))
    try:
        assert psutil.Process(frontend.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (2048, 2048)
        assert "at most 928 connections" in frontend.log()
    finally:
        assert frontend.stop() == 0
