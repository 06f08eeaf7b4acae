"""Each field of a request and of a ChunkSpec changes what it should, and nothing else."""

from typing import Any

import numpy as np
import pytest

from tests.models.longlive.making import CHUNK, FIRST, changed_chunks, floats, half_mask, make, picture, video
from tests.support.server import Frames, Frontend

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

ALL = [0, 1, 2, 3]
BLEND = [{"text": "a red circle", "weight": 50}, {"text": "blue square moving left", "weight": 50}]
OTHER = "blue square moving left"
TARGET = [{"text": OTHER, "weight": 100}]


@pytest.fixture(scope="module")
def text(longlive: Frontend) -> Frames:
    """Four chunks made from noise: 9 frames and three times 12."""
    return make(longlive)


@pytest.fixture(scope="module")
def source() -> Frames:
    return video(FIRST + 3 * CHUNK + 3)  # 48 frames: four chunks of 12


@pytest.fixture(scope="module")
def from_video(longlive: Frontend, source: Frames) -> Frames:
    """Four chunks made from a video."""
    return make(longlive, input_video=source, num_frames=48)


# -- Text mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "chunks", "changed"),
    [
        ({"seed": 2}, {}, ALL),
        ({"prompt": OTHER}, {}, ALL),
        ({"prompt": BLEND}, {}, ALL),
        ({"denoising_steps": [1000, 500]}, {}, ALL),
        ({"kv_cache_attention_bias": 0.2}, {}, [2, 3]),  # chunk 1 sees the sink alone
        ({"lora_scales": {"ink": 1.0}}, {}, ALL),
        ({"lora_scales": {"ink": 0.0, "neon": 0.0}}, {}, []),
        ({"noise_scale": 0.3}, {}, []),  # of video mode
        ({"noise_controller": True}, {}, []),
        ({"manage_cache": False}, {}, []),  # nothing that it manages happens
        ({"vace_context_scale": 0.5}, {}, []),  # nothing is conditioned
        ({}, {1: {"seed": 2}}, [1, 2, 3]),
        ({}, {3: {"seed": 2}}, [3]),
        ({}, {1: {"text": OTHER}}, [1, 2, 3]),  # sticky
        ({}, {1: {"text": "a red circle"}}, []),
        ({}, {2: {"prompts": BLEND}}, [2, 3]),
        ({}, {2: {"kv_cache_attention_bias": 0.2}}, [2, 3]),
        ({}, {2: {"lora_scales": {"neon": 0.7}}}, [2, 3]),
        ({}, {1: {"transition_target_prompts": TARGET}}, [2, 3]),  # its first step is 0
        ({}, {1: {"transition_target_prompts": TARGET, "transition_num_steps": 0}}, [1, 2, 3]),
        ({}, {2: {"noise_scale": 0.1}}, []),
    ],
)
def test_in_text_mode(
    longlive: Frontend, text: Frames, request_: dict[str, Any], chunks: dict[int, dict[str, Any]], changed: list[int]
):
    assert changed_chunks(text, make(longlive, chunks, **request_)) == changed


def test_two_prompts_are_blended_by_weight_and_method(longlive: Frontend, text: Frames):
    def blended(share: int, method: str) -> Frames:
        prompt = [{"text": "a red circle", "weight": share}, {"text": OTHER, "weight": 100 - share}]
        return make(longlive, prompt=prompt, prompt_interpolation_method=method)

    made = [blended(100, "linear"), blended(50, "linear"), blended(20, "linear"), blended(50, "slerp")]
    assert changed_chunks(text, made[0]) == []
    for index, one in enumerate(made):
        for other in made[index + 1 :]:
            assert changed_chunks(one, other) == ALL


def test_a_transition_ends_where_its_target_begins(longlive: Frontend):
    """Of two steps: the second is the target itself, and what follows stays with it."""
    move = {"transition_target_prompts": TARGET, "transition_num_steps": 2}
    moved = make(longlive, {1: move, 2: {"reset_cache": True}, 3: {"seed": 7}})
    set_ = make(longlive, {2: {"text": OTHER, "reset_cache": True}, 3: {"seed": 7}})
    assert np.array_equal(moved[FIRST + CHUNK :], set_[FIRST + CHUNK :])


