"""Draws scenes: one object of one colour that moves over a plain background and comes back on the other side.

All that a caption leaves open is fixed: the size, the speed and, where nobody asks for another, the place in which an
object starts. A model that denoises in few steps shows the mean of what its first step finds possible, so there should
be one video to a caption.
"""

import io
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.support.toyworld.grammar import Scene

Frames: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Shot: TypeAlias = tuple[Scene, int]
"""A scene and the pixel frames that it holds for."""

SIDE = 64
"""Height and width of a frame, in pixels."""
SIZE = 24.0
"""Height and width of an object."""
THICKNESS = 4.0
"""Of the line, in pixels, where only an object's outline is drawn."""
SPEED = 1.0
"""Pixels that an object moves from frame to frame."""
MIDDLE = (SIDE / 2, SIDE / 2)

FIRST_CHUNK_FRAMES = 9
CHUNK_FRAMES = 12

PALETTE: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (205, 20, 40),
        "green": (35, 160, 60),
        "blue": (20, 90, 225),
        "yellow": (255, 230, 50),
        "orange": (255, 145, 15),
        "purple": (150, 40, 175),
        "white": (245, 245, 245),
        "black": (20, 20, 20),
    }
)
_STEPS = {"left": (0.0, -SPEED), "right": (0.0, SPEED), "up": (-SPEED, 0.0), "down": (SPEED, 0.0)}


# -- Chunks ---------------------------------------------------------------------------------------------------------


def chunk_lengths(num_chunks: int) -> list[int]:
    """Pixel frames of each chunk of a video from text: 9, then 12 each."""
    return [FIRST_CHUNK_FRAMES] * (num_chunks > 0) + [CHUNK_FRAMES] * (num_chunks - 1)


def split_chunks(frames: Frames) -> list[Frames]:
    """A video [F, ...] as its chunks; what is over at the end makes no whole chunk and is left out."""
    ends = range(FIRST_CHUNK_FRAMES, len(frames) + 1, CHUNK_FRAMES)
    return [frames[max(0, end - CHUNK_FRAMES) : end] for end in ends]


def shots(scenes: Sequence[Scene]) -> list[Shot]:
    """One scene a chunk as what `render` takes."""
    return list(zip(scenes, chunk_lengths(len(scenes)), strict=True))


# -- Where the object is --------------------------------------------------------------------------------------------


def centres(scenes: Sequence[Shot], start: tuple[float, float] = MIDDLE) -> Floats:
    """Row and column of the object's middle in each frame, [F, 2], within 0..SIDE.

    The first frame has it at `start`; each later one has moved it as the frame's own scene says, so that a switch keeps
    the place.
    """
    steps = np.concatenate([np.tile(_STEPS[scene.motion], (num_frames, 1)) for scene, num_frames in scenes])
    steps[0] = start
    return np.asarray(steps.cumsum(axis=0) % SIDE, np.float32)


def coverage(shape: str, middles: Floats, size: float = SIZE) -> Floats:
    """How much of each pixel an object covers, 0 to 1.

    Shapes:
        middles: [F, 2], row and column of the object's bounding box's middle; the result: [F, SIDE, SIDE].
    """
    places = np.arange(SIDE, dtype=np.float32) + 0.5
    offsets = (places - middles[..., None] + SIDE / 2) % SIDE - SIDE / 2  # [F, 2, SIDE], shorter way round
    down, across = offsets[:, 0, :, None], np.abs(offsets[:, 1, None, :])
    half = np.float32(size / 2)
    match shape:
        case "circle":
            return _inside(np.sqrt(down**2 + across**2) - half)
        case "square":
            return _inside(np.abs(down) - half) * _inside(across - half)
        case "triangle":  # the tip on top; its sides fall twice as fast as they spread
            return _inside((2 * across - down - half) / np.float32(np.sqrt(5))) * _inside(down - half)
        case _:
            raise ValueError(f"no shape {shape!r}")


def outline(shape: str, middles: Floats) -> Floats:
    """As `coverage`, of the line along the inside of an object's edge."""
    if shape == "triangle":  # its sides move inwards as far as its base does
        root = math.sqrt(5)
        shift, size = (root - 1) / 2 * THICKNESS, SIZE - (root + 1) * THICKNESS
    else:
        shift, size = 0.0, SIZE - 2 * THICKNESS
    return coverage(shape, middles) - coverage(shape, middles + np.array((shift, 0), np.float32), size)


def _inside(distances: Floats) -> Floats:
    """Coverage of pixels by their middles' distance from an edge, negative within: half of it on the edge itself."""
    return np.clip(0.5 - distances, 0, 1)


# -- Pictures -------------------------------------------------------------------------------------------------------


def masks(scenes: Sequence[Shot], start: tuple[float, float] = MIDDLE, *, outlined: bool = False) -> Floats:
    """How much of each pixel of each frame the object covers, or its outline alone, [F, SIDE, SIDE]."""
    middles = np.split(centres(scenes, start), np.cumsum([num_frames for _, num_frames in scenes])[:-1])
    drawn = outline if outlined else coverage
    return np.concatenate([drawn(scene.shape, some) for (scene, _), some in zip(scenes, middles, strict=True)])


def render(scenes: Sequence[Shot], start: tuple[float, float] = MIDDLE, *, outlined: bool = False) -> Frames:
    """Draw scenes one after the other.

    Args:
        scenes: each with its number of pixel frames, one at least.
        start: row and column of the object's middle in the first frame.
        outlined: through the object, its outline excepted, one sees the background.

    Returns:
        [F, SIDE, SIDE, 3], with smooth edges; the same for the same arguments.
    """
    return paint(scenes, masks(scenes, start, outlined=outlined))


def paint(scenes: Sequence[Shot], covered: Floats) -> Frames:
    """What `render` gives, where it is known what the objects cover: [F, SIDE, SIDE]."""
    num_frames = [count for _, count in scenes]
    levels = (covered * 255 + 0.5).astype(np.uint8)
    parts = np.split(levels, np.cumsum(num_frames)[:-1])
    return np.concatenate([_blends(scene)[part] for (scene, _), part in zip(scenes, parts, strict=True)])


def _blends(scene: Scene) -> Frames:
    """The colours from background to object, [256, 3]: a look-up is cheaper than arithmetic at every pixel."""
    shares = np.arange(256)[:, None] / 255
    ground, colour = np.array(PALETTE[scene.background]), np.array(PALETTE[scene.colour])
    return np.asarray(np.rint(ground + shares * (colour - ground)), np.uint8)


def as_png(image: Frames) -> bytes:
    """An image [H, W, 3] as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
