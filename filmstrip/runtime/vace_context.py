"""What the VACE branch is conditioned with: frames, masks, key images and references of one chunk.

A mask is 1 where something is to be made and 0 where the frames are to be kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from filmstrip.runtime.pixels import double_first, resample

Encode: TypeAlias = Callable[[Tensor], Tensor]
"""An encoder: pixels [1, 3, F, H, W] to latents [1, C, T, h, w]."""

_KEY_FRAMES = 4  # a key image stands for the frames of one latent frame


# -- In pixels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditioning:
    """Frames and what of them is to be made.

    Attributes:
        frames: [1, 3, F, H, W] in -1..1.
        masks: [1, 1, F, H, W] of 0 and 1.
    """

    frames: Tensor
    masks: Tensor

    @classmethod
    def of(
        cls,
        num_frames: int,
        *,
        frames: Tensor | None = None,
        masks: Tensor | None = None,
        first_image: Tensor | None = None,
        last_image: Tensor | None = None,
        locked: bool = True,
    ) -> "Conditioning | None":
        """What a chunk's arrays and key images amount to; None when there are none.

        Args:
            num_frames: pixel frames that the chunk answers with.
            frames: [1, 1 or 3, F, H, W] in -1..1; mid-grey where only masks or key images are given.
            masks: [1, 1, F, H, W], above 0.5 is to be made; all is where none are given.
            first_image: [1, 3, 1, H, W]; the chunk's first four frames, to be kept.
            last_image: likewise its last four.
            locked: arrays of another length are cut off or go on with their last frame, else they are resampled.
        """
        given = [array for array in (frames, masks, first_image, last_image) if array is not None]
        if not given:
            return None
        fit = _lock if locked else resample
        grey = given[0].new_zeros(1, 3, num_frames, *given[0].shape[-2:])
        pixels = grey if frames is None else fit(frames, num_frames).expand_as(grey).clone()
        made = torch.ones_like(grey[:, :1]) if masks is None else (fit(masks, num_frames) > 0.5).to(grey.dtype)
        for image, place in ((first_image, slice(_KEY_FRAMES)), (last_image, slice(-_KEY_FRAMES, None))):
            if image is not None:
                pixels[:, :, place] = image
                made[:, :, place] = 0
        return cls(pixels, made)

    def doubled(self) -> "Conditioning":
        """As a first chunk that follows the video rule is encoded: with its first frame twice."""
        return Conditioning(double_first(self.frames), double_first(self.masks))


def _lock(array: Tensor, num_frames: int) -> Tensor:
    """Cut [..., F, H, W] off at a number of frames, or go on with the last one."""
    last = array.shape[-3] - 1
    return array[..., [min(index, last) for index in range(num_frames)], :, :]


# -- In latents ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VaceEncoders:
    """The ways into the latents.

    Attributes:
        inactive: of what is kept; with a feature cache of its own from chunk to chunk.
        reactive: of what is to be made; likewise.
        reference: of one image, without a cache.
    """

    inactive: Encode
    reactive: Encode
    reference: Encode


@dataclass(frozen=True)
class VaceContext:
    """The conditioning of one chunk.

    Attributes:
        latents: [1, 2 * C + S * S, R + T, h, w]: kept latents, made latents, folded mask.
        num_references: R, latent frames before those of the chunk, whose hints are dropped.
    """

    latents: Tensor
    num_references: int


def vace_context(
    conditioning: Conditioning | None,
    references: Sequence[Tensor],
    encoders: VaceEncoders,
    num_latent_frames: int,
    spatial_factor: int = 8,
) -> VaceContext:
    """Make a chunk's context.

    References beside frames stand before the chunk's latent frames. References alone stand at the chunk's own
    places, zeros after them; if they are more than the places, they stand before the chunk too, and it is all zeros.

    Args:
        conditioning: of the frames that the encoders take, None with references alone.
        references: images [1, 3, 1, H, W], one at least without conditioning.
        encoders: see `VaceEncoders`; the first two are used for the conditioning only.
        num_latent_frames: T, of the chunk.
        spatial_factor: S, pixels of one side of a latent pixel.
    """
    mask_channels = spatial_factor**2
    parts = [_reference(encoders.reference(image), mask_channels) for image in references]
    if conditioning is not None:
        kept = encoders.inactive(conditioning.frames * (1 - conditioning.masks))
        made = encoders.reactive(conditioning.frames * conditioning.masks)
        mask = fold_mask(conditioning.masks, num_latent_frames, spatial_factor)
        parts.append(torch.cat([kept, made, mask.to(kept.dtype)], dim=1))
        return VaceContext(torch.cat(parts, dim=2), len(references))
    in_place = len(references) <= num_latent_frames
    num_empty = num_latent_frames - len(references) if in_place else num_latent_frames
    _, channels, _, height, width = parts[0].shape
    parts.append(parts[0].new_zeros(1, channels, num_empty, height, width))
    return VaceContext(torch.cat(parts, dim=2), 0 if in_place else len(references))


def _reference(latents: Tensor, mask_channels: int) -> Tensor:
    """A reference's context, [1, C, 1, h, w] to [1, 2 * C + mask_channels, 1, h, w]: all of it is kept."""
    _, channels, *places = latents.shape
    return torch.cat([latents, latents.new_zeros(1, channels + mask_channels, *places)], dim=1)


def fold_mask(masks: Tensor, num_latent_frames: int, spatial_factor: int = 8) -> Tensor:
    """A mask in channels: [1, 1, F, S * h, S * w] to [1, S * S, T, h, w].

    Channel S * y + x is the mask at row y and column x of each latent pixel. Of the frames, each latent frame takes
    the one in the middle of its share: of 13 the 1st, 4th, 8th and 11th, counted from 0.
    """
    num_frames = masks.shape[2]
    middles = [(2 * index + 1) * num_frames // (2 * num_latent_frames) for index in range(num_latent_frames)]
    rows, columns = (side // spatial_factor for side in masks.shape[-2:])
    tiles = masks[0, 0, middles].reshape(num_latent_frames, rows, spatial_factor, columns, spatial_factor)
    return tiles.permute(2, 4, 0, 1, 3).reshape(1, spatial_factor**2, num_latent_frames, rows, columns)
