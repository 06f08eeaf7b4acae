"""What another implementation of this API gets wrong about generations, each test what ours does right.

Its mistakes about files and numbers are in `test_lessons_of_files.py`. Every one was seen on a running server.
"""

import asyncio
import threading
import time

import httpx
import numpy as np
import pytest

from tests.support.recovery import (
    PROBE,
    assert_recovers,
    assert_serves,
    eventually,
    is_generating,
    noise,
    open_sequences,
)
from tests.support.server import MODEL_NAMES, Frames, Frontend, frontend_on

SLEEPS = {"pipeline_id": "probe", "prompt": "!sleep 30", "num_frames": 9}

# -- 1. A client that leaves ----------------------------------------------------------------------------------


def test_a_client_that_leaves_gives_the_slot_back(server: Frontend) -> None:
    with assert_recovers(server):
        chunks = len(server.probe_entries())
        with server.stream(**SLEEPS):
            server.wait_for_chunk(chunks)
        server.wait_idle(5)
        assert server.cancel() == "idle"


# -- 2. A model that raises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["!raise", "!error", "!shape"])
def test_a_model_that_fails_ends_the_stream_with_an_error(server: Frontend, prompt: str) -> None:
    with assert_recovers(server):
        began = time.monotonic()
        name, data = server.generate(**PROBE, chunk_specs=[{"chunk": 1, "text": prompt}])[-1]
        assert (name, set(data)) == ("error", {"error", "code"})
        assert time.monotonic() - began < 10


# -- 3. Cancelling --------------------------------------------------------------------------------------------


def test_nothing_comes_after_cancelled_and_its_chunk_is_whole(server: Frontend) -> None:
    """A cancel within a long chunk keeps the chunk, counts it, and is not called a success."""
    with assert_recovers(server, outputs=1):
        chunks = len(server.probe_entries())
        with server.stream(**PROBE | {"prompt": "!sleep 2"}) as events:
            server.wait_for_chunk(chunks)
            assert server.cancel() == "cancelling"
            ends = list(events)
        assert [name for name, _ in ends] == ["progress", "cancelled"]
        assert ends[-1][1]["frames_completed"] == 9
        assert len(server.download(ends[-1][1]["output_path"])) == 9


def test_a_cancel_in_the_last_chunk_is_a_whole_video(server: Frontend) -> None:
    with assert_recovers(server, outputs=1):
        chunks = len(server.probe_entries())
        with server.stream(**SLEEPS | {"prompt": "!sleep 0.5"}) as events:
            server.wait_for_chunk(chunks)
            server.cancel()
            name, data = list(events)[-1]
        assert (name, data["num_frames"]) == ("complete", 9)


def test_a_cancel_that_comes_with_the_request_is_not_lost(server: Frontend) -> None:
    """Asked for over and over from before there is a generation: it ends after the chunk under way, if there is one."""
    with assert_recovers(server, outputs=5):
        for _ in range(5):
            ends: list[tuple[str, dict[str, int]]] = []
            wanted = PROBE | {"prompt": "!sleep 0.2", "num_frames": 60}
            generating = threading.Thread(target=lambda: ends.extend(server.generate(**wanted)))  # noqa: B023
            generating.start()
            eventually(lambda: server.cancel() == "cancelling")
            generating.join()
            if [name for name, _ in ends] == ["cancelled"]:  # before the first: nothing to keep
                assert ends[0][1] == {"chunk": 0, "total_chunks": 6, "frames_completed": 0, "seed": 42, "unused": []}
                server.generate(**PROBE)
            else:
                assert [name for name, _ in ends] == ["progress", "cancelled"]
                assert (ends[-1][1]["chunk"], ends[-1][1]["frames_completed"]) == (1, 9)


# -- 4. The slot and the model --------------------------------------------------------------------------------


