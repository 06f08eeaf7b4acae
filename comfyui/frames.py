"""ComfyUI's pictures and the server's: float32 in 0..1 to bytes and to VACE's -1..1, and back. numpy alone.

IMAGE is float32 [F, H, W, C] in 0..1 and MASK float32 [F, H, W]. All of it is done frame by frame, so that no
second copy of a video lies in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FilmstripError

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_WIRE = np.dtype("<f4")


def check_images(name: str, images: NDArray[Any]) -> None:
    """Check that this is an IMAGE that the server can take.

    Raises:
        FilmstripError: it is not.
    """
    if images.ndim != 4 or 0 in images.shape or images.shape[3] not in (1, 3, 4):
        raise FilmstripError(f"{name}: needs images of 1, 3 or 4 channels, got an array {list(images.shape)}")


def check_masks(name: str, masks: NDArray[Any]) -> None:
    """Check that this is a MASK.

    Raises:
        FilmstripError: it is not.
    """
    if masks.ndim != 3 or 0 in masks.shape:
        raise FilmstripError(f"{name}: needs masks [F, H, W], got an array {list(masks.shape)}")


def to_bytes(frame: Floats) -> Pixels:
    """0..1 to 0..255, to the nearest; what lies outside is clipped.

    Raises:
        FilmstripError: there are NaNs: no colour is right for them.
    """
    scaled = np.rint(frame * np.float32(255))
    if np.isnan(scaled.min()):
        raise FilmstripError("the images hold values that are no numbers (NaN)")
    pixels: Pixels = np.clip(scaled, 0, 255).astype(np.uint8)
    return pixels


def to_floats(pixels: Pixels, out: Floats) -> None:
    """0..255 to 0..1, each the float32 nearest to x / 255; `to_bytes` gives the same bytes again."""
    np.divide(pixels, np.float32(255), out=out)


def rgb(frame: NDArray[Any]) -> NDArray[Any]:
    """A frame [H, W, 3] of one with 1, 3 or 4 channels: grey in all three, alpha left out."""
    return np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[:, :, :3]


def video_frames(images: Floats) -> Iterator[memoryview]:
    """The bytes of a video, uint8 [F, H, W, 3], one frame at a time."""
    for frame in images:
        yield np.ascontiguousarray(to_bytes(rgb(frame))).data


def vace_frames(images: Floats) -> Iterator[memoryview]:
    """The bytes of VACE frames, float32 [1, 3, F, H, W] in -1..1, one plane [H, W] at a time."""
    for channel in range(3):
        for frame in images:
            plane = rgb(frame)[:, :, channel]
            yield np.clip(plane * np.float32(2) - np.float32(1), -1, 1).astype(_WIRE).data


def vace_masks(masks: Floats) -> Iterator[memoryview]:
    """The bytes of VACE masks, float32 [1, 1, F, H, W] in 0..1, one mask at a time; not copied unless they must be."""
    for mask in masks:
        yield np.ascontiguousarray(mask, _WIRE).data


def to_png(image: Floats) -> bytes:
    """One image [H, W, C] as a PNG file: without loss, so what the model sees is what the graph held.

    Raises:
        FilmstripError: Pillow is missing, which ComfyUI itself needs.
    """
    try:
        from PIL import Image
    except ImportError:
        raise FilmstripError("Pillow is missing in ComfyUI's Python: pip install pillow") from None
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(to_bytes(rgb(image)))).save(file, "PNG", compress_level=1)
    return file.getvalue()