def test_a_reset_begins_anew_with_a_short_chunk(longlive: Frontend, text: Frames):
    again = make(longlive, {2: {"reset_cache": True}}, num_frames=FIRST + CHUNK + FIRST)
    assert np.array_equal(again[: FIRST + CHUNK], text[: FIRST + CHUNK])
    # The same noise and nothing before it: what a generation with another seed for its first chunk begins with.
    assert not np.array_equal(again[FIRST + CHUNK :], text[FIRST + CHUNK : FIRST + CHUNK + FIRST])


# -- Video mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "chunks", "changed"),
    [
        ({"seed": 2}, {}, ALL),
        ({"noise_scale": 0.4}, {}, ALL),
        ({"noise_controller": True}, {}, ALL),
        ({"noise_controller": False}, {}, []),
        ({"denoising_steps": [400]}, {}, ALL),  # 700, by the noise scale, then those of the list below it
        ({"denoising_steps": [900, 500, 250]}, {}, []),
        ({"denoising_steps": [1000, 750, 500, 250]}, {}, []),  # the pipeline's own in video mode
        ({"kv_cache_attention_bias": 0.2}, {}, [1, 2, 3]),  # the first chunk has a latent frame beyond the sink
        ({}, {1: {"noise_scale": 0.4}}, [1, 2, 3]),
        ({}, {1: {"noise_controller": True}}, [1, 2, 3]),
        ({}, {2: {"text": OTHER}}, [2, 3]),
        ({}, {1: {"lora_scales": {"ink": 0.5}}}, [1, 2, 3]),
    ],
)
def test_in_video_mode(
    longlive: Frontend,
    source: Frames,
    from_video: Frames,
    request_: dict[str, Any],
    chunks: dict[int, dict[str, Any]],
    changed: list[int],
):
    made = make(longlive, chunks, input_video=source, num_frames=48, **request_)
    assert changed_chunks(from_video, made, first=CHUNK) == changed


def test_a_ramp_of_the_noise_scale_keeps_the_cache(longlive: Frontend, source: Frames):
    ramp = {index: {"noise_scale": 0.7 - 0.1 * index} for index in range(1, 4)}
    afresh = {index: {**spec, "reset_cache": True} for index, spec in ramp.items()}
    managed, unmanaged, reset = (
        make(longlive, chunks, input_video=source, num_frames=48, manage_cache=manage)
        for manage, chunks in ((True, ramp), (False, ramp), (True, afresh))
    )
    assert changed_chunks(managed, unmanaged, first=CHUNK) == []
    assert changed_chunks(managed, reset, first=CHUNK) == [1, 2, 3]


def test_a_managed_cache_is_reset_by_a_change_of_prompt_or_steps(longlive: Frontend, source: Frames):
    for change in ({"text": OTHER}, {"denoising_steps": [500]}):
        kept, managed, asked = (
            make(longlive, {2: {**change, **more}}, input_video=source, num_frames=36, manage_cache=manage)
            for manage, more in ((False, {}), (True, {}), (False, {"reset_cache": True}))
        )
        assert changed_chunks(kept, managed, first=CHUNK) == [2], change
        assert changed_chunks(asked, managed, first=CHUNK) == [], change


def test_a_chunk_may_have_a_video_of_its_own(longlive: Frontend, source: Frames, from_video: Frames):
    same = make(longlive, {1: {"input_video": source[12:24]}}, input_video=source, num_frames=48)
    other = make(longlive, {1: {"input_video": video(12, seed=5)}}, input_video=source, num_frames=48)
    assert changed_chunks(from_video, same, first=CHUNK) == []
    assert changed_chunks(from_video, other, first=CHUNK) == [1, 2, 3]


def test_a_chunk_of_video_amid_text_resets(longlive: Frontend, text: Frames):
    made = make(longlive, {1: {"input_video": video(12)}}, num_frames=FIRST + CHUNK + FIRST)
    assert np.array_equal(made[:FIRST], text[:FIRST])
    assert not np.array_equal(made[FIRST : FIRST + CHUNK], text[FIRST : FIRST + CHUNK])


# -- VACE -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditioned(longlive: Frontend, source: Frames) -> Frames:
    """Three chunks with VACE frames: the first follows the video rule."""
    return with_vace(longlive, source)


def with_vace(
    server: Frontend, frames: Frames, chunk: int = -1, request: dict[str, Any] | None = None, **more: Any
) -> Frames:
    """Three chunks, each with its part of a video as VACE frames; `more` is in the spec of one of them."""
    specs = {
        index: {"vace_frames": floats(frames[CHUNK * index : CHUNK * (index + 1)]), **(more if index == chunk else {})}
        for index in range(3)
    }
    return make(server, specs, num_frames=3 * CHUNK, **request or {})


