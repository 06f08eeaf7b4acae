from dataclasses import replace

import pytest

from filmstrip.contract import Mode, Prompt
from frontend.plan import ResetInputs, needs_reset

CAT = (Prompt("a cat"),)
DOG = (Prompt("a dog"),)
LATENT_FRAMES = 3

VIDEO = ResetInputs(
    mode=Mode.VIDEO,
    has_vace_arrays=False,
    prompts=CAT,
    in_transition=False,
    denoising_steps=None,
    manage_cache=True,
    reset_cache=False,
)
TEXT = replace(VIDEO, mode=Mode.TEXT)
VACE = replace(TEXT, has_vace_arrays=True)
STEPS = {"denoising_steps": (1000, 500)}


def resets(before: ResetInputs, latents_since_reset: int = 3, **changes: object) -> bool:
    return needs_reset(before, replace(before, **changes), latents_since_reset, LATENT_FRAMES)


@pytest.mark.parametrize("chunk", [VIDEO, TEXT, VACE])
def test_a_first_chunk_starts_afresh(chunk):
    assert needs_reset(None, chunk, 0, LATENT_FRAMES)


@pytest.mark.parametrize("chunk", [VIDEO, TEXT, VACE])
def test_a_chunk_that_changes_nothing_goes_on(chunk):
    assert not resets(chunk)


@pytest.mark.parametrize(
    ("before", "changes", "expected"),
    [
        # Whatever manage_cache says.
        (TEXT, {"reset_cache": True}, True),
        (TEXT, {"reset_cache": True, "manage_cache": False}, True),
        (TEXT, {"mode": Mode.VIDEO}, True),
        (VIDEO, {"mode": Mode.TEXT}, True),
        (VIDEO, {"mode": Mode.TEXT, "manage_cache": False}, True),
        # Denoising steps: in every mode, while the cache is managed.
        (TEXT, STEPS, True),
        (VIDEO, STEPS, True),
        (VIDEO, STEPS | {"manage_cache": False}, False),
        (replace(TEXT, denoising_steps=(1000, 500)), {"denoising_steps": None}, True),
        # Prompts: text recaches instead.
        (TEXT, {"prompts": DOG}, False),
        (VIDEO, {"prompts": DOG}, True),
        (VACE, {"prompts": DOG}, True),
        (TEXT, {"prompts": DOG, "has_vace_arrays": True}, True),
        (VIDEO, {"prompts": (Prompt("a cat", 50.0),)}, True),
        (VIDEO, {"prompts": DOG, "manage_cache": False}, False),
        (VIDEO, {"prompts": DOG, "in_transition": True}, False),
        (replace(VIDEO, prompts=DOG, in_transition=True), {"in_transition": False}, False),
        # Conditioning that comes or goes is no cause by itself.
        (TEXT, {"has_vace_arrays": True}, False),
        (VACE, {"has_vace_arrays": False}, False),
    ],
)
def test_each_cause_of_a_reset(before, changes, expected):
    assert resets(before, **changes) is expected


@pytest.mark.parametrize(("latents_since_reset", "expected"), [(1020, False), (1021, True), (1022, True)])
@pytest.mark.parametrize("managed", [True, False])
def test_the_frame_index_ends_three_before_1024(latents_since_reset, expected, managed):
    assert resets(replace(TEXT, manage_cache=managed), latents_since_reset) is expected


def test_manage_cache_that_comes_back_compares_with_the_chunk_before_only():
    off = replace(VIDEO, manage_cache=False, denoising_steps=(1000, 500))
    assert not resets(off, manage_cache=True)
