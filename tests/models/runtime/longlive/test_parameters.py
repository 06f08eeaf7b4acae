"""Each parameter changes the chunks that it should, and no other."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import Interpolation, Prompt, Transition
from tests.models.runtime.longlive.pipeline import Tiny, again, chunk, video, video_chunk
from tests.models.runtime.longlive.test_vace import KEY_IMAGES, arrays

VIDEO = video(36)
RED, BLUE = Prompt("a red circle"), Prompt("a blue square")
CHUNKS = {
    "text": [chunk(index) for index in range(3)],
    "video": [video_chunk(index, VIDEO) for index in range(3)],
    "VACE": [chunk(index, arrays(VIDEO[:7] if index else VIDEO[:12])) for index in range(3)],
    "blend": [chunk(index, prompts=(RED, BLUE)) for index in range(3)],
}
NONE, LAST, LATER, ALL = (), (2,), (1, 2), (0, 1, 2)
TO_BLUE = {"transition": Transition((BLUE,), 0, 0, Interpolation.LINEAR)}
STEPS = (1000, 750, 500, 250)

# Which chunks, the chunk that is told otherwise and what it is told, the chunks that change.
CASES: list[tuple[str, int, dict[str, Any], tuple[int, ...]]] = [
    ("text", 0, {"seed": 43}, ALL),
    ("text", 1, {"seed": 43}, LATER),
    ("text", 2, {"seed": 42}, NONE),
    ("text", 1, {"prompts": (BLUE,)}, LATER),
    ("text", 1, {"prompts": (Prompt("a red circle", 7.0),)}, NONE),
    ("text", 1, {"prompts": (Prompt("  a red\ncircle"),)}, NONE),
    ("text", 1, {"prompts": (RED, Prompt("a blue square", 0.0))}, NONE),
    ("text", 1, {"prompt_interpolation_method": Interpolation.SLERP}, NONE),
    ("blend", 1, {"prompt_interpolation_method": Interpolation.SLERP}, LATER),
    ("text", 1, TO_BLUE, LATER),
    ("text", 1, {"denoising_steps": (1000, 500)}, LATER),
    ("text", 1, {"noise_scale": 0.1}, NONE),
    ("text", 1, {"noise_controller": True}, NONE),
    ("text", 1, {"kv_cache_attention_bias": 0.5}, NONE),  # so far there is only the sink
    ("text", 2, {"kv_cache_attention_bias": 0.5}, LAST),
    ("text", 2, {"kv_cache_attention_bias": 1.0}, NONE),
    ("text", 1, {"lora_scales": {"ink": 0.5}}, LATER),
    ("text", 1, {"lora_scales": {"oil": 0.5}}, LATER),
    ("text", 1, {"lora_scales": {"ink": 0.0, "oil": 0.0}}, NONE),
    ("text", 1, {"vace_context_scale": 0.5}, NONE),
    ("text", 1, {"vace_temporally_locked": False}, NONE),
    ("video", 0, {"seed": 43}, ALL),
    ("video", 1, {"prompts": (BLUE,)}, LATER),
    ("video", 1, {"noise_scale": 0.5}, LATER),
    ("video", 1, {"noise_controller": True}, LATER),
    ("video", 1, {"denoising_steps": STEPS}, NONE),  # the pipeline's own
    ("video", 1, {"denoising_steps": (1000, 300)}, LATER),
    ("VACE", 1, {"vace_context_scale": 0.5}, LATER),
    ("VACE", 1, {"vace_temporally_locked": False}, LATER),
    ("VACE", 0, {"vace_temporally_locked": False}, NONE),  # as long as the chunk: nothing to fit
]


@pytest.fixture(scope="module")
def baselines(tiny_with_loras: Tiny) -> dict[str, list[np.ndarray]]:
    return {name: tiny_with_loras.frames(chunks) for name, chunks in CHUNKS.items()}


@pytest.mark.parametrize(("name", "place", "told", "changed"), CASES)
def test_a_parameter_changes_what_it_should(
    tiny_with_loras: Tiny, baselines, name: str, place: int, told: dict[str, Any], changed: tuple[int, ...]
):
    chunks = [again(one, **told) if index == place else one for index, one in enumerate(CHUNKS[name])]
    ours = tiny_with_loras.frames(chunks)
    assert tuple(index for index in ALL if not np.array_equal(ours[index], baselines[name][index])) == changed


@pytest.mark.parametrize("key", KEY_IMAGES)
def test_a_key_image_changes_its_chunk_and_those_after(tiny_with_loras: Tiny, baselines, key: str):
    chunks = [chunk(0), chunk(1, {key: KEY_IMAGES[key]}), chunk(2)]
    for index, frames in enumerate(tiny_with_loras.frames(chunks)):
        assert np.array_equal(frames, baselines["text"][index]) == (index == 0)
