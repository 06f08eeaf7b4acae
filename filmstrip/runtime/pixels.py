"""Between arrays of the contract and pixels as networks take them: float32 [1, 3, F, H, W] in -1..1.

Arrays are copied: those that come with a chunk last no longer than it. Our own tensors are changed in place: on the CPU
new memory at each step would cost three times what the arithmetic does.
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
    """Another number of frames, [..., F, H, W] to [..., num_frames, H, W]: each new one is the old one at its time.

    So 12 become 13 by having the first one twice, and then new frame i + 1 is old frame i.
    """
    old = pixels.shape[-3]
    return pixels[..., [index * old // num_frames for index in range(num_frames)], :, :]


def pad_first_frame(pixels: Tensor) -> Tensor:
    """Repeat the first frame, [..., F, H, W] to [..., F + 1, H, W]: a first chunk of video is encoded from 13."""
    return resample(pixels, pixels.shape[-3] + 1)


def strip_pad(pixels: Tensor) -> Tensor:
    """Drop the frame that `pad_first_frame` has added."""
    return pixels[..., 1:, :, :]


# -- Images -------------------------------------------------------------------------------------------------


def split_images(joined: npt.NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]) -> list[Frames]:
    """The images [H, W, 3] of the VACE_REF_IMAGES tensor.

    Raises:
        ModelError: the shapes do not match the bytes; the frontend is at fault.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != joined.size:
        raise ModelError(f"ref_image_shapes add up to {sum(sizes)} bytes, vace_ref_images has {joined.size}")
    parts = np.split(joined, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def resize_cover(image: Frames, height: int, width: int) -> Frames:
    """Scale an image [h, w, 3] so that it covers a frame [H, W, 3]; of its longer side the middle is kept."""
    # Cut before scaling: a long thin image would be immense for a moment.
    kept_height = min(image.shape[0], max(1, round(image.shape[1] * height / width)))
    kept_width = min(image.shape[1], max(1, round(image.shape[0] * width / height)))
    top, left = (image.shape[0] - kept_height) // 2, (image.shape[1] - kept_width) // 2
    return _scale(image[top : top + kept_height, left : left + kept_width], height, width)


def letterbox(image: Frames, height: int, width: int) -> Frames:
    """Scale an image [h, w, 3] so that all of it fits in a frame [H, W, 3], centred on white.

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
    """Another size: bilinear if a side grows, the mean of the pixels that fall together if both shrink."""
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
