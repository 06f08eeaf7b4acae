"""What the autoencoder must reproduce besides drawn scenes: outlines, control frames, frames with parts missing."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from filmstrip.runtime.processors import FrameProcessor, Gray, Scribble
from tests.support.toyworld.videos import SIDE, Floats, Frames

CONTROLS: Mapping[str, FrameProcessor] = MappingProxyType({"gray": Gray(), "scribble": Scribble()})
"""The frame processors whose frames may lead a generation."""

_LEAST_SIDE, _MOST_SIDE = 24, 52
_MIDDLE_GREY = 128


def random_mask(rng: np.random.Generator) -> Floats:
    """[SIDE, SIDE], 1 where frames are to be made: in a rectangle, a band or on one side of a line; or around these."""
    made = np.zeros((SIDE, SIDE), np.float32)
    height, width = rng.integers(_LEAST_SIDE, _MOST_SIDE, 2)
    top, left = rng.integers(SIDE - height + 1), rng.integers(SIDE - width + 1)
    form = rng.random()
    if form < 0.4:
        made[top : top + height, left : left + width] = 1
    elif form < 0.75:
        made[top : top + height] = 1
    else:
        made[: rng.integers(SIDE // 4, 3 * SIDE // 4)] = 1
    made = made if rng.random() < 0.5 else made.T
    return np.ascontiguousarray(made if rng.random() < 0.8 else 1 - made)


def without(frames: Frames, missing: Floats) -> Frames:
    """Frames [F, SIDE, SIDE, 3] that are grey where `missing` [SIDE, SIDE] is 1."""
    return np.where(missing[..., None] > 0, np.uint8(_MIDDLE_GREY), frames)
