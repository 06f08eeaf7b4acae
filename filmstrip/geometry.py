"""The arithmetic of frames: how chunks tile a video, which input frames a chunk covers."""

import math
from collections.abc import Iterator
from typing import NamedTuple

MAX_FRAMES = 10_000
"""Most pixel frames of one generation."""
MIN_SIDE = 64
MAX_REQUEST_SIDE = 2048
"""Least and most height and width that a request may ask for, in pixels."""
MAX_IMAGE_SIDE = 16_384
"""Longest side of an image of a request."""
MAX_DECODED_SIDE = 8192
"""Longest side of a frame of an uploaded video file, and of what it is scaled to."""
DEFAULT_FPS = 16
"""Frames per second of a video that nothing else gives a rate."""
MAX_FPS_DENOMINATOR = 100_000
"""Of a frame rate in a file; containers cannot hold all fractions."""


class FrameRun(NamedTuple):
    """`length` frames of a source, from `first` on."""

    first: int
    length: int


def _runs(indices: Iterator[int]) -> list[FrameRun]:
    runs: list[FrameRun] = []
    for index in indices:
        if runs and index == sum(runs[-1]):
            runs[-1] = FrameRun(runs[-1].first, runs[-1].length + 1)
        else:
            runs.append(FrameRun(index, 1))
    return runs


def input_runs(first_frame: int, num_frames: int, num_input: int, num_output: int) -> list[FrameRun]:
    """Which frames of the whole input a chunk covers, as runs to be read one after the other.

    A shorter input loops up to the end of the generation; what a last chunk lacks beyond that, or beyond the
    end of a longer input, repeats the last frame in use.

    Args:
        first_frame: the chunk's first frame, counted from the start of the generation.
        num_frames: frames in the chunk.
        num_input: frames of the input.
        num_output: frames of the generation.
    """
    loops = num_input < num_output
    last = num_output - 1 if loops else num_input - 1
    return _runs(min(index, last) % num_input for index in range(first_frame, first_frame + num_frames))


def fit_runs(num_frames: int, num_given: int) -> list[FrameRun]:
    """The first `num_frames` frames of an array of `num_given`; a shorter one repeats its last frame."""
    return _runs(min(index, num_given - 1) for index in range(num_frames))


def nearest_multiples(value: int, granularity: int, low: int, high: int) -> tuple[int, ...]:
    """The multiples of `granularity` next to `value` within low..high, the lower one first."""
    below = value // granularity * granularity
    smallest = math.ceil(low / granularity) * granularity
    largest = high // granularity * granularity
    return tuple(sorted({min(max(below, smallest), largest), min(max(below + granularity, smallest), largest)}))
