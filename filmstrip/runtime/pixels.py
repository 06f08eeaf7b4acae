"""Conversion between the contract's arrays and pixels as networks take them: float32 [1, 3, F, H, W] in -1..1.

Arrays are copied, because those of a chunk are only valid during it. Our own tensors are changed in place: on the CPU,
new memory for each operation would take three times as long as the arithmetic.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from filmstrip.errors import ModelError
from filmstrip.runtime.processors import Frames

_WHITE = 255


# -- Frames -------------------------------------------------------------------------------------------------


def to_pixels(frames: Frames) -> Tensor:
    """Frames [F, H, W, 3] uint8 as pixels: 0 becomes -1 and 255 becomes 1."""
    copied = torch.tensor(frames).permute(3, 0, 1, 2).unsqueeze(0)  # [1, 3, F, H, W]
    return copied.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_frames(pixels: Tensor) -> Frames:
    """Pixels on any device as frames [F, H, W, 3] uint8, rounded to the nearest and clipped to -1..1."""
    levels = (pixels.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels[0].permute(1, 2, 3, 0).contiguous().cpu().numpy()


def resample(pixels: Tensor, num_frames: int) -> Tensor:
    """Change the number of frames, [..., F, H, W] to [..., num_frames, H, W], by repeating and dropping frames.

    12 frames become 13 by repeating the first one: new frame i + 1 is old frame i.
    """
    old = pixels.shape[-3]
    return pixels[..., [index * old // num_frames for index in range(num_frames)], :, :]


def pad_first_frame(pixels: Tensor) -> Tensor:
    """Repeat the first frame, [..., F, H, W] to [..., F + 1, H, W]: the first chunk of a video is encoded from 13."""
    return resample(pixels, pixels.shape[-3] + 1)


def strip_pad(pixels: Tensor) -> Tensor:
    """Drop the frame that `pad_first_frame` has added."""
    return pixels[..., 1:, :, :]


# -- Images -------------------------------------------------------------------------------------------------


def split_images(joined: npt.NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]) -> list[Frames]:
    """The images [H, W, 3] of the VACE_REF_IMAGES tensor.

    Raises:
        ModelError: the shapes do not match the bytes, which is a bug of the frontend.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != joined.size:
        raise ModelError(f"ref_image_shapes add up to {sum(sizes)} bytes, vace_ref_images has {joined.size}")
    parts = np.split(joined, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def resize_cover(image: Frames, height: int, width: int) -> Frames:
    """Scale an image [h, w, 3] to cover a frame [H, W, 3], and crop it at the centre."""
    # Cropped before scaling: a long thin image would need an immense one in between.
    kept_height = min(image.shape[0], max(1, round(image.shape[1] * height / width)))
    kept_width = min(image.shape[1], max(1, round(image.shape[0] * width / height)))
    top, left = (image.shape[0] - kept_height) // 2, (image.shape[1] - kept_width) // 2
    return _scale(image[top : top + kept_height, left : left + kept_width], height, width)


def letterbox(image: Frames, height: int, width: int) -> Frames:
    """Scale an image [h, w, 3] to fit into a frame [H, W, 3], centred on white.

    Source:
        VACE's pipeline in diffusers, which prepares references like this.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    scaled_height, scaled_width = (max(1, int(side * scale + 1e-6)) for side in image.shape[:2])
    top, left = (height - scaled_height) // 2, (width - scaled_width) // 2
    frame = np.full((height, width, 3), _WHITE, np.uint8)
    frame[top : top + scaled_height, left : left + scaled_width] = _scale(image, scaled_height, scaled_width)
    return frame


def _scale(image: Frames, height: int, width: int) -> Frames:
    """Change the size: bilinear if a side grows, the mean of the pixels that merge if both shrink."""
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
