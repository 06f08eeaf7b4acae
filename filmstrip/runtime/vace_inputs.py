"""The conditioning that comes with a chunk: from the contract's tensors to pixels at the generation's size."""

import torch
from torch import Tensor

from filmstrip.contract import (
    FIRST_FRAME_IMAGE,
    INPUT_VIDEO,
    LAST_FRAME_IMAGE,
    VACE_FRAMES,
    VACE_MASKS,
    VACE_REF_IMAGES,
    Mode,
    TensorSpec,
)
from filmstrip.runtime.chunks import Chunk
from filmstrip.runtime.frame_processors import resize
from filmstrip.runtime.pixels import fill, fit, split_images, to_pixels
from filmstrip.runtime.vace_context import Conditioning


def is_doubled(chunk: Chunk) -> bool:
    """Whether the chunk follows the video rule for first chunks: one frame more goes into its latents than out."""
    told = chunk.parameters
    arrays = VACE_FRAMES.name in chunk.tensors or VACE_MASKS.name in chunk.tensors or told.vace_use_input_video
    return told.reset and (told.mode is Mode.VIDEO or arrays)


def conditioning_of(chunk: Chunk, device: torch.device | str = "cpu") -> Conditioning | None:
    """What the VACE branch is given beside references, as the encoders take it; None when there is nothing.

    The chunk's own VACE frames go before an input video that is used as them.

    Raises:
        InvalidField: the input video is to be used and did not come.
    """
    told = chunk.parameters
    frames = _floats(chunk, VACE_FRAMES)
    if frames is None and told.vace_use_input_video:
        frames = to_pixels(resize(chunk.tensor(INPUT_VIDEO), told.height, told.width))
    arrays = {
        "frames": frames,
        "masks": _floats(chunk, VACE_MASKS),
        "first_image": _key_image(chunk, FIRST_FRAME_IMAGE),
        "last_image": _key_image(chunk, LAST_FRAME_IMAGE),
    }
    there = {name: array.to(device) for name, array in arrays.items() if array is not None}
    conditioning = Conditioning.of(told.num_frames, locked=told.vace_temporally_locked, **there)
    return conditioning.doubled() if conditioning is not None and is_doubled(chunk) else conditioning


def references_of(chunk: Chunk, device: torch.device | str = "cpu") -> list[Tensor]:
    """The chunk's reference images, [1, 3, 1, H, W] each, whole on white ground.

    Raises:
        ModelError: their shapes do not fit their bytes.
    """
    told = chunk.parameters
    if VACE_REF_IMAGES.name not in chunk.tensors:
        return []
    images = split_images(chunk.tensor(VACE_REF_IMAGES), told.ref_image_shapes)
    return [to_pixels(fit(image, told.height, told.width)[None]).to(device) for image in images]


def _floats(chunk: Chunk, spec: TensorSpec) -> Tensor | None:
    array = chunk.tensors.get(spec.name)
    return None if array is None else torch.tensor(array)


def _key_image(chunk: Chunk, spec: TensorSpec) -> Tensor | None:
    image = chunk.tensors.get(spec.name)
    return None if image is None else to_pixels(fill(image, chunk.parameters.height, chunk.parameters.width)[None])