def test_the_model_has_let_go_before_the_slot_is_free(server: Frontend) -> None:
    """Whoever leaves, cancels or fails: the next one never meets the one before in the model."""
    with assert_recovers(server, outputs=4):
        for prompt in ("!sleep 30", "!raise", "x"):
            chunks = len(server.probe_entries())
            with server.stream(**SLEEPS | {"prompt": prompt}) as events:
                server.wait_for_chunk(chunks)
                if prompt != "!sleep 30":
                    list(events)
            server.wait_idle()
            assert open_sequences(server, "probe") == 0
            assert server.generate(**SLEEPS | {"prompt": "x"})[-1][0] == "complete"
            told = [entry for entry in server.probe_entries()[chunks:] if entry["event"] == "chunk"]
            assert told[-1]["num_chunks"] == 1  # a sequence of its own


# -- 7. Two at once -------------------------------------------------------------------------------------------


async def test_of_two_posts_at_once_the_loser_gets_409(server: Frontend) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        for _ in range(20):
            posts = (client.post(f"{server.url}/api/v1/generate", json=PROBE | {"num_frames": 9}) for _ in range(2))
            answers = await asyncio.gather(*posts)
            assert sorted(answer.status_code for answer in answers) == [200, 409]
            loser = max(answers, key=lambda answer: answer.status_code)
            assert loser.json()["error"]["code"] == "busy"


# -- 8. Progress ----------------------------------------------------------------------------------------------


def test_progress_comes_with_its_chunk_and_tells_frames_and_speed(server: Frontend) -> None:
    chunks = len(server.probe_entries())
    with server.stream(**PROBE, chunk_specs=[{"chunk": 1, "text": "!sleep 30"}]) as events:
        name, data = next(iter(events))
        server.wait_for_chunk(chunks + 1)
        assert is_generating(server)  # chunk 1 is far from made
    assert name == "progress"
    assert (data["chunk"], data["total_chunks"], data["frames"]) == (1, 3, 9)
    assert data["fps"] == pytest.approx(9 / data["latency"], rel=0.01)


# -- 12. A pre-processor --------------------------------------------------------------------------------------


def test_with_a_pre_processor_the_pipeline_still_starts_afresh(server: Frontend, clip: Frames) -> None:
    before = len(server.probe_entries())
    path = server.upload(clip)
    wanted = {"pipeline_id": "probe", "prompt": "x", "num_frames": 30, "input_path": path, "pre_processor_id": "gray"}
    server.generate_frames(**wanted)
    told = server.probe_entries()[before:]
    assert [chunk["parameters"]["reset"] for chunk in told] == [True, False, False]
    assert [chunk["parameters"]["index"] for chunk in told] == [0, 1, 2]
    assert [chunk["num_chunks"] for chunk in told] == [1, 2, 3]  # one sequence, whose state begins with chunk 0
    assert all("input_video" in chunk["tensors"] for chunk in told)


# -- 17. Again, and the same again ----------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", MODEL_NAMES)
def test_the_same_request_gives_the_same_bytes_with_another_between(
    server: Frontend, clip: Frames, pipeline: str
) -> None:
    wanted = {"pipeline_id": pipeline, "prompt": "a", "num_frames": 30, "input_path": server.upload(clip)}
    first = server.generate_frames(**wanted)
    server.generate_frames(**wanted | {"input_path": server.upload(noise(24)), "num_frames": 24, "prompt": "b"})
    assert np.array_equal(server.generate_frames(**wanted), first)


def test_each_chunk_is_made_once_with_the_seed_that_was_asked_for(server: Frontend) -> None:
    """No retries, of a chunk that fails neither; and no drift."""
    for text, indices in (("x", [0, 1, 2]), ("!raise", [0, 1])):
        before = len(server.probe_entries())
        server.generate(**PROBE, seed=11, chunk_specs=[{"chunk": 1, "text": text, "seed": 12}])
        told = [chunk["parameters"] for chunk in server.probe_entries()[before:]]
        assert [chunk["index"] for chunk in told] == indices
        assert [chunk["seed"] for chunk in told] == [11, 12, 11][: len(indices)]


def test_a_server_that_failed_in_every_way_still_gives_the_same_bytes(
    server: Frontend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with frontend_on(server, tmp_path_factory.mktemp("again")) as other:
        for text in ("!raise", "!shape", "!error"):
            assert other.generate(**PROBE, chunk_specs=[{"chunk": 1, "text": text}])[-1][0] == "error"
        assert_serves(other)
        assert other.stored("partial", "work") == []
