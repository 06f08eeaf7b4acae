"""The latents that a chunk is denoised from, and all noise that it is made with."""

import torch
from torch import Tensor

from filmstrip.runtime.schedule import renoise
from filmstrip.runtime.upload import upload


class ChunkNoise:
    """The noise of one chunk, in the order in which it is drawn: the initial one, then that of each renoising.

    It depends on the seed and the chunk's place alone, not on what ran before. Numbers are drawn on the CPU in
    float32 and moved then, so that they are the same for every device.

    Args:
        seed: of the generation or the chunk.
        latent_index: of the chunk's first latent frame in the generation, resets not counted.
        shape: of each draw, [1, C, T, H, W].
        device: where the noise is wanted.
        dtype: as what.
    """

    def __init__(
        self,
        seed: int,
        latent_index: int,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed + latent_index)
        self._shape = shape
        self._device = device
        self._dtype = dtype

    def draw(self) -> Tensor:
        """The next noise, normally distributed."""
        noise = torch.randn(self._shape, generator=self._generator, dtype=torch.float32)
        return upload(noise, self._device, self._dtype)


def initial_latents(noise: Tensor, source: Tensor | None, noise_scale: float) -> Tensor:
    """What a chunk is denoised from, [1, C, T, H, W].

    Args:
        noise: the chunk's first draw.
        source: the input video's latents, None in text mode.
        noise_scale: share of noise in video mode, 0..1; 0 is the source to the bit.
    """
    return noise if source is None else renoise(source, noise, noise_scale)