@pytest.mark.parametrize(
    ("chunk", "more", "changed"),
    [
        (1, {"vace_context_scale": 0.3}, [1, 2]),
        (1, {"vace_context_scale": 1.0}, []),
        (1, {"vace_masks": np.ones((1, 1, CHUNK, 64, 64), "<f4")}, []),  # the default
        (1, {"vace_masks": half_mask(CHUNK)}, [1, 2]),
        (1, {"vace_temporally_locked": False}, []),  # they have the chunk's length
        (0, {"vace_masks": half_mask(CHUNK)}, [0, 1, 2]),
        (2, {"lora_scales": {"ink": 1.0}}, [2]),
    ],
)
def test_with_vace_frames(
    longlive: Frontend, source: Frames, conditioned: Frames, chunk: int, more: dict[str, Any], changed: list[int]
):
    assert changed_chunks(conditioned, with_vace(longlive, source, chunk, **more), first=CHUNK) == changed


def test_vace_frames_are_seen_and_a_scale_of_zero_hides_them(longlive: Frontend, source: Frames, conditioned: Frames):
    other = video(3 * CHUNK, seed=9)
    assert changed_chunks(conditioned, with_vace(longlive, other), first=CHUNK) == [0, 1, 2]
    hidden = {"vace_context_scale": 0.0}
    assert np.array_equal(with_vace(longlive, source, request=hidden), with_vace(longlive, other, request=hidden))


def test_arrays_of_another_length_are_padded_or_resampled(longlive: Frontend, source: Frames):
    short, padded = floats(source[:6]), floats(source[[0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5]])
    spread = floats(source[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]])

    def one(frames: np.ndarray, **more: Any) -> Frames:
        return make(longlive, {0: {"vace_frames": frames, **more}}, num_frames=CHUNK)

    assert np.array_equal(one(short), one(padded))
    assert np.array_equal(one(short, vace_temporally_locked=False), one(spread))
    assert not np.array_equal(one(short), one(spread))


def test_one_channel_stands_for_three(longlive: Frontend, source: Frames):
    grey = floats(source[:CHUNK])[:, :1]
    one, three = (
        make(longlive, {0: {"vace_frames": frames}}, num_frames=CHUNK) for frames in (grey, grey.repeat(3, 1))
    )
    assert np.array_equal(one, three)


def test_the_input_video_as_vace_frames(longlive: Frontend, source: Frames, conditioned: Frames):
    made = make(longlive, input_video=source[:36], num_frames=36, vace_use_input_video=True)
    assert np.array_equal(made, conditioned)
    ordinary = make(longlive, input_video=source[:36], num_frames=36, vace_use_input_video=False)
    assert changed_chunks(made, ordinary, first=CHUNK) == [0, 1, 2]


@pytest.mark.parametrize("field", ["first_frame_image", "last_frame_image", "vace_ref_images"])
def test_images_affect_the_chunk_that_sets_them(longlive: Frontend, text: Frames, field: str):
    def with_image(chunk: int, seed: int) -> Frames:
        image = picture(longlive, seed)
        return make(longlive, {chunk: {field: [image] if field == "vace_ref_images" else image}})

    assert changed_chunks(text, with_image(0, 3)) == ALL
    assert changed_chunks(text, with_image(2, 3)) == [2, 3]
    assert changed_chunks(with_image(0, 3), with_image(0, 4)) == ALL


def test_several_references_and_frames_are_all_seen(longlive: Frontend, source: Frames):
    images = [picture(longlive, seed) for seed in (3, 4, 5)]

    def one(*references: str) -> Frames:
        spec = {"vace_frames": floats(source[:CHUNK]), **({"vace_ref_images": list(references)} if references else {})}
        return make(longlive, {0: spec}, num_frames=CHUNK)

    made = [one(), one(images[0]), one(images[0], images[1]), one(*images), one(images[1], images[0])]
    for index, first in enumerate(made):
        for second in made[index + 1 :]:
            assert not np.array_equal(first, second)


# -- Size -----------------------------------------------------------------------------------------------------------


def test_another_size_that_was_exported(longlive: Frontend, text: Frames):
    assert make(longlive, width=96, num_frames=FIRST).shape == (FIRST, 64, 96, 3)
    assert text.shape == (45, 64, 64, 3)
