"""The frames of the probe model in text mode, computed independently of the model."""

import numpy as np

from tests.support.server import Frames

FIRST_CHUNK, CHUNK = 9, 12


def probe_video(num_frames: int, seed: int = 42, height: int = 64, width: int = 96) -> Frames:
    """The expected frames, [F, H, W, 3]."""
    number = np.arange(num_frames)
    chunk = np.where(number < FIRST_CHUNK, 0, 1 + (number - FIRST_CHUNK) // CHUNK)
    within = np.where(chunk == 0, number, (number - FIRST_CHUNK) % CHUNK)
    of_frame = seed + 31 * chunk + 7 * within
    of_place = np.arange(height)[:, None, None] + np.arange(width)[:, None] + 85 * np.arange(3)
    video: Frames = ((of_frame[:, None, None, None] + of_place) % 256).astype(np.uint8)
    return video
