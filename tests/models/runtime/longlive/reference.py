"""A generation by the slow way: networks called by themselves, a cache of lists, videos coded in one piece.

It shares with the runtime nothing but the networks and the tables of RoPE.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from export.config import CheckpointConfig
from export.modules.transformer import Rope
from tests.models.export.references import ListCache, tables_at
from tests.models.runtime.longlive.pipeline import Tiny

Hints = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents and their timesteps to what VACE adds to the layers' outputs, [vace_layers, 1, L, C]."""


class Reference:
    """One sequence; each method says what a chunk does, nothing is concluded from requests.

    Attributes:
        latents: the clean latents of each chunk since the last reset.
    """

    def __init__(self, tiny: Tiny) -> None:
        self.networks = tiny.networks
        self.config: CheckpointConfig = tiny.config
        self.tokenize = tiny.tokenize
        self.num_before = 0  # latent frames before the last reset
        self.reset()

    def reset(self) -> None:
        self.num_before += sum(part.shape[2] for part in getattr(self, "latents", []))
        self.cache = ListCache(self.config, self.networks.transformer)
        self.latents: list[Tensor] = []

    @torch.no_grad()
    def embedding(self, prompt: str) -> Tensor:
        ids, mask = map(torch.from_numpy, self.tokenize(prompt))
        assert self.networks.text_encoder is not None
        return self.networks.text_encoder(ids, mask)

    @torch.no_grad()
    def chunk(
        self,
        embedding: Tensor,
        *,
        num_latents: int = 3,
        recache: bool = False,
        source: Tensor | None = None,
        noise_scale: float = 1.0,
        steps: Sequence[float] = (1000, 937.5, 833.33, 625),
        seed: int = 42,
        factor: float = 1.0,
        scales: Tensor | None = None,
        hints: Hints | None = None,
    ) -> None:
        """Make one chunk and remember it."""
        text = self.networks.text_kv(embedding, scales)
        self._network(scales)
        if recache:
            self.cache.recache(torch.cat(self.latents, dim=2), text)
        made = self.num_before + sum(part.shape[2] for part in self.latents)
        generator = torch.Generator().manual_seed(seed + made)
        shape = (1, self.config.in_channels, num_latents, 4, 6)
        noise = torch.randn(shape, generator=generator)
        x = noise if source is None else noise_scale * noise + (1 - noise_scale) * source
        for step, timestep in enumerate(steps):
            sigma = _sigma(timestep, self.config.timestep_shift)
            if step > 0:
                x = (1 - sigma) * x + sigma * torch.randn(shape, generator=generator)
            timesteps = torch.full((1, num_latents), float(timestep))
            self._network(scales, None if hints is None else hints(x, timesteps))
            before = list(self.cache.frames)
            x = x - sigma * self.cache.chunk(x, timesteps, text, factor)
            self.cache.frames = before
        self._network(scales)
        self.cache.chunk(x, torch.zeros(1, num_latents), text)
        self.latents.append(x)

    def _network(self, scales: Tensor | None, hints: Tensor | None = None) -> None:
        self.cache.ours = partial(self.networks.transformer, hints=hints, lora_scales=scales)

    @torch.no_grad()
    def hints(self, embedding: Tensor, context: Tensor, *, scale: float = 1.0, scales: Tensor | None = None) -> Hints:
        """What VACE makes of a context [1, 72, R + T, h, w]."""
        vace, text_kv = self.networks.vace, self.networks.vace_text_kv
        assert vace is not None
        assert text_kv is not None
        num_frames = context.shape[2]
        text = text_kv(embedding, scales)
        tables = tables_at(self.config, range(num_frames), ())
        tables = Rope(tables.cos, tables.sin)

        def of(latents: Tensor, timesteps: Tensor) -> Tensor:
            timesteps = timesteps[:, :1].expand(1, num_frames)
            return vace(latents, timesteps, context, *text, tables, torch.tensor([scale]), scales)

        return of

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of 1 + 4 k frames [1, 3, F, H, W] in one piece."""
        return self.networks.vae_encoder(pixels)[0]

    @torch.no_grad()
    def frames(self) -> np.ndarray:
        """All frames since the last reset, decoded in one piece."""
        return to_uint8(self.networks.vae_decoder(torch.cat(self.latents, dim=2))[0])


def _sigma(timestep: float, shift: float) -> float:
    s = np.arange(1000, 0, -1) / 1000
    sigmas = shift * s / (1 + (shift - 1) * s)
    return float(sigmas[np.abs(sigmas - timestep / 1000).argmin()])


def to_pixels(frames: np.ndarray) -> Tensor:
    """[F, H, W, 3] of 0..255 to [1, 3, F, H, W] of -1..1."""
    return torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None].contiguous()


def to_uint8(pixels: Tensor) -> np.ndarray:
    levels = ((pixels[0].permute(1, 2, 3, 0) + 1) * 127.5).round()
    return levels.clamp(0, 255).numpy().astype(np.uint8)


def assert_same(ours: Sequence[np.ndarray], theirs: np.ndarray) -> None:
    """Frames of chunks are those of the whole video, but for what rounding to whole levels makes of the last digits."""
    joined = np.concatenate(ours).astype(int)
    assert joined.shape == theirs.shape
    difference = np.abs(joined - theirs)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < difference.size / 1000
