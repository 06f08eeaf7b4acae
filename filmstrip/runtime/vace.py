"""The VACE branch: a chunk's conditioning, and the hints that the branch computes from it for the transformer.

A mask is 1 where pixels are to be generated and 0 where the frames are to be kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from filmstrip.contract import (
    FIRST_FRAME_IMAGE,
    INPUT_VIDEO,
    LAST_FRAME_IMAGE,
    VACE_FRAMES,
    VACE_MASKS,
    VACE_REF_IMAGES,
    ChunkParameters,
    TensorSpec,
)
from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.longlive_config import MAX_REFERENCES, LongLiveConfig
from filmstrip.runtime.pixels import letterbox, pad_first_frame, resample, resize_cover, split_images, to_pixels
from filmstrip.runtime.processors import resize
from filmstrip.runtime.sequences import Chunk, invalid
from filmstrip.runtime.text import ChunkText, TextKeys
from filmstrip.runtime.transformer import RopeTables
from filmstrip.runtime.vae import StreamingEncoder

GRAPHS = ("vace_text_kv", "vace", "vae_encoder_image")
"""The graphs that only a checkpoint with a VACE branch has."""

_KEY_FRAMES = 4  # a key image stands for the frames of one latent frame


# -- Conditioning in pixels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditioning:
    """Frames, and which of their pixels are to be generated.

    Attributes:
        frames: [1, 3, F, H, W] in -1..1.
        masks: [1, 1, F, H, W] of 0 and 1.
    """

    frames: Tensor
    masks: Tensor

    @classmethod
    def combine(
        cls,
        num_frames: int,
        *,
        frames: Tensor | None = None,
        masks: Tensor | None = None,
        first_image: Tensor | None = None,
        last_image: Tensor | None = None,
        locked: bool = True,
    ) -> "Conditioning | None":
        """Combine a chunk's arrays and key images; None if there are none.

        Args:
            num_frames: pixel frames of the chunk.
            frames: [1, 1 or 3, F, H, W] in -1..1; mid-grey if there are only masks or key images.
            masks: [1, 1, F, H, W], above 0.5 is to be generated; without masks everything is.
            first_image: [1, 3, 1, H, W]; replaces the chunk's first four frames, which are kept.
            last_image: likewise its last four.
            locked: arrays of another length are cut off or repeat their last frame; otherwise they are resampled.
        """
        inputs = [array for array in (frames, masks, first_image, last_image) if array is not None]
        if not inputs:
            return None
        to_length = _cut_or_extend if locked else resample
        grey = inputs[0].new_zeros(1, 3, num_frames, *inputs[0].shape[-2:])  # [1, 3, F, H, W]
        pixels = grey if frames is None else to_length(frames, num_frames).expand_as(grey).clone()
        mask = torch.ones_like(grey[:, :1]) if masks is None else (to_length(masks, num_frames) > 0.5).to(grey.dtype)
        for image, place in ((first_image, slice(_KEY_FRAMES)), (last_image, slice(-_KEY_FRAMES, None))):
            if image is not None:
                pixels[:, :, place] = image
                mask[:, :, place] = 0
        return cls(pixels, mask)

    @classmethod
    def grey(cls, params: ChunkParameters, like: Tensor) -> "Conditioning":
        """The frames of a chunk that only has references, all to be generated: what the branch was trained with.

        Args:
            params: of the chunk.
            like: pixels [1, 3, 1, H, W] of the chunk's size, for type and device.
        """
        frames = like.new_zeros(1, 3, params.num_frames + params.pad_first_frame, *like.shape[-2:])
        return cls(frames, torch.ones_like(frames[:, :1]))

    def padded(self) -> "Conditioning":
        """With the first frame repeated, for a first chunk that follows the video rule."""
        return Conditioning(pad_first_frame(self.frames), pad_first_frame(self.masks))


def _cut_or_extend(array: Tensor, num_frames: int) -> Tensor:
    """Cut [..., F, H, W] to `num_frames`, or repeat the last frame."""
    last = array.shape[-3] - 1
    return array[..., [min(index, last) for index in range(num_frames)], :, :]


def read_conditioning(chunk: Chunk, device: torch.device | str = "cpu") -> Conditioning | None:
    """The chunk's conditioning without references, as the encoders take it; None if there is none.

    The chunk's own VACE frames take precedence over an input video that is used as VACE frames.

    Raises:
        InvalidField: the input video is needed and missing.
    """
    params = chunk.parameters
    frames = _floats(chunk, VACE_FRAMES)
    if frames is None and params.vace_use_input_video:
        frames = to_pixels(resize(chunk.tensor(INPUT_VIDEO), params.height, params.width))
    arrays = {
        "frames": frames,
        "masks": _floats(chunk, VACE_MASKS),
        "first_image": _key_image(chunk, FIRST_FRAME_IMAGE),
        "last_image": _key_image(chunk, LAST_FRAME_IMAGE),
    }
    present = {name: array.to(device) for name, array in arrays.items() if array is not None}
    conditioning = Conditioning.combine(params.num_frames, locked=params.vace_temporally_locked, **present)
    return conditioning.padded() if conditioning is not None and params.pad_first_frame else conditioning


def read_references(chunk: Chunk, device: torch.device | str = "cpu") -> list[Tensor]:
    """The chunk's reference images, [1, 3, 1, H, W] each, letterboxed on white.

    Raises:
        ModelError: their shapes do not match their bytes.
    """
    params = chunk.parameters
    if VACE_REF_IMAGES.name not in chunk.tensors:
        return []
    images = split_images(chunk.tensor(VACE_REF_IMAGES), params.ref_image_shapes)
    return [to_pixels(letterbox(image, params.height, params.width)[None]).to(device) for image in images]


def _floats(chunk: Chunk, spec: TensorSpec) -> Tensor | None:
    array = chunk.tensors.get(spec.name)
    return None if array is None else torch.tensor(array)


def _key_image(chunk: Chunk, spec: TensorSpec) -> Tensor | None:
    image = chunk.tensors.get(spec.name)
    if image is None:
        return None
    return to_pixels(resize_cover(image, chunk.parameters.height, chunk.parameters.width)[None])


# -- Context in latents -------------------------------------------------------------------------------------

EncodePixels: TypeAlias = Callable[[Tensor], Tensor]
"""An encoder: pixels [1, 3, F, H, W] to latents [1, C, T, h, w]."""


@dataclass(frozen=True)
class VaceEncoders:
    """The encoders of a chunk's context.

    Attributes:
        inactive: for what is kept; it has feature caches of its own from chunk to chunk.
        reactive: for what is to be generated; likewise.
        reference: for one image, without caches.
    """

    inactive: EncodePixels
    reactive: EncodePixels
    reference: EncodePixels


@dataclass(frozen=True)
class VaceContext:
    """The conditioning of one chunk in latents.

    Attributes:
        latents: [1, 2 * C + S * S, R + T, h, w]: inactive latents, reactive latents, folded mask.
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
    """Compute a chunk's context.

    References come before the latent frames of the conditioning. Without conditioning they take the places of the
    chunk's latent frames, followed by zeros; if there are more references than places, they come before the chunk,
    which is all zeros.

    Args:
        conditioning: with the number of frames that the encoders take; None if there are only references.
        references: images [1, 3, 1, H, W], at least one if there is no conditioning.
        encoders: the first two are only used for the conditioning.
        num_latent_frames: T, of the chunk.
        spatial_factor: S, pixels of one side of a latent pixel.
    """
    mask_channels = spatial_factor**2
    parts = [_reference(encoders.reference(image), mask_channels) for image in references]
    if conditioning is not None:
        inactive = encoders.inactive(conditioning.frames * (1 - conditioning.masks))  # [1, C, T, h, w]
        reactive = encoders.reactive(conditioning.frames * conditioning.masks)
        mask = fold_mask(conditioning.masks, num_latent_frames, spatial_factor)  # [1, S * S, T, h, w]
        parts.append(torch.cat([inactive, reactive, mask.to(inactive.dtype)], dim=1))
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

    Channel S * y + x is the mask at row y and column x of each latent pixel. Each latent frame takes the mask in the
    middle of its share of the frames: numbers 1, 4, 8 and 11 of 13, counted from 0.
    """
    num_frames = masks.shape[2]
    middles = [(2 * index + 1) * num_frames // (2 * num_latent_frames) for index in range(num_latent_frames)]
    rows, columns = (side // spatial_factor for side in masks.shape[-2:])
    tiles = masks[0, 0, middles].reshape(num_latent_frames, rows, spatial_factor, columns, spatial_factor)
    return tiles.permute(2, 4, 0, 1, 3).reshape(1, spatial_factor**2, num_latent_frames, rows, columns)


# -- The branch ---------------------------------------------------------------------------------------------


class VaceConditioner:
    """The VACE branch of one sequence at one size: contexts and hints, chunk by chunk.

    Args:
        engines: by the name of the graph.
        config: of the pipeline.
        tables: of the size.
        inactive: see `VaceEncoders`.
        reactive: see `VaceEncoders`.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        config: LongLiveConfig,
        tables: RopeTables,
        *,
        inactive: StreamingEncoder,
        reactive: StreamingEncoder,
    ) -> None:
        self._engine = engines["vace"]
        self._image_encoder = engines["vae_encoder_image"]
        self._keys = TextKeys(engines["vace_text_kv"])
        self._config = config
        self._tables = tables
        self._streams = (inactive, reactive)
        self._encoders = VaceEncoders(inactive, reactive, self._encode_image)

    def context(self, chunk: Chunk, num_latent_frames: int) -> VaceContext | None:
        """The context of the next chunk; None if it has no conditioning.

        Frames that do not continue those of the previous chunk begin a video of their own: see `StreamingEncoder`.

        Raises:
            InvalidField: it has more references than the engines take, or needs an input video that is missing.
        """
        device = self._engine.device
        conditioning, references = read_conditioning(chunk, device), read_references(chunk, device)
        if conditioning is None and references and self._config.lone_references == "before":
            conditioning = Conditioning.grey(chunk.parameters, references[0])
        if len(references) > MAX_REFERENCES:
            problem = f"has {len(references)} images, the pipeline takes at most {MAX_REFERENCES}"
            raise invalid(chunk.parameters.index, VACE_REF_IMAGES, problem)
        if conditioning is None:
            self.clear()
            if not references:
                return None
        factor = self._config.spatial_factor
        return vace_context(conditioning, references, self._encoders, num_latent_frames, factor)

    def hints(
        self,
        context: VaceContext,
        latents: Tensor,
        timestep: float,
        text: ChunkText,
        scale: float,
    ) -> Tensor:
        """The hints of one step, as the transformer takes them.

        Args:
            context: of the chunk.
            latents: with the noise of the timestep, [1, C, T, H, W].
            timestep: 0 to 1000.
            text: of the chunk.
            scale: `vace_context_scale`.
        """
        num_frames = context.latents.shape[2]
        cos, sin = self._tables.at(range(num_frames))
        inputs = {
            "latents": latents,
            "timesteps": latents.new_full((1, num_frames), timestep, dtype=torch.float32),
            "context": context.latents,
            **self._keys.inputs(text.embedding, text.loras),
            "rope_cos": cos,
            "rope_sin": sin,
            "scale": latents.new_full((1,), scale, dtype=torch.float32),
            **text.loras.inputs(self._engine),
        }
        return self._engine.run(inputs)["hints"]

    def clear(self) -> None:
        """Forget the conditioning frames so far."""
        for stream in self._streams:
            stream.clear()

    def _encode_image(self, pixels: Tensor) -> Tensor:
        return self._image_encoder.run({"pixels": pixels})["latents"]
