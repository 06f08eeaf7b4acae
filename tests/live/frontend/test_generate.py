"""POST /generate against the real server and Triton: what comes back, in which order, and how it ends."""

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.support.recovery import PROBE
from tests.support.server import Frames, Frontend


@pytest.fixture(autouse=True)
def nothing_left(server: Frontend) -> Iterator[None]:
    """After each test the slot is free and no incomplete files are left."""
    yield
    server.wait_idle()
    assert server.stored("partial", "work") == []


@pytest.fixture(scope="module")
def clip_path(server: Frontend, clip: Frames) -> str:
    return server.upload(clip)


def test_passthrough_gives_the_input_back_to_the_byte(server: Frontend, clip: Frames, clip_path: str) -> None:
    events = server.generate(pipeline_id="passthrough", prompt="", num_frames=30, input_path=clip_path)
    assert [name for name, _ in events] == ["progress"] * 3 + ["complete"]
    for index, (_, progress) in enumerate(events[:-1]):
        assert list(progress) == ["chunk", "total_chunks", "frames", "latency", "fps"]
        assert progress["chunk"] == index + 1
        assert progress["total_chunks"] == 3
        assert progress["frames"] == [12, 12, 6][index]
        assert progress["fps"] == pytest.approx(progress["frames"] / progress["latency"], rel=1e-2)
    complete = events[-1][1]
    assert {key: complete[key] for key in complete if key != "output_path"} == {
        "video_shape": [30, 160, 288, 3],
        "num_frames": 30,
        "num_chunks": 3,
        "chunk_size": 12,
        "seed": 42,
        "unused": [],
    }
    assert np.array_equal(server.download(complete["output_path"]), clip)


def test_every_byte_value_survives(server: Frontend) -> None:
    video = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    made = server.generate_frames(pipeline_id="passthrough", prompt="", num_frames=1, input_path=server.upload(video))
    assert np.array_equal(made, video)


@pytest.mark.parametrize("num_frames", [1, 4, 8, 9, 10, 12, 13, 21, 33, 48])
def test_num_frames_is_exact_in_text_mode(server: Frontend, num_frames: int) -> None:
    events = server.generate(pipeline_id="probe", prompt="x", num_frames=num_frames)
    frames = [data["frames"] for name, data in events if name == "progress"]
    assert sum(frames) == num_frames
    assert frames[0] == min(9, num_frames)
    assert events[-1][1]["num_frames"] == num_frames
    assert server.download(events[-1][1]["output_path"]).shape == (num_frames, 64, 96, 3)


@pytest.mark.parametrize("num_frames", [1, 11, 12, 13, 30, 40, 75])
def test_num_frames_is_exact_in_video_mode_and_a_short_input_loops(
    server: Frontend, clip: Frames, clip_path: str, num_frames: int
) -> None:
    made = server.generate_frames(pipeline_id="passthrough", prompt="", num_frames=num_frames, input_path=clip_path)
    assert np.array_equal(made, clip[np.arange(num_frames) % len(clip)])


def test_the_same_model_stands_three_times_in_a_chain(server: Frontend, clip: Frames, clip_path: str) -> None:
    chain = {"pre_processor_id": "passthrough", "post_processor_id": "passthrough"}
    made = server.generate_frames(pipeline_id="passthrough", prompt="", num_frames=30, input_path=clip_path, **chain)
    assert np.array_equal(made, clip)


def test_a_chain_of_three_models_is_each_after_the_other(server: Frontend, clip_path: str) -> None:
    request = {"prompt": "", "num_frames": 30}
    chained = server.generate_frames(
        pipeline_id="scribble",
        pre_processor_id="gray",
        post_processor_id="optical-flow",
        input_path=clip_path,
        **request,
    )
    path = clip_path
    for pipeline in ("gray", "scribble", "optical-flow"):
        made = server.generate_frames(pipeline_id=pipeline, input_path=path, **request)
        path = server.upload(made)
    assert np.array_equal(chained, made)


