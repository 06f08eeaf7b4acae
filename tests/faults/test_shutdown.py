"""SIGTERM, SIGINT and SIGHUP in the middle of requests: the server exits in time, and nothing is lost."""

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import http
from tests.support.http import DOWNLOAD, GENERATE
from tests.support.probe_video import probe_video
from tests.support.processes import descendants, is_running
from tests.support.raw_client import RawClient
from tests.support.recovery import (
    LONG,
    MODELS_WITH_STATE,
    PROBE,
    SHORT_KEEP_ALIVE_S,
    assert_serves,
    eventually,
    is_generating,
    noise,
    open_sequences,
)
from tests.support.server import MODELS, Frontend

SLEEPER = {"pipeline_id": "probe", "prompt": "!sleep 60", "num_frames": 9}
SHUTDOWN_S = 2.0  # the time that open requests get
SLACK_S = 6.0  # on a busy machine; its hard limit is another second later
LONG_SHUTDOWN_S = 40.0  # by which a shutdown that waited for it would be noticed
VIDEO = noise(200)
VIDEO_HEADERS = {
    "X-Video-Frames": "200",
    "X-Video-Height": "64",
    "X-Video-Width": "96",
    "Content-Length": str(VIDEO.nbytes),
}


@pytest.fixture
def frontend(server: Frontend, tmp_path: Path) -> Iterator[Frontend]:
    """A frontend on another server's Triton; the test stops it."""
    settings = {"shutdown_timeout_s": SHUTDOWN_S, "keep_alive_s": SHORT_KEEP_ALIVE_S}
    frontend = Frontend(tmp_path, "--triton-url", server.triton_url, **settings)
    frontend.probe_log = server.probe_log
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        frontend.stop()


