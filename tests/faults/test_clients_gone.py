"""Clients that disconnect or stall, at every point of a request."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import http
from tests.support.http import DOWNLOAD, GENERATE
from tests.support.probe_video import probe_video
from tests.support.raw_client import RawClient
from tests.support.recovery import (
    LONG,
    NUM_LONG_CHUNKS,
    PROBE,
    SHORT_KEEP_ALIVE_S,
    assert_recovers,
    eventually,
    is_generating,
    noise,
)
from tests.support.server import Frontend, frontend_on

SLEEPER = {"pipeline_id": "probe", "prompt": "!sleep 60", "num_frames": 9}
NOTICED_S = 5  # how soon the server notices: far less than the sleeper's chunk takes

VIDEO = noise(200)
VIDEO_HEADERS = {"X-Video-Frames": "200", "X-Video-Height": "64", "X-Video-Width": "96"}
UPLOADS = {
    "/api/v1/generate/upload": VIDEO_HEADERS,
    "/api/v1/generate/upload-data": {},
    "/api/v1/assets": {},
}

every_way_to_leave = pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset])
Leave = Callable[[RawClient], None]


@pytest.fixture(scope="module")
def frontend(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(server, tmp_path_factory.mktemp("gone")) as frontend:
        yield frontend


@pytest.fixture(autouse=True)
def no_traceback(frontend: Frontend) -> Iterator[None]:
    """A client that disconnects is not an error of the server."""
    yield
    assert "Traceback" not in frontend.log()


WRITTEN_AT_ONCE_BYTES = 2**20  # so much of a body may have been received but not written to disk


def cancelled(frontend: Frontend) -> int:
    """How many chunks the probe has cancelled."""
    return sum(entry["event"] == "cancelled" for entry in frontend.probe_entries())


# -- In an upload -------------------------------------------------------------------------------------------------


@every_way_to_leave
@pytest.mark.parametrize("sent_bytes", [0, 2_000_000])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", UPLOADS)
def test_gone_in_an_upload(frontend: Frontend, path: str, chunked: bool, sent_bytes: int, leave: Leave) -> None:
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(VIDEO.nbytes)}
    part = VIDEO.tobytes()[:sent_bytes]
    with assert_recovers(frontend):
        client = RawClient(frontend.url)
        client.send_head("POST", path, UPLOADS[path] | framing)
        if part:
            (client.send_chunk if chunked else client.send)(part)
        eventually(lambda: partial_bytes(frontend) >= max(0, sent_bytes - WRITTEN_AT_ONCE_BYTES))
        leave(client)
        eventually(lambda: partial_bytes(frontend) < 0, NOTICED_S)


def partial_bytes(frontend: Frontend) -> int:
    """Size of the incomplete file; -1 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        for file in (frontend.data_dir / "partial").iterdir():
            return file.stat().st_size
    return -1


@every_way_to_leave
def test_gone_in_the_json_body(frontend: Frontend, leave: Leave) -> None:
    with assert_recovers(frontend):
        client = RawClient(frontend.url)
        client.post_json(GENERATE, SLEEPER, keep_back=10)
        assert not is_generating(frontend)
        leave(client)
        eventually(lambda: was_broken_off(frontend), NOTICED_S)


def was_broken_off(frontend: Frontend) -> bool:
    """Whether the newest line of the access log is a request without a response."""
    lines = [line for line in frontend.log().splitlines() if "filmstrip.access" in line]
    return bool(lines) and f"POST {GENERATE} - " in lines[-1]


# -- In a generation ----------------------------------------------------------------------------------------------


@every_way_to_leave
def test_gone_right_after_the_request(frontend: Frontend, leave: Leave) -> None:
    """Wherever the request is at that moment: in the parser, in the plan, or with the model."""
    for milliseconds in range(10):
        with assert_recovers(frontend):
            client = RawClient(frontend.url)
            client.post_json(GENERATE, SLEEPER)
            time.sleep(milliseconds / 1000)
            leave(client)
            frontend.wait_idle(NOTICED_S)
    eventually(lambda: num_regions(frontend) == 0, NOTICED_S)