def test_a_preprocessor_feeds_a_generator_and_a_postprocessor_takes_its_frames(
    server: Frontend, clip_path: str
) -> None:
    size = {"height": 64, "width": 96}
    request = {"prompt": "x", "num_frames": 20, "input_path": clip_path}
    both = server.generate_frames(pipeline_id="probe", pre_processor_id="gray", post_processor_id="scribble", **request)
    apart = server.generate_frames(pipeline_id="scribble", pre_processor_id="gray", **request, **size)
    assert np.array_equal(both, apart)
    text = server.generate_frames(pipeline_id="probe", prompt="x", num_frames=20, post_processor_id="gray")
    assert text.shape == (20, 64, 96, 3)
    assert np.array_equal(text[..., 0], text[..., 2])


def test_height_and_width_resize(server: Frontend, clip_path: str) -> None:
    made = server.generate_frames(
        pipeline_id="passthrough", prompt="", num_frames=12, input_path=clip_path, height=80, width=144
    )
    assert made.shape == (12, 80, 144, 3)
    half = server.generate_frames(pipeline_id="passthrough", prompt="", num_frames=12, input_path=clip_path, height=80)
    assert half.shape == (12, 80, 288, 3)


def test_the_stream_has_its_headers(server: Frontend) -> None:
    with server.stream(**PROBE) as events:
        headers = events.response.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"
        list(events)


def test_progress_comes_with_its_chunk_not_one_later(server: Frontend) -> None:
    specs = [{"chunk": 1, "text": "!sleep 3"}, {"chunk": 2, "text": "x"}]
    came = []
    with server.stream(**PROBE, chunk_specs=specs) as events:
        for name, _ in events:
            came.append((name, time.monotonic()))
    assert [name for name, _ in came] == ["progress", "progress", "progress", "complete"]
    assert came[1][1] - came[0][1] > 1.5  # the first came before the second chunk, which sleeps
    assert came[2][1] - came[1][1] < 1.5


def test_silences_are_filled_with_comments(server: Frontend, start_frontend) -> None:  # type: ignore[no-untyped-def]
    frontend = start_frontend("--triton-url", server.triton_url, keep_alive_s=0.1)
    frontend.wait_healthy()
    with frontend.stream(pipeline_id="probe", prompt="!sleep 0.7", num_frames=1) as events:
        assert [name for name, _ in events] == ["progress", "complete"]
    assert events.comments
    assert set(events.comments) == {": keep-alive"}


# -- Ends -----------------------------------------------------------------------------------------------------


def test_cancel_keeps_the_chunk_under_way_and_what_was_made(server: Frontend, clip: Frames, clip_path: str) -> None:
    specs = [{"chunk": 1, "text": "!sleep 0.5"}]
    names = []
    with server.stream(
        pipeline_id="probe", prompt="x", num_frames=60, input_path=clip_path, chunk_specs=specs
    ) as events:
        for name, data in events:
            names.append(name)
            if name == "progress" and data["chunk"] == 1:
                time.sleep(0.2)
                assert server.cancel() == "cancelling"
    assert names == ["progress", "progress", "cancelled"]
    assert data == {
        "chunk": 2,
        "total_chunks": 5,
        "frames_completed": 24,
        "output_path": data["output_path"],
        "video_shape": [24, 64, 96, 3],
        "seed": 42,
        "unused": [],
    }
    assert server.download(data["output_path"]).shape == (24, 64, 96, 3)


def test_a_cancel_in_the_last_chunk_completes(server: Frontend) -> None:
    with server.stream(pipeline_id="probe", prompt="!sleep 0.4", num_frames=9) as events:
        time.sleep(0.1)
        server.cancel()
        assert [name for name, _ in events] == ["progress", "complete"]


