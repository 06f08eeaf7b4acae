"""The clips that a training draws: of none of the scenes that are held out for its scores."""

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from research.encoded import Kind, all_clips
from research.settings import read_settings
from tests.support.toyworld.grammar import is_held_out


@pytest.mark.parametrize("of", ["clips", "lora_clips"])
def test_no_clip_shows_what_is_held_out(of: str):
    clips = list(all_clips(getattr(read_settings(), of), seed=0))
    assert {clip.kind for clip in clips} == set(Kind)
    assert not any(is_held_out(scene) for clip in clips for scene in clip.scenes)