def num_regions(frontend: Frontend) -> int:
    """How many shared memory regions Triton has registered."""
    with frontend.triton_client() as client:
        return len(client.get_system_shared_memory_status().regions)


@every_way_to_leave
@pytest.mark.parametrize("reads_head", [False, True])
def test_gone_in_chunk_0_cancels_it_in_the_model(frontend: Frontend, reads_head: bool, leave: Leave) -> None:
    with assert_recovers(frontend):
        chunks, before = len(frontend.probe_entries()), cancelled(frontend)
        client = RawClient(frontend.url)
        client.post_json(GENERATE, SLEEPER)
        if reads_head:
            assert client.read_head().status == 200
        frontend.wait_for_chunk(chunks)
        leave(client)
        frontend.wait_idle(NOTICED_S)
        assert cancelled(frontend) == before + 1


@every_way_to_leave
def test_gone_between_events_stops_the_generation(frontend: Frontend, leave: Leave) -> None:
    with assert_recovers(frontend):
        chunks = len(frontend.probe_entries())
        client = RawClient(frontend.url)
        client.post_json(GENERATE, PROBE | {"num_frames": 10_000})
        for event in client.read_events():
            if event.data["chunk"] == 3:
                break
        leave(client)
        frontend.wait_idle(NOTICED_S)
        assert 3 <= len(frontend.probe_entries()) - chunks < 600  # of 834


@every_way_to_leave
def test_gone_during_the_next_chunk(frontend: Frontend, leave: Leave) -> None:
    with assert_recovers(frontend):
        chunks, before = len(frontend.probe_entries()), cancelled(frontend)
        client = RawClient(frontend.url)
        client.post_json(GENERATE, PROBE | {"chunk_specs": [{"chunk": 1, "text": "!sleep 60"}]})
        assert next(client.read_events()).name == "progress"
        frontend.wait_for_chunk(chunks + 1)
        leave(client)
        frontend.wait_idle(NOTICED_S)
        assert cancelled(frontend) == before + 1


def test_half_closed_counts_as_gone(frontend: Frontend) -> None:
    with assert_recovers(frontend):
        chunks, before = len(frontend.probe_entries()), cancelled(frontend)
        with RawClient(frontend.url) as client:
            client.post_json(GENERATE, SLEEPER)
            client.read_head()
            frontend.wait_for_chunk(chunks)
            client.half_close()
            with pytest.raises(EOFError):
                list(client.read_events())
        frontend.wait_idle(NOTICED_S)
        assert cancelled(frontend) == before + 1


@every_way_to_leave
def test_gone_with_a_second_request_behind_the_stream(server: Frontend, tmp_path: Path, leave: Leave) -> None:
    """hypercorn then stops reading, and notices the end of the connection only when it writes the next comment."""
    with frontend_on(server, tmp_path, keep_alive_s=0.2) as frontend, assert_recovers(frontend):
        chunks, before = len(frontend.probe_entries()), cancelled(frontend)
        client = RawClient(frontend.url)
        client.post_json(GENERATE, SLEEPER)
        client.read_head()
        client.post_json(GENERATE, SLEEPER)
        frontend.wait_for_chunk(chunks)
        leave(client)
        frontend.wait_idle(NOTICED_S)
        assert cancelled(frontend) == before + 1
        assert len(frontend.probe_entries()) == chunks + 2  # the second request was not processed


# -- In a download ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(frontend: Frontend) -> str:
    """A video of 33 MB, more than the kernel buffers."""
    events = frontend.generate(**PROBE | {"num_frames": 60}, height=320, width=576)
    return str(events[-1][1]["output_path"])


@every_way_to_leave
def test_gone_in_a_download_the_file_stays(frontend: Frontend, output: str, leave: Leave) -> None:
    def is_open() -> bool:
        return any(file.path.endswith(output) for file in psutil.Process(frontend.process.pid).open_files())

    with assert_recovers(frontend):
        for read_bytes in (0, 4_000_000):
            client = RawClient(frontend.url)
            client.send_head("GET", f"{DOWNLOAD}?path={output}")
            assert len(client.read_head().read(read_bytes)) == read_bytes
            assert is_open()
            leave(client)
            eventually(lambda: not is_open(), NOTICED_S)
    assert np.array_equal(frontend.download(output), probe_video(60, height=320, width=576))


