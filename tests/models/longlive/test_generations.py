"""Whole generations of LongLive through HTTP and Triton."""

import re
import time

import numpy as np
import pytest

from tests.models.longlive.making import CHUNK, FIRST, floats, make, video
from tests.support import http
from tests.support.server import Frontend

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export


IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize("num_frames", [1, 9, 10, 21, 22, 47])
@pytest.mark.parametrize("mode", ["text", "video"])
def test_exactly_so_many_frames_come_back_and_are_those_of_a_longer_one(
    longlive: Frontend, whole: dict[str, np.ndarray], mode: str, num_frames: int
):
    source = {"input_video": video(60)} if mode == "video" else {}
    assert np.array_equal(make(longlive, num_frames=num_frames, **source), whole[mode][:num_frames])


@pytest.fixture(scope="module")
def whole(longlive: Frontend) -> dict[str, np.ndarray]:
    """60 frames in each mode."""
    return {
        "text": make(longlive, num_frames=60),
        "video": make(longlive, num_frames=60, input_video=video(60)),
    }


def test_the_same_request_gives_the_same_bytes_whatever_ran_between(longlive: Frontend):
    before = make(longlive)
    make(longlive, num_frames=CHUNK, seed=5, input_video=video(CHUNK, seed=2), lora_scales={"ink": 2.0})
    make(longlive, {0: {"vace_frames": floats(video(CHUNK, seed=3))}}, num_frames=30, width=64, prompt="blue square")
    assert np.array_equal(make(longlive), before)


def test_whatever_text_is_a_prompt(longlive: Frontend):
    digits, zeros = "9" * 99_000, "0" * 99_000
    prompts = (f"&#{digits};", f"&#x{digits};", f"&#{zeros}65", "\0\u202e\U0001f600&#xd800;", "&amp;" * 20_000)
    for prompt in prompts:
        assert make(longlive, num_frames=1, prompt=prompt).shape[0] == 1, prompt[:20]


def test_a_chunks_noise_does_not_depend_on_what_came_before(longlive: Frontend):
    """After a reset nothing else of the chunks before is left."""
    reset = {2: {"reset_cache": True}}
    one = make(longlive, reset, num_frames=FIRST + CHUNK + FIRST)
    other = make(longlive, {**reset, 0: {"seed": 9}, 1: {"seed": 8}}, num_frames=FIRST + CHUNK + FIRST)
    assert not np.array_equal(one[:FIRST], other[:FIRST])
    assert np.array_equal(one[FIRST + CHUNK :], other[FIRST + CHUNK :])


def test_output_frame_i_belongs_to_input_frame_i(longlive: Frontend):
    """Without noise the source comes back through the VAE: a frame that differs alone changes itself first."""
    source = video(36)
    flash = source.copy()
    flash[17] = 255
    plain, flashed = (make(longlive, input_video=one, num_frames=36, noise_scale=0) for one in (source, flash))
    changed = [index for index in range(36) if not np.array_equal(plain[index], flashed[index])]
    # A causal VAE: latent frame 5 (counted with the doubled frame) is pixel frames 16 to 19, and none before changes.
    assert changed[0] == 16
    assert 17 in changed


def test_progress_reports_the_stages_of_each_chunk(longlive: Frontend):
    make(longlive, num_frames=21)
    text = http.get(f"{longlive.url}/metrics").text
    counted = set(re.findall(r'filmstrip_stage_seconds_count\{model="tiny",stage="([^"]+)"\}', text))
    assert {"text", "encode", "denoise", "denoise_step", "cache", "decode"} <= counted


def test_a_client_that_leaves_stops_the_chunk_between_two_steps(longlive: Frontend):
    steps = list(range(1000, 0, -2))  # one chunk would take many seconds
    with longlive.stream(pipeline_id="tiny", prompt="a", num_frames=9, denoising_steps=steps):
        time.sleep(0.5)
    began = time.monotonic()
    longlive.wait_idle(20)
    assert make(longlive, num_frames=9).shape[0] == 9
    assert time.monotonic() - began < 5


def test_cancel_lets_the_chunk_finish(longlive: Frontend):
    with longlive.stream(pipeline_id="tiny", prompt="a", num_frames=600) as events:
        stream = iter(events)
        next(stream)
        assert longlive.cancel() == "cancelling"
        name, data = list(stream)[-1]
    assert name == "cancelled"
    assert longlive.download(data["output_path"]).shape[0] >= FIRST


@pytest.mark.parametrize(
    ("request_", "field", "named"),
    [
        ({"height": 128}, "height", "64x64, 96x64"),
        ({"lora_scales": {"ghibli": 1}}, "lora_scales", "ink, neon"),
        ({"width": 65}, "width", "multiple of 16"),
        ({"chunk_specs": [{"chunk": 0, "vace_ref_images": [IMAGE] * 5}]}, "chunk_specs[0].vace_ref_images", "4 images"),
    ],
)
def test_what_the_engines_were_not_exported_for_is_refused_before_the_stream(
    longlive: Frontend, request_: dict[str, object], field: str, named: str
):
    answer = longlive.post(pipeline_id="tiny", prompt="a", **request_)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field
    assert named in answer.json()["error"]["message"]


def test_the_pipeline_says_what_it_can_do(longlive: Frontend):
    pipelines = http.get(f"{longlive.url}/api/v1/pipelines").json()["pipelines"]
    tiny = next(pipeline for pipeline in pipelines if pipeline["id"] == "tiny")
    assert tiny["modes"] == ["text", "video"]
    assert tiny["sizes"] == [[64, 64], [64, 96]]
    assert tiny["features"]["vace"]
    assert tiny["features"]["loras"] == ["ink", "neon"]
    assert tiny["defaults"]["denoising_steps"]["video"] == [1000, 750, 500, 250]
    assert tiny["loaded"]
