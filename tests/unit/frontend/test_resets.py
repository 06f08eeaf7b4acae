from dataclasses import replace

import pytest

from filmstrip.contract import Mode, Prompt
from frontend.plan import CacheInputs, reset_reason

CAT = (Prompt("a cat"),)
DOG = (Prompt("a dog"),)
LATENT_FRAMES = 3

VIDEO = CacheInputs(
    mode=Mode.VIDEO,
    uses_vace=False,
    prompts=CAT,
    in_transition=False,
    denoising_steps=None,
    manage_cache=True,
    reset_cache=False,
)
TEXT = replace(VIDEO, mode=Mode.TEXT)
VACE = replace(TEXT, uses_vace=True)
STEPS = {"denoising_steps": (1000, 500)}


def reason(before: CacheInputs, latents_since_reset: int = 3, **changes: object) -> str | None:
    return reset_reason(before, replace(before, **changes), latents_since_reset, LATENT_FRAMES)


@pytest.mark.parametrize("chunk", [VIDEO, TEXT, VACE])
def test_a_first_chunk_starts_afresh(chunk):
    assert reset_reason(None, chunk, 0, LATENT_FRAMES) == "first chunk"


@pytest.mark.parametrize("chunk", [VIDEO, TEXT, VACE])
def test_a_chunk_that_changes_nothing_goes_on(chunk):
    assert reason(chunk) is None


@pytest.mark.parametrize(
    ("before", "changes", "expected"),
    [
        # Whatever manage_cache says.
        (TEXT, {"reset_cache": True}, "reset_cache"),
        (TEXT, {"reset_cache": True, "manage_cache": False}, "reset_cache"),
        (TEXT, {"mode": Mode.VIDEO}, "mode"),
        (VIDEO, {"mode": Mode.TEXT}, "mode"),
        (VIDEO, {"mode": Mode.TEXT, "manage_cache": False}, "mode"),
        # Denoising steps: in every mode, while the cache is managed.
        (TEXT, STEPS, "denoising_steps"),
        (VIDEO, STEPS, "denoising_steps"),
        (VIDEO, STEPS | {"manage_cache": False}, None),
        (replace(TEXT, denoising_steps=(1000, 500)), {"denoising_steps": None}, "denoising_steps"),
        # Prompts: text recaches instead.
        (TEXT, {"prompts": DOG}, None),
        (VIDEO, {"prompts": DOG}, "prompt"),
        (VACE, {"prompts": DOG}, "prompt"),
        (TEXT, {"prompts": DOG, "uses_vace": True}, "prompt"),
        (VIDEO, {"prompts": (Prompt("a cat", 50.0),)}, "prompt"),
        (VIDEO, {"prompts": DOG, "manage_cache": False}, None),
        (VIDEO, {"prompts": DOG, "in_transition": True}, None),
        (replace(VIDEO, prompts=DOG, in_transition=True), {"in_transition": False}, None),
        # Conditioning that comes or goes is no cause by itself.
        (TEXT, {"uses_vace": True}, None),
        (VACE, {"uses_vace": False}, None),
    ],
)
def test_each_cause_alone(before, changes, expected):
    assert reason(before, **changes) == expected


@pytest.mark.parametrize(
    ("latents_since_reset", "expected"), [(1020, None), (1021, "frame index limit"), (1022, "frame index limit")]
)
@pytest.mark.parametrize("managed", [True, False])
def test_the_frame_index_ends_three_before_1024(latents_since_reset, expected, managed):
    assert reason(replace(TEXT, manage_cache=managed), latents_since_reset) == expected


def test_manage_cache_that_comes_back_compares_with_the_chunk_before_only():
    off = replace(VIDEO, manage_cache=False, denoising_steps=(1000, 500))
    assert reason(off, manage_cache=True) is None
