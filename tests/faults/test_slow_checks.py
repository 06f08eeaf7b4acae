"""Requests that are slow to validate: they block neither the slot nor the event loop, and end with their client."""

import base64
import functools
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest
from PIL import Image

from filmstrip.client import Cancelled, Client, Complete
from frontend.image_worker import MAX_SCANS
from tests.support.http import GENERATE
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, SOON_S, assert_recovers, eventually, is_generating
from tests.support.server import Frontend, frontend_on

MIB = 2**20


@functools.cache
def slow_image(number: int = 0) -> bytes:
    """A JPEG that takes about a second to decode; different for each number."""
    file = io.BytesIO()
    Image.new("L", (4096, 4096), number).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (MAX_SCANS - data.count(b"\xff\xda") + 1) + b"\xff\xd9"


def with_images(count: int) -> dict[str, object]:
    """A request with this many slow images."""
    urls = ["data:image/jpeg;base64," + base64.b64encode(slow_image(number)).decode() for number in range(count)]
    return PROBE | {"chunk_specs": [{"chunk": 0, "vace_ref_images": urls}]}


def decoders(frontend: Frontend) -> list[psutil.Process]:
    """The processes that decode images for a frontend."""
    found = psutil.Process(frontend.process.pid).children()
    return [process for process in found if "image_worker" in " ".join(process.cmdline())]


def is_decoding(frontend: Frontend) -> bool:
    """Whether one of them is busy."""
    return any(process.status() == psutil.STATUS_RUNNING for process in decoders(frontend))


@contextmanager
def always_healthy(frontend: Frontend) -> Iterator[None]:
    """Check that /health always responds soon; a validation that blocked it would take ten seconds."""
    slowest = 0.0
    done = threading.Event()

    def ask() -> None:
        nonlocal slowest
        with httpx.Client(timeout=60) as client:
            while not done.wait(0.05):
                began = time.monotonic()
                assert client.get(f"{frontend.url}/health").status_code == 200
                slowest = max(slowest, time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
    assert slowest < SOON_S


def test_a_request_that_is_checked_keeps_no_other_out(server: Frontend) -> None:
    request = with_images(8)
    with assert_recovers(server, outputs=1), RawClient(server.url) as slow:
        slow.post_json(GENERATE, request)
        eventually(lambda: is_decoding(server))
        assert not is_generating(server)
        with always_healthy(server):
            assert server.generate(**PROBE)[-1][0] == "complete"
        slow.reset()


@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close])
def test_a_check_ends_with_its_client(server: Frontend, leave: Callable[[RawClient], None]) -> None:
    request = with_images(8)
    with assert_recovers(server):
        with RawClient(server.url) as client:
            client.post_json(GENERATE, request)
            eventually(lambda: is_decoding(server))
            leave(client)
        eventually(lambda: not is_decoding(server), SOON_S)
        time.sleep(0.2)
        assert not is_decoding(server)  # nor the next image


def test_a_check_can_be_cancelled(server: Frontend) -> None:
    with assert_recovers(server), Client(server.url) as client:
        request, events = with_images(8), list[object]()

        def generate() -> None:
            with client.generate(request) as stream:
                events.extend(stream)

        generating = threading.Thread(target=generate)
        generating.start()
        eventually(lambda: is_decoding(server))
        began = time.monotonic()
        assert client.cancel() == "cancelling"
        generating.join()
        assert time.monotonic() - began < 10  # its images take longer
        assert events == [Cancelled(0, 3, 0, seed=42)]
        eventually(lambda: not is_decoding(server), SOON_S)
        assert client.cancel() == "idle"


def test_a_request_that_loses_the_slot_while_it_is_checked_is_busy(server: Frontend) -> None:
    request = with_images(2)
    with assert_recovers(server, outputs=1), RawClient(server.url) as slow:
        slow.post_json(GENERATE, request)
        eventually(lambda: is_decoding(server))
        with server.stream(**PROBE | {"prompt": "!sleep 15", "num_frames": 9}) as events:
            status, answer = slow.read_json()
            assert (status, answer["error"]["code"]) == (409, "busy")
            assert [name for name, _ in events][-1] == "complete"


def test_slow_images_of_one_client_hold_up_nobody_else(
    server: Frontend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Four assets at once: small images of others are decoded in between, and requests without images do not wait."""
    keys = "greedy:greedy-key, other:other-key"
    with frontend_on(server, tmp_path_factory.mktemp("fair"), api_keys=keys) as frontend:
        done = threading.Event()

        def upload() -> None:
            with Client(frontend.url, token="greedy-key") as greedy:
                while not done.is_set():
                    greedy.delete(greedy.upload_asset(slow_image()))

        threads = [threading.Thread(target=upload) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: is_decoding(frontend))
            with Client(frontend.url, token="other-key") as other, always_healthy(frontend):
                other.upload_data(bytes(10))
                small = io.BytesIO()
                Image.new("RGB", (8, 8)).save(small, "PNG")
                asset = other.upload_asset(small.getvalue())
                fields = PROBE | {"chunk_specs": [{"chunk": 0, "first_frame_image": asset}]}
                with other.generate(fields) as events:
                    assert isinstance(list(events)[-1], Complete)
        finally:
            done.set()
            for thread in threads:
                thread.join()


def test_memory_of_decoding_is_bounded(server: Frontend) -> None:
    """Six images of the largest size at once."""
    file = io.BytesIO()
    Image.new("RGBA", (4096, 4096), (1, 2, 3, 4)).save(file, "PNG")
    before = server.rss_bytes()
    peak = [0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            processes = [psutil.Process(server.process.pid), *decoders(server)]
            peak[0] = max(peak[0], sum(process.memory_info().rss for process in processes))

    def upload() -> None:
        with Client(server.url) as client:
            client.delete(client.upload_asset(file.getvalue()))

    threads = [threading.Thread(target=upload) for _ in range(6)]
    with assert_recovers(server), always_healthy(server):
        sampling = threading.Thread(target=sample)
        for thread in (sampling, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        sampling.join()
    assert peak[0] - before < 2 * 1024 * MIB
    assert server.rss_bytes() - before < 64 * MIB
