"""The causal transformer by other ways: in one pass under a mask, and with a cache of plain lists."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from export.config import CheckpointConfig
from export.modules.transformer import CausalTransformer, Rope
from filmstrip.runtime.transformer import rope_tables
from tests.models.export.networks import HEIGHT, TOKENS, WIDTH

Text = tuple[Tensor, Tensor]


def one_pass(
    ours: CausalTransformer, latents: Tensor, timesteps: Tensor, text: Text, tables: Rope, bias: Tensor
) -> Tensor:
    """Velocities of all latent frames at once, under a bias [L, L] on the scores of each token (row) to each."""
    embedding, modulation = ours.embed_time(timesteps)
    x = ours.patch_embedding(latents).flatten(2).transpose(1, 2)
    for layer, block in enumerate(ours.blocks):
        x, _, _ = block(x, modulation, (text[0][layer], text[1][layer]), tables, None, bias)
    patches = ours.head(x, embedding, None).reshape(1, latents.shape[2], HEIGHT // 2, WIDTH // 2, 2, 2, -1)
    return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape)


def block_causal_bias(config: CheckpointConfig, lengths: Sequence[int], factor: float = 1.0) -> Tensor:
    """What chunks of these lengths see: themselves, the sink, the latest frames that fit in the window; [L, L].

    0 is seen and -inf is not; log(factor) stands for frames of earlier chunks outside the sink.
    """
    num_frames = sum(lengths)
    bias = torch.full((num_frames, num_frames), -math.inf)
    first = 0
    for length in lengths:
        end = first + length
        bias[first:end, max(0, end - (config.window - config.sink)) : first] = math.log(factor)
        bias[first:end, : min(config.sink, first)] = 0
        bias[first:end, first:end] = 0
        first = end
    return bias.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)


def tables_at(config: CheckpointConfig, own: Sequence[int], past: Sequence[int]) -> Rope:
    """RoPE tables of latent frames at these positions; the cached ones' only where keys are cached before RoPE."""
    cached_before = config.rope_positions == "window"
    tables = [
        table
        for positions in ((own, past) if cached_before else (own,))
        for table in rope_tables(config.head_dim, torch.tensor(positions), HEIGHT // 2, WIDTH // 2)
    ]
    return Rope(*tables)


class ListCache:
    """A cache that forgets nothing: one pair of keys and values [layers, B, N, TOKENS, D] for each latent frame.

    What is seen is picked and joined for each pass.
    """

    def __init__(self, config: CheckpointConfig, ours: CausalTransformer) -> None:
        self.config, self.ours = config, ours
        self.frames: list[tuple[Tensor, Tensor]] = []
        self.empty = torch.zeros(config.num_layers, 1, config.num_heads, 0, config.head_dim)

    def chunk(self, latents: Tensor, timesteps: Tensor, text: Text, factor: float = 1.0) -> Tensor:
        """The velocity of the next chunk, which is then cached."""
        first, end = len(self.frames), len(self.frames) + latents.shape[2]
        recent = end - (self.config.window - self.config.sink)
        seen = [frame for frame in range(first) if frame < self.config.sink or frame >= recent]
        factors = torch.tensor([1.0 if frame < self.config.sink else factor for frame in seen])
        velocity, new = self._run(latents, timesteps, text, range(first, end), seen, past_bias=factors.log())
        self.frames += new
        return velocity

    def recache(self, latents: Tensor, text: Text) -> None:
        """Run the last frames of all `latents` again, as many as the window holds, and put them in their places.

        If there are more than the window holds, the sink stays and they see it; then only those are run that fit in the
        window with it.
        """
        made, window, sink = len(self.frames), self.config.window, self.config.sink
        if not self.config.global_sink and made > window:
            first = made - window
            clean, timesteps = latents[:, :, first:made], torch.zeros(1, window)
            _, new = self._run(clean, timesteps, text, range(first, made), ())
            self.frames[first:] = new
            self.frames[:sink] = new[:sink]
            return
        sink_stays = made > window
        first = made - (window - sink) if sink_stays else 0
        clean, timesteps = latents[:, :, first:made], torch.zeros(1, made - first)
        _, new = self._run(clean, timesteps, text, range(first, made), range(sink) if sink_stays else ())
        self.frames[first:] = new

    def _run(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Text,
        frames: range,
        seen: Sequence[int],
        **biases: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        positions: Sequence[int] = frames
        if self.config.rope_positions == "window":
            # One after the other behind those that are seen, or, where they are too many, up to the window's end.
            end = min(self.config.window, len(seen) + len(frames))
            positions = range(end - len(frames), end)
        k, v = (torch.cat([self.empty, *(self.frames[frame][part] for frame in seen)], dim=3) for part in (0, 1))
        per_token = {name: bias.repeat_interleave(TOKENS) for name, bias in biases.items()}
        tables = tables_at(self.config, positions, range(len(seen)))
        velocity, new_k, new_v = self.ours(latents, timesteps, *text, tables, k, v, **per_token)
        return velocity, list(zip(new_k.split(TOKENS, dim=3), new_v.split(TOKENS, dim=3), strict=True))


class AveragingCache(ListCache):
    """Reward-Forcing's cache: a list as long as the window, its first frames an average of what has left it.

    A chunk that finds no room first puts out the oldest frames after the sink. As many as the sink has are averaged
    into it. Keys have no positions; each pass counts them from the list's start.
    """

    DECAY = 0.999

    def chunk(self, latents: Tensor, timesteps: Tensor, text: Text, factor: float = 1.0) -> Tensor:
        sink, num_new = self.config.sink, latents.shape[2]
        num_out = len(self.frames) + num_new - self.config.window
        if num_out > 0:
            out = self.frames[sink : sink + num_out]
            assert len(out) == sink
            averages = [
                tuple(self.DECAY * old + (1 - self.DECAY) * new for old, new in zip(*pair, strict=True))
                for pair in zip(self.frames[:sink], out, strict=True)
            ]
            self.frames = [*averages, *self.frames[sink + num_out :]]
        seen = range(len(self.frames))
        factors = torch.tensor([1.0 if place < sink else factor for place in seen])
        own = range(len(seen), len(seen) + num_new)
        velocity, new = self._run(latents, timesteps, text, own, seen, past_bias=factors.log())
        self.frames = [*self.frames, *new]
        return velocity


def chunk_by_chunk(
    config: CheckpointConfig,
    ours: CausalTransformer,
    latents: Tensor,
    timesteps: Tensor,
    text: Text,
    lengths: Sequence[int],
    factor: float = 1.0,
) -> Tensor:
    """Velocities of chunks of these lengths, each of which sees the cache of lists."""
    cache = ListCache(config, ours)
    parts = zip(latents.split(lengths, dim=2), timesteps.split(lengths, dim=1), strict=True)
    return torch.cat([cache.chunk(*part, text, factor) for part in parts], dim=2)
