"""How much noise each place of a layout gets, and the noise level that the model sees."""

import torch
from torch import Tensor

from export.config import CheckpointConfig
from filmstrip.runtime.longlive import NUM_TIMESTEPS, SigmaTable
from research.layouts import Layout

_SHARE_OF_OWN_STEPS = 0.7
_CLEAN_HISTORY = 0.5
_MOST_LOW, _STRONG_LOW = 0.8, 0.5


class NoiseLevels:
    """Draws timesteps and sigmas.

    Args:
        config: of the model: most noisy chunks have one of its own timesteps.
        context_noise: the most noise that history has, half of the time.
    """

    def __init__(self, config: CheckpointConfig, context_noise: float) -> None:
        table = SigmaTable(config.timestep_shift)
        self._shift = config.timestep_shift
        self._own_steps = torch.tensor([(step, table.at(step)) for step in config.text_steps])
        self._context_noise = context_noise

    def draw(
        self, layout: Layout, batch: int, random: torch.Generator, *, only_low: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Timesteps [B, P], and sigmas [B, 1, P, 1, 1]: history has some noise that no timestep tells of."""
        timesteps = torch.zeros(batch, len(layout.frames))
        sigmas = torch.zeros(batch, len(layout.frames))
        level = torch.rand(batch, 1, generator=random)
        has_noise = torch.rand(batch, 1, generator=random) > _CLEAN_HISTORY
        sigmas[:, : layout.num_clean] = self._context_noise * level * has_noise
        for one in layout.noisy:
            step, sigma = self._chunk_levels(batch, random, only_low=only_low)
            timesteps[:, one.first : one.end] = step.unsqueeze(1)
            sigmas[:, one.first : one.end] = sigma.unsqueeze(1)
        return timesteps, sigmas[:, None, :, None, None]

    def _chunk_levels(self, batch: int, random: torch.Generator, *, only_low: bool) -> tuple[Tensor, Tensor]:
        even = torch.rand(batch, generator=random).clamp(min=1 / NUM_TIMESTEPS)
        if only_low:
            # Half of them as strong as what a first step of video-to-video meets: all else follows from it.
            least = _STRONG_LOW * (torch.rand(batch, generator=random) < 0.5)
            low = least + (_MOST_LOW - least) * even
            return low * NUM_TIMESTEPS, low
        shifted = self._shift * even / (1 + (self._shift - 1) * even)
        free = torch.where(torch.rand(batch, generator=random) < 0.5, shifted, even)
        own = self._own_steps[torch.randint(len(self._own_steps), (batch,), generator=random)]
        is_own = torch.rand(batch, generator=random) < _SHARE_OF_OWN_STEPS
        return torch.where(is_own, own[:, 0], free * NUM_TIMESTEPS), torch.where(is_own, own[:, 1], free)
