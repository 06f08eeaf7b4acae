"""The generator's own history: what is made anew, and what stays because no caption tells it."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.runtime.transformer import FrameWindow
from research.autoencoder import scaled
from research.encoded import Kind, read_clips
from research.generator import CLIPS_FOLDER, new_generator
from research.self_context import OwnClips
from tests.research.small import small

STEPS = [(1000.0, 1.0), (625.0, 0.625)]


def test_all_is_made_anew_but_a_start_that_no_caption_tells(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("research.self_context._CLIPS_A_ROLLOUT", 2)
    settings = scaled(small(), folder)
    config = settings.checkpoint
    window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
    own = OwnClips(read_clips(folder / CLIPS_FOLDER), tmp_path / "own.npy", new_generator(settings, 0), window, STEPS)
    random = torch.Generator().manual_seed(0)
    true, kinds = own.clips.latents, own.clips.kinds
    for _ in range(60):  # each takes clips of one kind
        own.renew(random)
        anew = (own.latents[:, :, 3:] != true[:, :, 3:]).any(axis=(1, 2, 3, 4))
        if set(kinds[anew]) == set(Kind):
            break
    assert set(kinds[anew]) == set(Kind)
    has_new_start = (own.latents[:, :, :3] != true[:, :, :3]).any(axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(has_new_start[anew], np.isin(kinds[anew], (Kind.PLAIN, Kind.SWITCHED)))
