"""From timesteps to sigmas, which timesteps a chunk passes, and the arithmetic of one step.

Flow matching: latents at sigma are (1 - sigma) * x0 + sigma * noise, and the network predicts noise - x0.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from torch import Tensor

from filmstrip.contract import Mode

NUM_TIMESTEPS = 1000
_ROUNDING = 1e-6  # 1 - 0.9 is a little less than 0.1: such a noise scale still is the 100th timestep


class SigmaTable:
    """The sigmas that a network was trained on: 1000 of them, even ones warped towards noise by the shift.

    Source:
        Wan2.1's flow matching scheduler.
    """

    def __init__(self, shift: float) -> None:
        even = [(NUM_TIMESTEPS - index) / NUM_TIMESTEPS for index in range(NUM_TIMESTEPS)]
        self.sigmas = tuple(shift * s / (1 + (shift - 1) * s) for s in even)
        """Falling, from 1 on."""

    def at(self, timestep: float) -> float:
        """The sigma whose timestep, 1000 * sigma, is nearest to this one, which need not be whole."""
        after = bisect_left(self.sigmas, -timestep, key=lambda sigma: -NUM_TIMESTEPS * sigma)
        around = self.sigmas[max(0, after - 1) : after + 1]
        return min(around, key=lambda sigma: abs(NUM_TIMESTEPS * sigma - timestep))


def chunk_steps(mode: Mode, steps: Sequence[float], noise_scale: float, offset: int = 0) -> tuple[float, ...]:
    """The timesteps that a chunk passes, falling.

    In text mode they are those asked for. In video mode the first follows the share of noise in the latents, and
    of those asked for only the ones below it come after.

    Args:
        mode: what the chunk is made from.
        steps: the request's timesteps or the pipeline's own, falling.
        noise_scale: share of noise in the latents, 0..1; video mode only.
        offset: how far below the share of noise the first timestep lies; video mode only.

    Returns:
        None at all where the first would be 0: there is nothing to remove, and the source comes back.
    """
    if mode is Mode.TEXT:
        return tuple(steps)
    first = max(0, math.floor(NUM_TIMESTEPS * noise_scale + _ROUNDING) - offset)
    return (first, *(step for step in steps if step < first)) if first > 0 else ()


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The clean latents that a prediction points at, in the type of the noisy ones; computed in float64."""
    return (x_t.double() - sigma * velocity.double()).to(x_t.dtype)


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents with a share `sigma` of noise, in their own type; computed in float64."""
    return ((1 - sigma) * x0.double() + sigma * noise.double()).to(x0.dtype)
