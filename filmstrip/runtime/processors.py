"""Frame processors: models that map frames to frames with numpy and OpenCV. No Triton here, no torch.

They take and return RGB frames [F, H, W, 3] uint8 of any size. Each sequence gets a processor of its own, which sees
the chunks in order: processing chunk by chunk equals processing the whole video in one call.
"""

from typing import Any, ClassVar, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Frames: TypeAlias = npt.NDArray[np.uint8]
Flow: TypeAlias = npt.NDArray[np.float32]


class FrameProcessor(Protocol):
    """Maps the frames of one sequence."""

    def process(self, frames: Frames) -> Frames:
        """Map the next frames of the sequence, [F, H, W, 3] to [F, H, W, 3]."""
        ...


def resize(frames: Frames, height: int, width: int) -> Frames:
    """Frames [F, H, W, 3] at another size, bilinear; the same array if they have that size."""
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, target in zip(frames, resized, strict=True):
        cv2.resize(frame, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


class Passthrough:
    """The frames unchanged, to the byte."""

    def process(self, frames: Frames) -> Frames:
        """See `FrameProcessor`."""
        return frames


class Gray:
    """BT.601 luma in all three channels, rounded to the nearest value."""

    def process(self, frames: Frames) -> Frames:
        """See `FrameProcessor`."""
        gray = np.empty_like(frames)
        for frame, target in zip(frames, gray, strict=True):
            # In integer thousandths: OpenCV's own conversion has shorter coefficients and is sometimes off by one.
            red, green, blue = np.moveaxis(frame.astype(np.uint32), -1, 0)
            target[...] = ((299 * red + 587 * green + 114 * blue + 500) // 1000)[..., None]
        return gray


class Scribble:
    """White contour lines on black, frame by frame.

    Canny's edges of the blurred frame. The contrast is stretched first, and Otsu's method finds the threshold in the
    frame's own gradients, so that dark and pale scenes are drawn like bright ones.
    """

    _BLUR: ClassVar = 1 / 220  # of the shorter side: the blur's sigma
    _SPECK: ClassVar = 1 / 8  # of the shorter side: contours with fewer pixels are dropped
    _THICKNESS: ClassVar = 1 / 200  # of the shorter side, but at least two pixels: the lines
    _MIN_CONTRAST: ClassVar = 32.0  # fewer grey levels than this are not stretched to the full range
    _GRAIN: ClassVar = 20.0  # gradient in the unstretched frame below which nothing is drawn

    def process(self, frames: Frames) -> Frames:
        """See `FrameProcessor`."""
        scribbles = np.empty_like(frames)
        for frame, target in zip(frames, scribbles, strict=True):
            target[...] = self._contours(frame)[..., None]
        return scribbles

    def _contours(self, frame: Frames) -> Frames:
        side = min(frame.shape[:2])
        # 1. Stretch the contrast; blur, so that texture leaves no contours.
        dark, bright = np.percentile(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (1, 99))
        gain = 255 / max(bright - dark, self._MIN_CONTRAST)
        soft = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), max(0.8, side * self._BLUR))
        soft = np.clip((soft - dark) * gain, 0, 255).astype(np.uint8)
        # 2. Canny, which follows the strongest colour channel, with thresholds from the luma's gradients.
        gray = cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY)
        strength = np.abs(cv2.Sobel(gray, cv2.CV_16S, 1, 0)) + np.abs(cv2.Sobel(gray, cv2.CV_16S, 0, 1))
        otsu, _ = cv2.threshold(strength.astype(np.uint16), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        strong = max(otsu, self._GRAIN * gain)
        edges = cv2.Canny(soft, 0.3 * strong, 0.9 * strong)
        # 3. Drop specks, thicken the lines.
        _, labels, stats, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
        kept = stats[:, cv2.CC_STAT_AREA] >= side * self._SPECK
        kept[0] = False  # the background
        lines = np.where(kept[labels], np.uint8(255), np.uint8(0))
        thickness = max(2, round(side * self._THICKNESS))
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness))
        return np.asarray(cv2.dilate(lines, brush), np.uint8)


class OpticalFlow:
    """Motion since the previous frame, in the colours of the Middlebury benchmark; no motion is white.

    The hue is the direction. The saturation is the length as a share of the longest motion in the frame, which counts
    as at least one pixel so that still scenes stay white. The first frame of a sequence has no motion.

    Source:
        Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016 (the flow); Baker et al., A Database
        and Evaluation Methodology for Optical Flow, 2011 (the colours).
    """

    _MIN_SIDE: ClassVar = 32  # pixels: dense inverse search needs room for its patches

    def __init__(self) -> None:
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: npt.NDArray[Any] | None = None  # [H, W], padded

    def process(self, frames: Frames) -> Frames:
        """See `FrameProcessor`."""
        return np.stack([flow_colours(self._flow(frame)) for frame in frames])

    def _flow(self, frame: Frames) -> Flow:
        height, width = frame.shape[:2]
        below, right = max(0, self._MIN_SIDE - height), max(0, self._MIN_SIDE - width)
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        gray = np.pad(gray, ((0, below), (0, right)), "edge")
        previous, self._previous = self._previous, gray
        if previous is None or previous.shape != gray.shape:
            return np.zeros((height, width, 2), np.float32)
        flow = self._search.calc(previous, gray, np.zeros((*gray.shape, 2), np.float32))
        return np.asarray(flow, np.float32)[:height, :width]


def _colour_wheel() -> npt.NDArray[np.float32]:
    """The 55 hues, [55, 3] in 0..1: from each of six colours to the next, in steps of equal visible difference."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.float32)
    steps = (15, 6, 4, 11, 13, 6)  # RY, YG, GC, CB, BM, MR
    share = [np.arange(count, dtype=np.float32)[:, None] / count for count in steps]
    return np.concatenate([a + (b - a) * s for a, b, s in zip(corners, corners[1:], share, strict=False)])


_WHEEL = _colour_wheel()


def flow_colours(flow: Flow) -> Frames:
    """Colours [H, W, 3] of a motion field [H, W, 2] in pixels, (right, down)."""
    right, down = flow[..., 0], flow[..., 1]
    length = np.hypot(right, down)
    length /= max(1.0, float(length.max()))
    # As in the benchmark's code: angle -pi is the first hue of the wheel, +pi the last.
    place = (np.arctan2(-down, -right) / np.pi + 1) / 2 * (len(_WHEEL) - 1)
    hues = np.arange(len(_WHEEL))
    wheel = np.stack([np.interp(place, hues, channel) for channel in _WHEEL.T], axis=-1)
    colours: Frames = np.round(255 * (1 - length[..., None] * (1 - wheel))).astype(np.uint8)
    return colours