def test_a_cancel_before_the_first_chunk_leaves_no_output(server: Frontend, clip_path: str) -> None:
    """The pre-processor's chunk is slow, so that the cancel comes before chunk 0 of the pipeline begins."""
    before = server.stored("outputs")
    for _ in range(5):
        events: list[tuple[str, dict[str, object]]] = []
        generating = threading.Thread(target=lambda: events.extend(server.generate(**PROBE)))  # noqa: B023
        generating.start()
        while server.cancel() == "idle":
            if events:
                break
        generating.join()
        assert events[-1][0] in ("cancelled", "complete")
        if events[-1][0] == "cancelled" and events[-1][1]["frames_completed"] == 0:
            assert set(events[-1][1]) == {"chunk", "total_chunks", "frames_completed", "seed", "unused"}
            assert server.stored("outputs") == before
        before = server.stored("outputs")


def test_cancel_without_a_generation_is_idle_and_touches_no_later_one(server: Frontend) -> None:
    assert server.cancel() == "idle"
    assert server.generate(**PROBE)[-1][0] == "complete"


def test_who_reads_the_last_event_can_post_again_at_once(server: Frontend) -> None:
    for _ in range(5):
        with server.stream(pipeline_id="probe", prompt="x", num_frames=9) as events:
            for name, _ in events:
                if name == "complete":
                    with server.stream(pipeline_id="probe", prompt="x", num_frames=9) as again:
                        assert [name for name, _ in again] == ["progress", "complete"]


def test_a_second_request_is_busy(server: Frontend) -> None:
    with server.stream(pipeline_id="probe", prompt="!sleep 0.5", num_frames=9) as events:
        refused = server.post(**PROBE)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "busy"
        assert [name for name, _ in events] == ["progress", "complete"]


async def test_of_requests_that_come_together_one_wins(server: Frontend) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        for _ in range(3):
            # It takes longer than the others may need to come, on a machine that does much else.
            asked = PROBE | {"prompt": "!sleep 1", "num_frames": 9}
            posts = (client.post(f"{server.url}/api/v1/generate", json=asked) for _ in range(4))
            statuses = sorted(answer.status_code for answer in await asyncio.gather(*posts))
            assert statuses == [200, 409, 409, 409]


def test_a_client_that_leaves_ends_its_generation(server: Frontend) -> None:
    before, chunks = server.stored("outputs"), len(server.probe_entries())
    with server.stream(pipeline_id="probe", prompt="!sleep 30", num_frames=9):
        server.wait_for_chunk(chunks)
    server.wait_idle()  # long before the model has slept
    assert server.stored("outputs") == before
    assert server.probe_entries()[-1]["event"] == "cancelled"  # the model stopped in the chunk
    assert server.generate(**PROBE)[-1][0] == "complete"


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("!raise", "model_error"), ("!error", "model_error"), ("!shape", "bad_model_output")],
)
def test_a_model_that_fails_gives_an_error_event(server: Frontend, prompt: str, code: str) -> None:
    before = server.stored("outputs")
    events = server.generate(**PROBE, chunk_specs=[{"chunk": 1, "text": prompt}])
    assert [name for name, _ in events] == ["progress", "error"]
    assert events[-1][1]["code"] == code
    assert "/" not in events[-1][1]["error"]
    assert server.stored("outputs") == before
    assert server.generate(**PROBE)[-1][0] == "complete"


def test_the_same_request_gives_the_same_bytes_with_another_between(server: Frontend, clip_path: str) -> None:
    request = {"pipeline_id": "optical-flow", "prompt": "", "num_frames": 30, "input_path": clip_path}
    first = server.generate_frames(**request)
    server.generate_frames(**{**request, "num_frames": 12})
    assert np.array_equal(server.generate_frames(**request), first)


def test_inputs_outlive_their_generations(server: Frontend, clip: Frames) -> None:
    path = server.upload(clip[:12])
    server.generate(pipeline_id="probe", prompt="!raise", num_frames=12, input_path=path)
    for _ in range(2):
        made = server.generate_frames(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
        assert np.array_equal(made, clip[:12])
