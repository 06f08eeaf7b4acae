"""Latents that the generator makes in training: the sampler of the runtime for many clips at once, without engines."""

from collections.abc import Sequence

import torch
from torch import Tensor

from export.modules.transformer import CausalTransformer, Rope
from filmstrip.runtime.transformer import FrameWindow, PassSpan, rope_tables
from research.one_pass import Text

Step = tuple[float, float]
"""A timestep and its sigma."""


class Rollout:
    """One video a sequence of the batch, chunk by chunk.

    Args:
        transformer: whose keys are cached after RoPE.
        window: of the model.
        steps: of the denoising, falling.
        random: of all noise.
    """

    def __init__(
        self, transformer: CausalTransformer, window: FrameWindow, steps: Sequence[Step], random: torch.Generator
    ) -> None:
        self._transformer = transformer
        self._window = window
        self._steps = steps
        self._random = random
        self._cached: dict[int, tuple[Tensor, Tensor]] = {}
        self._latents: list[Tensor] = []

    @property
    def latents(self) -> Tensor:
        """All that was made, [B, C, T, H, W]."""
        return torch.cat(self._latents, dim=2)

    def make(self, shape: Sequence[int], text: Text) -> None:
        """Denoise the next chunk, [B, C, T, H, W], and cache it."""
        span = self._window.chunk(self._num_frames, shape[2])
        x0 = torch.zeros(*shape)
        for step, sigma in self._steps:
            noisy = (1 - sigma) * x0 + sigma * torch.randn(*shape, generator=self._random)
            velocity, _, _ = self._run(span, noisy, step, text)
            x0 = noisy - sigma * velocity
        self.given(x0, text)

    def given(self, latents: Tensor, text: Text) -> None:
        """Take latents as the next chunk's, and cache them."""
        span = self._window.chunk(self._num_frames, latents.shape[2])
        self._latents.append(latents)
        self._cache(span, self._run(span, latents, 0.0, text))

    def recache(self, text: Text) -> None:
        """Compute the cache again under another text."""
        span = self._window.recache(self._num_frames)
        if span is not None:
            self._cache(span, self._run(span, self.latents[:, :, span.first_frame :], 0.0, text))

    @property
    def _num_frames(self) -> int:
        return sum(part.shape[2] for part in self._latents)

    def _run(self, span: PassSpan, latents: Tensor, step: float, text: Text) -> tuple[Tensor, Tensor, Tensor]:
        rows, cols = (
            side // patch for side, patch in zip(latents.shape[3:], self._transformer.patch_size[1:], strict=True)
        )
        tables = rope_tables(text[0].shape[-1], torch.tensor(span.absolute_positions), rows, cols)
        past: list[Tensor | None] = [None, None]
        if span.seen:
            past = [torch.cat([self._cached[frame][part] for frame in span.seen], dim=3) for part in (0, 1)]
        timesteps = torch.full((len(latents), span.num_frames), step)
        velocity, k, v = self._transformer(latents, timesteps, *text, Rope(*tables), *past)
        return velocity.float(), k, v

    def _cache(self, span: PassSpan, made: tuple[Tensor, Tensor, Tensor]) -> None:
        _, k, v = made
        frames = range(span.first_frame, span.end)
        self._cached |= dict(
            zip(frames, zip(k.chunk(span.num_frames, 3), v.chunk(span.num_frames, 3), strict=True), strict=True)
        )
