"""What the frames of a generation must be, worked out anew from what was sent."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.soak.judge import Frames

CHUNK = 12
PROBE_SIZE = (64, 96)


def looped(video: Frames, num_frames: int) -> Frames:
    """The input frames that the output frames [F, H, W, 3] come from, for frame processors in video mode."""
    return np.asarray(video[np.arange(num_frames) % len(video)], np.uint8)


def with_own_videos(whole: Frames | None, own: Mapping[int, Frames], num_frames: int) -> Frames:
    """The looped input, with the videos that chunks have of their own in its place."""
    size = (whole if whole is not None else next(iter(own.values()))).shape[1:]
    frames = np.zeros((num_frames, *size), np.uint8) if whole is None else looped(whole, num_frames).copy()
    for index, video in own.items():
        first = index * CHUNK
        count = min(CHUNK, num_frames - first)
        frames[first : first + count] = video[np.minimum(np.arange(count), len(video) - 1)]
    return frames


def gray(frames: Frames) -> Frames:
    """BT.601 luma, rounded: what the model of that name makes."""
    luma = (frames.astype(np.uint32) @ np.array([299, 587, 114], np.uint32) + 500) // 1000
    return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=-1)


def probe_pattern(seeds: Sequence[int], counts: Sequence[int]) -> Frames:
    """What the probe model makes in text mode.

    Args:
        seeds: of each chunk.
        counts: frames that each chunk added to the output, as its progress event told.
    """
    made = [_probe_chunk(index, seeds[index], count) for index, count in enumerate(counts)]
    return np.concatenate(made) if made else np.zeros((0, *PROBE_SIZE, 3), np.uint8)


def _probe_chunk(index: int, seed: int, count: int) -> Frames:
    height, width = PROBE_SIZE
    frame, y, x, channel = np.ogrid[:count, :height, :width, :3]
    return np.asarray((seed + 31 * index + 7 * frame + y + x + 85 * channel) % 256, np.uint8)
