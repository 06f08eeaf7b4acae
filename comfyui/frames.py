"""Conversion between ComfyUI's images and the server's: float32 in 0..1, bytes, and VACE's -1..1. Only needs numpy.

IMAGE is float32 [F, H, W, C] in 0..1 and MASK float32 [F, H, W]; some nodes make variants of them. Everything is
converted frame by frame, so that no second copy of a video is in memory.
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


def as_images(name: str, images: NDArray[Any]) -> NDArray[Any]:
    """An IMAGE as [F, H, W, C]; leading axes of length 1 are added or removed.

    Raises:
        FilmstripError: it is something else.
    """
    shown = list(images.shape)
    while images.ndim > 4 and images.shape[0] == 1:
        images = images[0]
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or 0 in images.shape or images.shape[3] not in (1, 3, 4):
        raise FilmstripError(f"{name}: must be images [F, H, W, C] with 1, 3 or 4 channels, got an array {shown}")
    return images


def as_masks(name: str, masks: NDArray[Any]) -> NDArray[Any]:
    """A MASK as [F, H, W]; some nodes make one mask [H, W], or keep a channel: [F, H, W, 1] or [F, 1, H, W].

    Raises:
        FilmstripError: it is something else.
    """
    shown = list(masks.shape)
    while masks.ndim > 4 and masks.shape[0] == 1:
        masks = masks[0]
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim == 4:
        channel = next((axis for axis in (1, 3, 0) if masks.shape[axis] == 1), None)
        masks = masks if channel is None else masks.squeeze(channel)
    if masks.ndim == 4 and masks.shape[3] in (3, 4):
        raise FilmstripError(f"{name}: must be masks [F, H, W], got images {shown}; use Convert Image to Mask")
    if masks.ndim != 3 or 0 in masks.shape:
        raise FilmstripError(f"{name}: must be masks [F, H, W], got an array {shown}")
    return masks


def to_bytes(frame: Floats) -> Pixels:
    """0..1 to 0..255, rounded and clipped.

    Raises:
        FilmstripError: there are NaNs.
    """
    scaled = np.rint(frame * np.float32(255))
    if np.isnan(scaled.min()):
        raise FilmstripError("the images have values that are not numbers (NaN)")
    pixels: Pixels = np.clip(scaled, 0, 255).astype(np.uint8)
    return pixels


def to_floats(pixels: Pixels, out: Floats) -> None:
    """0..255 to 0..1, each the float32 nearest to x / 255; `to_bytes` gives the same bytes back."""
    np.divide(pixels, np.float32(255), out=out)


def rgb(frame: NDArray[Any]) -> NDArray[Any]:
    """A frame with 1, 3 or 4 channels as RGB [H, W, 3]; one with alpha is composited over black."""
    if frame.shape[2] == 1:
        return np.repeat(frame, 3, axis=2)
    return frame if frame.shape[2] == 3 else frame[:, :, :3] * np.clip(frame[:, :, 3:], 0, 1)


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
    """The bytes of VACE masks, float32 [1, 1, F, H, W] in 0..1, one mask at a time; not copied unless necessary."""
    for mask in masks:
        yield np.ascontiguousarray(mask, _WIRE).data


def to_png(image: Floats) -> bytes:
    """One image [H, W, C] as a PNG file, without loss beyond 8 bits.

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