# -- Slow clients -------------------------------------------------------------------------------------------------

STOPPED_S = 30  # how long the reader stops; the slow bodies take as long
ROUNDS = 10
QUICK_S = 20  # on a busy machine; a server that waited for one of the slow clients would take all of their time
KIB = 1024


def trickle(client: RawClient, data: bytes) -> None:
    """Send 1 KiB at a time, over `STOPPED_S` in all."""
    for start in range(0, len(data), KIB):
        client.send(data[start : start + KIB])
        time.sleep(STOPPED_S * KIB / len(data))


def trickled_upload(frontend: Frontend) -> None:
    video = noise(2)
    with RawClient(frontend.url) as client:
        headers = VIDEO_HEADERS | {"X-Video-Frames": "2", "Content-Length": str(video.nbytes)}
        client.send_head("POST", "/api/v1/generate/upload", headers)
        trickle(client, video.tobytes())
        status, answer = client.read_json()
    assert (status, answer["shape"]) == (200, [2, 64, 96, 3])
    stored = (frontend.data_dir / "videos" / answer["input_path"]).read_bytes()
    assert stored[20:] == video.tobytes()


def trickled_request(frontend: Frontend, turn: threading.Lock) -> None:
    request = PROBE | {"prompt": "x" * 20 * KIB, "seed": 3}
    with RawClient(frontend.url) as client:
        end = client.post_json(GENERATE, request, keep_back=20 * KIB)
        trickle(client, end[:-1])
        with turn:  # there is one slot
            client.send(end[-1:])
            last = list(client.read_events())[-1]
    assert last.name == "complete"
    assert np.array_equal(frontend.download(last.data["output_path"]), probe_video(33, seed=3))


def quick(frontend: Frontend, turn: threading.Lock) -> None:
    """What other clients do at the same time."""
    began = time.monotonic()
    assert http.get(f"{frontend.url}/health").status_code == 200
    assert time.monotonic() - began < QUICK_S
    frontend.upload(VIDEO)
    assert time.monotonic() - began < QUICK_S
    with turn:
        began = time.monotonic()
        assert np.array_equal(frontend.generate_frames(**PROBE), probe_video(33))
        assert time.monotonic() - began < QUICK_S


def test_stopped_readers_and_slow_bodies_delay_nobody_else(server: Frontend, tmp_path: Path) -> None:
    with (
        frontend_on(server, tmp_path, keep_alive_s=SHORT_KEEP_ALIVE_S) as frontend,
        assert_recovers(frontend, inputs=ROUNDS + 1, outputs=ROUNDS + 2),
        RawClient(frontend.url, small_buffers=True) as reader,
        ThreadPoolExecutor() as pool,
    ):
        turn = threading.Lock()
        slow = [pool.submit(trickled_upload, frontend)]
        reader.post_json(GENERATE, LONG)
        assert reader.read_head().status == 200
        stopped = time.monotonic()
        eventually(lambda: is_generating(frontend))
        frontend.wait_idle(40)
        assert f"POST {GENERATE} 200" not in frontend.log()  # its response is stuck, because nobody reads it
        slow.append(pool.submit(trickled_request, frontend, turn))
        for number in range(ROUNDS):
            quick(frontend, turn)
            time.sleep(max(0, stopped + STOPPED_S * (number + 1) / ROUNDS - time.monotonic()))
        for work in slow:
            work.result(2 * STOPPED_S)
        assert time.monotonic() - stopped >= STOPPED_S
        events = list(reader.read_events())
    assert [event.id for event in events] == list(range(1, NUM_LONG_CHUNKS + 2))
    assert [event.data["chunk"] for event in events[:-1]] == list(range(1, NUM_LONG_CHUNKS + 1))
    assert (events[-1].name, events[-1].data["num_frames"]) == ("complete", 10_000)
