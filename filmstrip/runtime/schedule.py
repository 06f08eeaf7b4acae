"""Timesteps, noise levels and the noise itself.

Flow matching: latents at sigma are (1 - sigma) * x0 + sigma * noise, and the network predicts noise - x0.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from filmstrip.contract import Mode
from filmstrip.runtime.engines.engine import to_device

NUM_TIMESTEPS = 1000
_ROUNDING = 1e-6  # 1 - 0.9 is a little less than 0.1, and must still give timestep 100

_FULL_MOTION = 0.2  # RMS difference between successive frames that counts as motion 1
_SCALE_STILL = 0.8  # noise scale without motion
_SCALE_DROP = 0.2  # how much lower it is at motion 1
_REQUEST_SHARE = 0.1  # weight of the request's own noise scale


# -- Timesteps ----------------------------------------------------------------------------------------------


class SigmaTable:
    """The 1000 sigmas that a network was trained on: evenly spaced, then shifted towards noise.

    Source:
        Wan2.1's flow matching scheduler.
    """

    def __init__(self, shift: float) -> None:
        even = [(NUM_TIMESTEPS - index) / NUM_TIMESTEPS for index in range(NUM_TIMESTEPS)]
        self.sigmas = tuple(shift * s / (1 + (shift - 1) * s) for s in even)
        """Falling, starting at 1."""

    def at(self, timestep: float) -> float:
        """The sigma whose timestep, 1000 * sigma, is nearest to the given one, which need not be an integer."""
        after = bisect_left(self.sigmas, -timestep, key=lambda sigma: -NUM_TIMESTEPS * sigma)
        around = self.sigmas[max(0, after - 1) : after + 1]
        return min(around, key=lambda sigma: abs(NUM_TIMESTEPS * sigma - timestep))


def chunk_steps(mode: Mode, steps: Sequence[float], noise_scale: float, offset: int = 0) -> tuple[float, ...]:
    """The timesteps of a chunk, falling.

    In text mode they are `steps`. In video mode the share of noise in the latents determines the first timestep, and
    only those of `steps` that are lower follow it.

    Args:
        mode: what the chunk is generated from.
        steps: the request's timesteps or the pipeline's own, falling.
        noise_scale: share of noise in the latents, 0..1; video mode only.
        offset: how far below the share of noise the first timestep lies; video mode only.

    Returns:
        The timesteps; none if the first would be 0, so that the source is returned unchanged.
    """
    if mode is Mode.TEXT:
        return tuple(steps)
    first = max(0, math.floor(NUM_TIMESTEPS * noise_scale + _ROUNDING) - offset)
    return (first, *(step for step in steps if step < first)) if first > 0 else ()


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Clean latents from noisy ones and their velocity, in the type of the noisy ones; computed in float64."""
    return (x_t.double() - sigma * velocity.double()).to(x_t.dtype)


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents with a share `sigma` of noise, in their own type; computed in float64."""
    return ((1 - sigma) * x0.double() + sigma * noise.double()).to(x0.dtype)


# -- Noise --------------------------------------------------------------------------------------------------


class ChunkNoise:
    """The noise of one chunk, in the order in which it is drawn: the initial noise, then one for each renoising.

    It only depends on the seed and the chunk's position, not on what ran before. It is drawn on the CPU in float32 and
    then moved, so that it is the same for every device.

    Args:
        seed: of the generation or the chunk.
        latent_index: of the chunk's first latent frame in the generation, resets not counted.
        shape: of each draw, [1, C, T, H, W].
        device: of the noise.
    """

    def __init__(
        self, seed: int, latent_index: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed + latent_index)
        self._shape = shape
        self._device = device

    def draw(self) -> Tensor:
        """The next noise, normally distributed."""
        return to_device(torch.randn(self._shape, generator=self._generator, dtype=torch.float32), self._device)


def initial_latents(noise: Tensor, source: Tensor | None, noise_scale: float) -> Tensor:
    """The latents that denoising starts from, [1, C, T, H, W].

    Args:
        noise: the chunk's first draw.
        source: the input video's latents, None in text mode.
        noise_scale: share of noise in video mode, 0..1; 0 gives exactly the source.
    """
    return noise if source is None else renoise(source, noise, noise_scale)


# -- The noise controller: less noise where the input moves -------------------------------------------------


def motion(frames: Tensor, num_last: int, previous: Tensor | None = None) -> float:
    """The strongest motion, 0..1, towards any of a chunk's last pixel frames.

    Args:
        frames: the chunk's input, [1, 3, F, H, W] in -1..1.
        num_last: the number of frames to look at, which is the number of latent frames of a chunk.
        previous: the last frame of the previous chunk, [1, 3, 1, H, W]; used if the chunk is too short to have a frame
            before those.
    """
    seen = frames if previous is None else torch.cat([previous, frames], dim=2)
    seen = seen[:, :, -(num_last + 1) :].float()
    if seen.shape[2] < 2:
        return 0.0
    difference = seen.diff(dim=2).square().mean(dim=(0, 1, 3, 4)).sqrt()  # [F]
    return min(1.0, float(difference.max()) / _FULL_MOTION)


def controlled_noise_scale(motion: float, noise_scale: float) -> float:
    """The noise scale at a motion of 0..1; the request's own has a weight of a tenth."""
    return (1 - _REQUEST_SHARE) * (_SCALE_STILL - _SCALE_DROP * motion) + _REQUEST_SHARE * noise_scale