@contextlib.contextmanager
def ending(frontend: Frontend, server: Frontend, within_s: float, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send the signal, run the block, and check that the frontend has exited cleanly in time."""
    began = time.monotonic()
    frontend.process.send_signal(number)
    yield
    assert frontend.process.wait(20) == 0, frontend.log()[-2000:]
    assert time.monotonic() - began < within_s
    assert "Traceback" not in frontend.log()
    assert "[error" not in frontend.log()
    assert frontend.stored("partial", "work") == []
    assert frontend.in_shm() == []
    assert {model: open_sequences(server, model) for model in MODELS_WITH_STATE} == dict.fromkeys(MODELS_WITH_STATE, 0)
    assert_serves(server)  # Triton still serves others


def wait_closing(frontend: Frontend) -> None:
    """Wait until it refuses connections."""

    def refused() -> bool:
        address = httpx.URL(frontend.url)
        try:
            socket.create_connection((address.host, address.port or 0), timeout=5).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # it was in the listener's queue when that was closed
        return False

    eventually(refused, 5)


# -- In a generation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_generation_ends_with_shutting_down(frontend: Frontend, server: Frontend, number: int) -> None:
    chunks = len(frontend.probe_entries())
    with RawClient(frontend.url) as client:
        client.post_json(GENERATE, PROBE | {"chunk_specs": [{"chunk": 1, "text": "!sleep 60"}]})
        stream = client.read_events()
        assert next(stream).name == "progress"
        frontend.wait_for_chunk(chunks + 1)
        with ending(frontend, server, SHUTDOWN_S + SLACK_S, number):
            (last,) = stream
        assert (last.id, last.name, last.data["code"]) == (2, "error", "shutting_down")
    assert server.probe_entries()[chunks + 2]["event"] == "cancelled"
    assert frontend.stored() == []


def test_it_is_unhealthy_while_it_stops(tmp_path: Path) -> None:
    """A load balancer sends no new requests while a generation ends, which takes the whole timeout here."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "probe").symlink_to(Path(MODELS) / "probe")
    frontend = Frontend(tmp_path, "--embedded", model_repository=tmp_path / "models", shutdown_timeout_s=6)
    try:
        frontend.wait_healthy()
        with RawClient(frontend.url) as client:
            client.post_json(GENERATE, PROBE | {"prompt": "!hang"})
            client.read_head()
            frontend.wait_for_chunk(0)
            frontend.process.send_signal(signal.SIGTERM)
            for path in ("/health", "/health/ready"):
                eventually(lambda path=path: http.get(frontend.url + path).status_code == 503, 5)
                answer = http.get(frontend.url + path).json()
                assert answer == {
                    "status": "unavailable",
                    "generating": True,
                    "degraded": [],
                    "slots": [{"name": "0", "state": "generating"}],
                }
    finally:
        frontend.process.kill()  # the hung model would delay its end
        frontend.process.wait()


def test_repeated_signals(frontend: Frontend, server: Frontend) -> None:
    chunks = len(frontend.probe_entries())
    with RawClient(frontend.url) as client:
        client.post_json(GENERATE, SLEEPER)
        client.read_head()
        frontend.wait_for_chunk(chunks)
        with ending(frontend, server, SHUTDOWN_S + SLACK_S):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                frontend.process.send_signal(number)
            (last,) = client.read_events()
            assert last.data["code"] == "shutting_down"


def test_with_a_reader_of_events_that_has_stopped(frontend: Frontend, server: Frontend) -> None:
    with RawClient(frontend.url, small_buffers=True) as client:
        client.post_json(GENERATE, LONG)
        client.read_head()
        eventually(lambda: is_generating(frontend))
        frontend.wait_idle(40)
        assert f"POST {GENERATE} 200" not in frontend.log()  # it is still being sent
        with ending(frontend, server, SHUTDOWN_S + SLACK_S):
            pass


def test_a_request_that_is_complete_only_then_is_refused(frontend: Frontend, server: Frontend) -> None:
    with RawClient(frontend.url) as client:
        end = client.post_json(GENERATE, PROBE, keep_back=1)
        assert not is_generating(frontend)
        with ending(frontend, server, SHUTDOWN_S + SLACK_S):
            wait_closing(frontend)
            client.send(end)
            status, answer = client.read_json()
        assert (status, answer["error"]["code"]) == (503, "shutting_down")


IN_A_TERMINAL = "import pty, sys; pty.spawn(sys.argv[1:])"


@pytest.mark.parametrize("shared_memory", [True, False])  # without it a relay carries the arrays: a child of ours
def test_when_its_terminal_is_closed(two_models: Path, tmp_path: Path, shared_memory: bool) -> None:
    """The kernel sends SIGHUP to all processes of the terminal, and writes to it fail."""
    launcher = (sys.executable, "-c", IN_A_TERMINAL)
    settings = {"model_repository": two_models, "shared_memory": shared_memory}
    frontend = Frontend(tmp_path, "--embedded", launcher=launcher, **settings)
    frontend.wait_healthy()
    started = descendants(frontend)
    with RawClient(frontend.url) as client:
        client.post_json(GENERATE, SLEEPER)
        assert client.read_head().status == 200
        frontend.wait_for_chunk(0)
        started = descendants(frontend)
        assert len(started) >= 3  # frontend, Triton, models
        frontend.process.kill()  # the terminal
        frontend.process.wait()
        (last,) = client.read_events()
        assert last.data["code"] == "shutting_down"
    eventually(lambda: not any(is_running(process) for process in started), SHUTDOWN_S + SLACK_S + 5)
    assert frontend.stored() == []
    assert frontend.in_shm() == []


def test_under_nohup_sighup_stays_ignored(server: Frontend, tmp_path: Path) -> None:
    frontend = Frontend(tmp_path, "--triton-url", server.triton_url, launcher=("nohup",))
    frontend.process.send_signal(signal.SIGHUP)
    assert_serves(frontend)
    assert frontend.stop() == 0


# -- In an upload -------------------------------------------------------------------------------------------------


def test_in_an_upload_that_stalls(frontend: Frontend, server: Frontend) -> None:
    with RawClient(frontend.url) as client:
        client.send_head("POST", "/api/v1/generate/upload", VIDEO_HEADERS)
        client.send(VIDEO.tobytes()[:2_000_000])
        eventually(lambda: frontend.stored("partial"))
        with ending(frontend, server, SHUTDOWN_S + SLACK_S):
            assert not client.read_to_end().startswith(b"HTTP/1.1 2")
    assert frontend.stored() == []


def test_in_an_upload_that_is_done_in_time(frontend: Frontend, server: Frontend) -> None:
    with RawClient(frontend.url) as client:
        client.send_head("POST", "/api/v1/generate/upload", VIDEO_HEADERS)
        client.send(VIDEO.tobytes()[:2_000_000])
        eventually(lambda: frontend.stored("partial"))
        with ending(frontend, server, SHUTDOWN_S + SLACK_S):
            wait_closing(frontend)
            client.send(VIDEO.tobytes()[2_000_000:])
            status, answer = client.read_json()
            assert status == 200
    stored = (frontend.data_dir / "videos" / answer["input_path"]).read_bytes()
    assert stored[20:] == VIDEO.tobytes()


# -- In a download ------------------------------------------------------------------------------------------------


def test_in_a_download_by_a_reader_that_has_stopped(frontend: Frontend, server: Frontend, tmp_path: Path) -> None:
    output = frontend.generate(**PROBE | {"num_frames": 60}, height=320, width=576)[-1][1]["output_path"]
    with RawClient(frontend.url, small_buffers=True) as client:
        client.send_head("GET", f"{DOWNLOAD}?path={output}")
        assert len(client.read_head().read(100_000)) == 100_000
        with ending(frontend, server, SHUTDOWN_S + SLACK_S):
            pass
    again = Frontend(tmp_path, "--triton-url", server.triton_url)
    try:
        assert np.array_equal(again.download(output), probe_video(60, height=320, width=576))
    finally:
        assert again.stop() == 0


# -- With idle connections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_idle_connections_it_ends_at_once(server: Frontend, tmp_path: Path, number: int) -> None:
    frontend = Frontend(tmp_path, "--triton-url", server.triton_url, shutdown_timeout_s=LONG_SHUTDOWN_S)
    try:
        frontend.wait_healthy()
        with RawClient(frontend.url) as silent, RawClient(frontend.url) as used:
            used.send_head("GET", "/health")
            assert used.read_json()[0] == 200
            with ending(frontend, server, LONG_SHUTDOWN_S / 2, number):
                assert used.read_to_end() == b""
                assert silent.read_to_end() == b""
    finally:
        frontend.stop()


def test_after_a_client_that_left_with_a_second_request_behind_its_stream(server: Frontend, tmp_path: Path) -> None:
    """Its connection is gone, so that the shutdown does not wait for it."""
    frontend = Frontend(
        tmp_path, "--triton-url", server.triton_url, shutdown_timeout_s=LONG_SHUTDOWN_S, keep_alive_s=0.2
    )
    frontend.probe_log = server.probe_log
    try:
        frontend.wait_healthy()
        chunks = len(frontend.probe_entries())
        with RawClient(frontend.url) as client:
            client.post_json(GENERATE, SLEEPER)
            client.read_head()
            client.post_json(GENERATE, SLEEPER)
            frontend.wait_for_chunk(chunks)
        frontend.wait_idle()
        with ending(frontend, server, LONG_SHUTDOWN_S / 2):
            pass
    finally:
        frontend.stop()
