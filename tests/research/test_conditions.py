"""Clips for the VACE branch, and the looks that are drawn for them."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

import numpy as np
from torch import Tensor

from research.augmentations import random_mask, without
from research.autoencoder import trained_autoencoder
from research.conditions import Condition, ConditionedClips, conditioned_clips
from tests.research.small import small
from tests.support.toyworld.videos import SIDE

CHANNELS = 4


@pytest.fixture(scope="module")
def clips(folder: Path) -> dict[Condition, ConditionedClips]:
    encoder, _ = trained_autoencoder(folder, small())
    rng = np.random.default_rng(0)
    return {condition: conditioned_clips(condition, 3, encoder, 24, rng) for condition in Condition}


def parts(clips: ConditionedClips) -> tuple[Tensor, Tensor, Tensor]:
    """Kept latents, made latents, mask."""
    return clips.context.split([CHANNELS, CHANNELS, 64], dim=1)


@pytest.mark.parametrize("condition", Condition)
def test_the_context_has_the_places_of_the_chunks(clips, condition: Condition):
    made = clips[condition]
    num_frames = {"mask": 13, "gray": 13, "scribble": 13, "reference": 12, "image": 3}[condition]
    assert made.latents.shape == (3, CHANNELS, num_frames, 8, 8)
    assert made.context.shape == (3, 2 * CHANNELS + 64, num_frames, 8, 8)
    assert made.objects.shape == (3, 1, num_frames, 8, 8)
    assert made.objects.amax((1, 2, 3, 4)).min() > 0.9


@pytest.mark.parametrize("condition", [Condition.GRAY, Condition.SCRIBBLE])
def test_control_frames_are_generated_completely(clips, condition: Condition):
    kept, made, mask = parts(clips[condition])
    assert (mask == 1).all()
    assert (kept[0] - kept[1]).abs().max() == 0  # of grey frames
    assert (made[0] - made[1]).abs().max() > 0


def test_what_a_mask_keeps_is_not_in_what_is_made(clips):
    kept, made, mask = parts(clips[Condition.MASK])
    assert set(mask.unique().tolist()) == {0, 1}
    assert (mask == mask[:, :, :1]).all()
    assert (kept[0] - made[0]).abs().max() > 0


def test_a_reference_stands_in_the_first_place_of_each_chunk(clips):
    context = clips[Condition.REFERENCE].context
    for first in range(0, 12, 3):
        torch.testing.assert_close(context[:, :, first], context[:, :, 0])
        assert (context[:, :, first + 1 : first + 3] == 0).all()
    assert (context[:, CHANNELS:] == 0).all()


def test_a_key_image_is_kept_and_the_rest_made(clips):
    _, _, mask = parts(clips[Condition.IMAGE])
    ends = {(float(one[:, 0].max()), float(one[:, -1].max())) for one in mask}
    assert ends <= {(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)}


def test_only_where_nothing_tells_the_start_it_is_unknown(clips):
    assert not any(made.has_no_start.any() for name, made in clips.items() if name is not Condition.MASK)


def test_a_mask_has_both_parts_and_grey_is_where_it_is_one():
    rng = np.random.default_rng(1)
    for _ in range(50):
        missing = random_mask(rng)
        assert missing.shape == (SIDE, SIDE)
        assert 0.1 < missing.mean() < 0.95
        frames = without(np.full((2, SIDE, SIDE, 3), 9, np.uint8), missing)
        assert (frames[:, missing == 1] == 128).all()
        assert (frames[:, missing == 0] == 9).all()
