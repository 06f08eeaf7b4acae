"""Says what a chunk shows, by plain geometry and colour distance: no network, nothing learnt.

Each frame is looked at by itself, and the chunk shows what more than half of its frames show. The motion is that of the
object's middle over all of them. An attribute that can't be told is None, which is never right.

Source:
    Colours are compared in CIELAB by Euclidean distance (CIE 1976), of which about 2.3 is just noticeable.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from tests.support.toyworld.grammar import SHAPES
from tests.support.toyworld.videos import PALETTE, SIDE, Floats, Frames, coverage

Marks: TypeAlias = npt.NDArray[np.bool_]
"""Which pixels, [H, W] or [F, H, W]."""

_MAX_COLOUR_DISTANCE = 30.0
"""From a colour of the palette to what still counts as it; blue and purple, the nearest two, are 39 apart."""
_MIN_GROUND_SHARE = 0.6
"""Of a frame's pixels must be about as its background; an object leaves 86 % or more."""
_MIN_CONTRAST = 15.0
"""Between object and background; less is an object that has faded."""
_MAX_FADING = 0.45
"""Share of the way from its colour to the background that an object may have gone."""
_CONTRAST_PERCENTILE = 96.0
"""Of the pixels' distances from the background: within the smallest object, a triangle, which has 7 % of a frame."""
_MIN_AREA, _MAX_AREA = 120, 1100
"""Pixels of an object: the triangle has 288 and the square 576."""
_MAX_OTHERS = 0.25
"""Area of all that is no background beside the object, in shares of the object's."""
_MIN_OVERLAP = 0.8
"""Of an object with the drawing of its shape: intersection over union. Of a square with a circle it is 0.83."""
_MIN_SPEED = 0.2
"""Pixels a frame; slower is no motion."""
_MIN_SEEN = 2 / 3
"""Of a chunk's frames must show one object for its motion to be told."""
_MAX_JITTER = 1.5
"""Pixels, root mean square, between the object's middle and a straight and even course."""

_AREA_OF_BOX = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}
_MIDDLE = SIDE // 2


@dataclass(frozen=True)
class Seen:
    """What a chunk shows, in the words of captions; None for what can't be told."""

    background: str | None
    colour: str | None
    shape: str | None
    motion: str | None


@dataclass(frozen=True)
class _Look:
    """What one frame shows; `middle` is the object's row and column, None where there isn't exactly one object."""

    background: str | None
    colour: str | None = None
    shape: str | None = None
    middle: tuple[float, float] | None = None


def detect(frames: Frames) -> Seen:
    """What a chunk shows.

    Args:
        frames: [F, SIDE, SIDE, 3], with the chunk's pixel frames alone.
    """
    looks = [_look(frame) for frame in _lab(frames)]
    return Seen(
        _majority(look.background for look in looks),
        _majority(look.colour for look in looks),
        _majority(look.shape for look in looks),
        _motion([look.middle for look in looks]),
    )


def standing_out(frames: Frames) -> Marks:
    """Which pixels are an object's, whatever it is: those unlike their frame's background, [F, H, W].

    A frame without contrast has none.
    """
    found = [_marked(frame, np.median(frame.reshape(-1, 3), axis=0)) for frame in _lab(frames)]
    return np.array([marked & (contrast >= _MIN_CONTRAST) for marked, contrast in found])


def _lab(frames: Frames) -> Floats:
    """[F, H, W, 3] in CIELAB: lightness 0..100, the two others about -100..100."""
    tall = frames.reshape(-1, frames.shape[2], 3).astype(np.float32) / 255
    return np.asarray(cv2.cvtColor(tall, cv2.COLOR_RGB2LAB), np.float32).reshape(frames.shape)


_NAMES = tuple(PALETTE)
_COLOURS = _lab(np.array([[list(PALETTE.values())]], np.uint8))[0, 0]  # [8, 3]


def _nearest(lab: Floats) -> str | None:
    distances = np.linalg.norm(_COLOURS - lab, axis=1)
    best = int(distances.argmin())
    return _NAMES[best] if distances[best] <= _MAX_COLOUR_DISTANCE else None


def _unfaded(lab: Floats, ground: Floats) -> str | None:
    """The name of an object's colour, unless it is too far on the way to the background's."""
    name = _nearest(lab)
    if name is None:
        return None
    whole = _COLOURS[_NAMES.index(name)]
    return name if np.linalg.norm(whole - lab) <= _MAX_FADING * np.linalg.norm(whole - ground) else None


def _majority(names: Iterable[str | None]) -> str | None:
    counts = Counter(names)
    best, count = counts.most_common(1)[0]
    return best if 2 * count > counts.total() else None


# -- One frame ------------------------------------------------------------------------------------------------------


