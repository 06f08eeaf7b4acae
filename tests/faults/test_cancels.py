"""POST /generate/cancel at every moment of a generation: the response, the end of the stream, and what is kept."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.probe_video import probe_video
from tests.support.recovery import PROBE, assert_recovers
from tests.support.server import Frontend, frontend_on
from tests.support.sse import EventParser

ROUNDS = 10
LONG_ROUNDS = 4  # of a second or more each, so that a busy machine finds the chunk still running
NEXT = {"pipeline_id": "probe", "prompt": "x", "num_frames": 9}
Event = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def frontend(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(server, tmp_path_factory.mktemp("cancels")) as frontend:
        yield frontend


def sleeping(chunk: int, seconds: float) -> dict[str, Any]:
    """A request for five chunks of 9, 12, 12, 12 and 12 frames, one of which is slow."""
    specs = [{"chunk": chunk, "text": f"!sleep {seconds}"}, {"chunk": chunk + 1, "text": "x"}]
    return PROBE | {"num_frames": 57, "chunk_specs": specs[: 5 - chunk]}


def check_end(frontend: Frontend, events: list[Event], seed: int, total_chunks: int) -> None:
    """Check that the stream ended in a correct `cancelled`; check its video, if there is one, and remove it."""
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["cancelled"]
    progress, (_, end) = [data for _, data in events[:-1]], events[-1]
    num_frames = sum(data["frames"] for data in progress)
    expected = {"chunk": len(progress), "total_chunks": total_chunks, "frames_completed": num_frames}
    expected |= {"seed": seed, "unused": []}
    if num_frames:
        expected |= {"output_path": end["output_path"], "video_shape": [num_frames, 64, 96, 3]}
    assert end == expected
    if num_frames:
        assert np.array_equal(take(frontend, end), probe_video(num_frames, seed))


def take(frontend: Frontend, end: dict[str, Any]) -> Any:
    """Download the video and remove it."""
    video = frontend.download(end["output_path"])
    (frontend.data_dir / "outputs" / end["output_path"]).unlink()
    return video


def check_complete(frontend: Frontend, events: list[Event], seed: int, num_frames: int) -> None:
    name, end = events[-1]
    assert name == "complete"
    assert end["num_frames"] == sum(data["frames"] for _, data in events[:-1]) == num_frames
    assert np.array_equal(take(frontend, end), probe_video(num_frames, seed))


# -- When nothing runs --------------------------------------------------------------------------------------------


def test_a_cancel_before_a_generation_has_no_effect(frontend: Frontend) -> None:
    with assert_recovers(frontend):
        for seed in range(ROUNDS):
            assert frontend.cancel() == "idle"
            check_complete(frontend, frontend.generate(**PROBE, seed=seed), seed, 33)


def test_a_cancel_after_the_last_event_has_no_effect(frontend: Frontend) -> None:
    with assert_recovers(frontend):
        for seed in range(ROUNDS):
            events = []
            with frontend.stream(**NEXT, seed=seed) as stream:
                for event in stream:
                    events.append(event)
                    if event[0] == "complete":
                        assert frontend.cancel() == "idle"
            check_complete(frontend, events, seed, 9)


# -- Together with the request ------------------------------------------------------------------------------------


async def test_a_cancel_sent_with_the_request_is_idle_or_takes_effect(frontend: Frontend) -> None:
    """Sent 0 to 5 ms after the request, whose last chunk starts at least half a second later."""
    answers = set()
    with assert_recovers(frontend):
        async with httpx.AsyncClient(base_url=frontend.url, timeout=60) as client:
            for seed in range(ROUNDS):
                request = sleeping(3, 0.5) | {"seed": seed}
                (events, _), (answer, soon) = await asyncio.gather(
                    timed(generated(client, request)), timed(cancelled(client, 0.0005 * seed))
                )
                answers.add(answer)
                if answer == "idle":
                    await asyncio.to_thread(check_complete, frontend, events, seed, 57)
                elif soon < 0.4 or events[-1][0] == "cancelled":  # else the last chunk may have started
                    await asyncio.to_thread(check_end, frontend, events, seed, 5)
                else:
                    await asyncio.to_thread(check_complete, frontend, events, seed, 57)
    assert "cancelling" in answers


async def generated(client: httpx.AsyncClient, request: dict[str, Any]) -> list[Event]:
    answer = await client.post("/api/v1/generate", json=request)
    assert answer.status_code == 200, answer.text
    return [(event.name, event.data) for event in EventParser().parse(answer.text.split("\n"))]


async def cancelled(client: httpx.AsyncClient, delay_s: float) -> str:
    await asyncio.sleep(delay_s)
    return str((await client.post("/api/v1/generate/cancel")).json()["status"])


async def timed(work: Any) -> tuple[Any, float]:
    """The result, and how many seconds it took."""
    began = time.monotonic()
    return await work, time.monotonic() - began


# -- In a generation ----------------------------------------------------------------------------------------------


def test_a_cancel_in_a_chunk_keeps_that_chunk_and_the_slot_until_it_is_done(frontend: Frontend) -> None:
    with assert_recovers(frontend):
        for seed in range(LONG_ROUNDS):
            chunks = len(frontend.probe_entries())
            events = []
            with frontend.stream(**sleeping(1, 1), seed=seed) as stream:
                frontend.wait_for_chunk(chunks + 1)
                assert frontend.cancel() == "cancelling"
                refused = frontend.post(**NEXT)
                for event in stream:
                    events.append(event)
                    if event[0] == "cancelled":  # the slot is free at once
                        check_complete(frontend, frontend.generate(**NEXT, seed=seed), seed, 9)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "busy")
            assert [event[0] for event in events] == ["progress", "progress", "cancelled"]
            check_end(frontend, events, seed, 5)
            assert len(frontend.probe_entries()) == chunks + 3  # two of this one, and one of the next


def test_a_cancel_between_chunks(frontend: Frontend) -> None:
    with assert_recovers(frontend):
        for seed in range(ROUNDS):
            events = []
            with frontend.stream(**PROBE | {"num_frames": 3000}, seed=seed) as stream:
                for event in stream:
                    events.append(event)
                    if len(events) == 1 + seed:
                        assert frontend.cancel() == "cancelling"
            assert len(events) > 1 + seed
            check_end(frontend, events, seed, 251)


def test_a_cancel_in_the_last_chunk_completes_the_video(frontend: Frontend) -> None:
    with assert_recovers(frontend):
        for seed in range(LONG_ROUNDS):
            chunks = len(frontend.probe_entries())
            with frontend.stream(**sleeping(4, 3), seed=seed) as stream:
                frontend.wait_for_chunk(chunks + 4)
                assert frontend.cancel() == "cancelling"
                events = list(stream)
            assert [event[0] for event in events] == ["progress"] * 5 + ["complete"]
            assert events[-1][1]["num_chunks"] == 5
            check_complete(frontend, events, seed, 57)


def test_repeated_cancels_of_several_clients_end_it_once(frontend: Frontend) -> None:
    with assert_recovers(frontend), ThreadPoolExecutor(5) as pool:
        for seed in range(LONG_ROUNDS):
            chunks = len(frontend.probe_entries())
            together = threading.Barrier(5)

            def cancel(together: threading.Barrier = together) -> list[str]:
                together.wait(10)
                return [frontend.cancel(), frontend.cancel()]

            with frontend.stream(**sleeping(1, 1), seed=seed) as stream:
                frontend.wait_for_chunk(chunks + 1)
                asked = [pool.submit(cancel) for _ in range(5)]
                events = list(stream)
            answers = [answer.result() for answer in asked]
            assert [first for first, _ in answers] == ["cancelling"] * 5
            assert [event[0] for event in events] == ["progress", "progress", "cancelled"]
            check_end(frontend, events, seed, 5)
