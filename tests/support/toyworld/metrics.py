"""What one video shows of what it was led by: numbers of frames alone, which need neither a network nor a server.

`research.evaluation` has the videos made, and says how large each number should be.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tests.support.toyworld.detectors import Marks, detect, standing_out
from tests.support.toyworld.grammar import ATTRIBUTES, Scene
from tests.support.toyworld.videos import CHUNK_FRAMES, PALETTE, SIDE, SIZE, THICKNESS, Floats, Frames, coverage

_BLUR = 2.0
"""Pixels beside an edge that are not looked at where a colour is to be told: an autoencoder mixes both sides there."""
_HOLLOW_SIZE = {
    "circle": SIZE - 2 * THICKNESS,
    "square": SIZE - 2 * THICKNESS,
    "triangle": SIZE - (math.sqrt(5) + 1) * THICKNESS,
}
"""Height and width of what an outline encloses."""
_BELOW_CENTRE = {"circle": 0.0, "square": 0.0, "triangle": -SIZE / 6 + (math.sqrt(5) - 1) / 2 * THICKNESS}
"""Rows from an object's centre of mass to the middle of what its outline encloses."""


def psnr(made: Frames, true: Frames, where: npt.NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio, in dB, of all pixels together, or of those that `where` [F, H, W] names."""
    squares = (made.astype(np.float64) - true) ** 2
    mean = float((squares if where is None else squares[where]).mean())
    return 10 * math.log10(255**2 / mean) if mean else math.inf


def overlap(one: Marks, other: Marks) -> float:
    """Intersection over union of two sets of pixels in each frame [F, H, W], on average; 0 where both are empty."""
    both = (one & other).sum(axis=(1, 2))
    either = (one | other).sum(axis=(1, 2))
    return float((both / np.maximum(either, 1)).mean())


def place_overlap(frames: Frames, covered: Floats) -> float:
    """How far the object is where it should be: its overlap with what should be covered, [F, SIDE, SIDE] in 0..1."""
    return overlap(standing_out(frames), covered > 0.5)


def right_shares(chunks: Sequence[Frames], scene: Scene) -> dict[str, float]:
    """In which share of the chunks each attribute is seen to be the scene's."""
    seen = [detect(chunk) for chunk in chunks]
    return {name: float(np.mean([getattr(one, name) == getattr(scene, name) for one in seen])) for name in ATTRIBUTES}


def video_chunks(frames: Frames) -> list[Frames]:
    """The chunks of a video that is led by frames: 12 pixel frames each, from the first one on."""
    return [frames[start : start + CHUNK_FRAMES] for start in range(0, len(frames), CHUNK_FRAMES)]


# -- How far from one colour to another -------------------------------------------------------------------------------


def fill_share(frames: Frames, scene: Scene) -> float:
    """How full the object is: 1 where its inside has its colour, 0 where one sees the background through it.

    Each frame's object is looked for where it is, not where it should be. A frame without one makes the result NaN.
    """
    ground = np.median(frames.reshape(len(frames), -1, 3), axis=1)  # [F, 3]
    inside = _inside(standing_out(frames), scene.shape)
    shares = [
        _way(frame[where].astype(np.float64), start, np.array(PALETTE[scene.colour], np.float64)).mean()
        if where.any()
        else math.nan
        for frame, where, start in zip(frames, inside, ground, strict=True)
    ]
    return float(np.mean(shares))


def colour_way(frames: Frames, one: str, other: str) -> float:
    """How far the object's colour is on the way from one colour of the palette, 0, to another, 1.

    A video without objects gives NaN.
    """
    marked = standing_out(frames)
    if not marked.any():
        return math.nan
    start, end = (np.array(PALETTE[name], np.float64) for name in (one, other))
    return float(_way(frames[_cores(marked)].astype(np.float64), start, end).mean())


def _way(
    colours: npt.NDArray[np.float64], start: npt.NDArray[np.float64], end: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The part of the way from start to end, 0 to 1, on which each colour [N, 3] lies."""
    return np.clip((colours - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)


def _inside(marked: Marks, shape: str) -> Marks:
    """The pixels that an object's outline would enclose; none in a frame without one."""
    middles = np.array([_centre(one) for one in marked], np.float32)  # [F, 2]
    middles[:, 0] += _BELOW_CENTRE[shape]
    size = _HOLLOW_SIZE[shape] - 2 * _BLUR
    has_object = marked.any(axis=(1, 2), keepdims=True)
    return np.asarray((coverage(shape, middles, size) > 0.5) & has_object)


def _centre(marked: Marks) -> tuple[float, float]:
    """Row and column of the centre of mass in a frame whose sides meet; (0, 0) where nothing is marked."""
    places = np.nonzero(marked)
    if not len(places[0]):
        return 0.0, 0.0
    row, column = (_circular_mean(one + 0.5) for one in places)
    return row, column


def _circular_mean(places: npt.NDArray[np.float64]) -> float:
    turns = np.exp(2j * np.pi * places / SIDE).mean()
    return float(np.angle(turns)) / (2 * np.pi) * SIDE % SIDE


def _cores(marked: Marks) -> Marks:
    """The marked pixels without those at an edge, or all where nothing else would be left."""
    inner = marked.copy()
    for axis in (1, 2):
        for step in (-1, 1):
            inner &= np.roll(marked, step, axis)
    return inner if inner.any() else marked