def _look(lab: Floats) -> _Look:
    """What a frame [H, W, 3] shows."""
    ground = np.median(lab.reshape(-1, 3), axis=0)
    marked, contrast = _marked(lab, ground)
    background = _nearest(ground) if marked.mean() <= 1 - _MIN_GROUND_SHARE else None
    if contrast < _MIN_CONTRAST or not marked.any():
        return _Look(background)
    region, shift = _one_region(marked)
    if region is None:
        return _Look(background)
    core = cv2.distanceTransform(region, cv2.DIST_L2, 3)
    colour = _unfaded(np.median(np.roll(lab, shift, (0, 1))[core > core.max() / 2], axis=0), ground)
    rows, columns = np.nonzero(region)
    middle = np.array([rows.mean(), columns.mean()]) + 0.5
    return _Look(background, colour, _shape(region, middle), _tuple((middle - shift) % SIDE))


def _marked(lab: Floats, ground: Floats) -> tuple[Marks, float]:
    """Which pixels [H, W] are unlike the ground, and how far from it an object's are."""
    distances = np.linalg.norm(lab - ground, axis=2)
    contrast = float(np.percentile(distances, _CONTRAST_PERCENTILE))
    edge = max(contrast, _MIN_CONTRAST) / 2  # a blurred edge is half-way where the sharp one was
    return np.asarray(distances > edge), contrast


def _one_region(marked: Marks) -> tuple[npt.NDArray[np.uint8] | None, tuple[int, int]]:
    """The object's pixels, rolled into the middle of the frame, and by how much; None unless there is just one."""
    # What lies beside the object pulls the middle away from it: by 3 pixels at most, if it is as small as it must be.
    shift = _to_middle(marked)
    rolled = np.roll(marked, shift, (0, 1)).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(rolled, connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    area, others = int(areas.max()), int(areas.sum() - areas.max())
    fits = _MIN_AREA <= area <= _MAX_AREA and others <= _MAX_OTHERS * area
    return (np.asarray(labels == 1 + areas.argmax(), np.uint8) if fits else None), shift


def _to_middle(marked: Marks) -> tuple[int, int]:
    """How far to roll rows and columns so that the pixels' circular mean comes into the frame's middle."""
    rows, columns = np.nonzero(marked)
    return _MIDDLE - _circular_mean(rows), _MIDDLE - _circular_mean(columns)


def _circular_mean(places: npt.NDArray[np.intp]) -> int:
    turns = np.exp(2j * np.pi * places / SIDE).mean()
    return round(float(np.angle(turns)) / (2 * np.pi) * SIDE)


def _shape(region: npt.NDArray[np.uint8], middle: npt.NDArray[np.float64]) -> str | None:
    """The shape whose drawing, of the region's area and in its place, overlaps it most."""
    overlaps = {shape: _overlap(region > 0, _drawing(shape, float(region.sum()), middle)) for shape in SHAPES}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= _MIN_OVERLAP else None


def _drawing(shape: str, area: float, middle: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    size = float(np.sqrt(area / _AREA_OF_BOX[shape]))
    # A triangle's centre of mass lies below the middle of its box.
    box_middle = middle - (size / 6 if shape == "triangle" else 0, 0)
    return np.asarray(coverage(shape, np.asarray(box_middle[None], np.float32), size)[0] > 0.5)


def _overlap(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def _tuple(place: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(place[0]), float(place[1])


# -- All frames -----------------------------------------------------------------------------------------------------


def _motion(middles: Sequence[tuple[float, float] | None]) -> str | None:
    """The direction of an even course along one axis, by least squares over the frames that show the object."""
    seen = [number for number, middle in enumerate(middles) if middle is not None]
    if len(seen) < max(3, _MIN_SEEN * len(middles)):
        return None
    places = _unwrapped(np.array([middles[number] for number in seen]))
    times = np.array(seen, np.float64) - np.mean(seen)
    speeds = times @ places / (times @ times)  # down and to the right, pixels a frame
    rest = places - places.mean(axis=0) - times[:, None] * speeds
    main, aside = (0, 1) if abs(speeds[0]) > abs(speeds[1]) else (1, 0)
    straight = 2 * abs(speeds[aside]) <= abs(speeds[main])
    even = float(np.sqrt((rest**2).sum(axis=1).mean())) <= _MAX_JITTER
    if not straight or not even or abs(speeds[main]) < _MIN_SPEED:
        return None
    return (("up", "down"), ("left", "right"))[main][int(speeds[main] > 0)]


def _unwrapped(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A course [F, 2] that leaves the frame instead of coming back on its other side."""
    steps = [(later - earlier + SIDE / 2) % SIDE - SIDE / 2 for earlier, later in pairwise(places)]
    return np.cumsum([places[0], *steps], axis=0)
