"""VACE: a branch of the transformer that turns conditioning frames into hints for its layers.

It has no cache and sees only the chunk. It is a graph of its own, so a chunk without conditioning does not pay for it.
Source: the VACE paper.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.config import CheckpointConfig
from export.modules.layers import Linear, PatchEmbedding, PositionEmbedding, TimedNetwork
from export.modules.transformer import Block, Rope, embed_latents


class VaceBlock(Block):
    """A layer like the transformer's, with a projection out of it, its hint; the first also has one into it."""

    def __init__(self, config: CheckpointConfig, *, first: bool) -> None:
        super().__init__(config)
        if first:
            self.before_proj = Linear(config.dim, config.dim)
        self.after_proj = Linear(config.dim, config.dim)


class VaceBranch(TimedNetwork):
    """Hints from conditioning latents and the chunk's noisy ones.

    It also needs weights of the transformer: the embeddings of the latents, their places and the timesteps.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__(config.dim, config.freq_dim)
        patch = config.patch_size
        self.patch_embedding = PatchEmbedding(config.in_channels, config.dim, patch)
        self.position_embedding = PositionEmbedding(config.dim) if config.position_embedding else None
        self.vace_patch_embedding = PatchEmbedding(config.vace_in_channels, config.dim, patch)
        self.vace_blocks = nn.ModuleList(
            VaceBlock(config, first=index == 0) for index in range(len(config.vace_layers))
        )

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        rope: Rope,
        scale: Tensor,
        lora_scales: Tensor | None = None,
    ) -> Tensor:
        """Compute the hints of one step.

        Args:
            latents: the chunk's noisy latents, [B, C, T, H, W].
            timesteps: float32 [B, R + T].
            context: the conditioning, [B, vace_in_channels, R + T, H, W]; its first R latent frames are references.
            text_k: keys of `TextKv(config, vace=True)`, [vace_layers, B, N, Lt, D].
            text_v: its values, the same.
            rope: tables of R + T latent frames, from position 0 on.
            scale: `vace_context_scale`, one number for all hints or one per layer, [1] or [vace_layers].
            lora_scales: one scale per adapter, [A].

        Returns:
            What to add to the outputs of the transformer's layers, [vace_layers, B, L, C]; references have none.
        """
        _, modulation = self.embed_time(timesteps, lora_scales)
        noisy = embed_latents(latents, self.patch_embedding, self.position_embedding, lora_scales)
        x = self.vace_patch_embedding(context, lora_scales).flatten(2).transpose(1, 2)
        # References have nothing to denoise: zeros after the embedding, because the embedding's bias is not zero.
        num_reference_tokens = x.shape[1] - noisy.shape[1]
        noisy = F.pad(noisy, (0, 0, num_reference_tokens, 0))

        blocks = cast("list[VaceBlock]", list(self.vace_blocks))
        x = blocks[0].before_proj(x, lora_scales) + noisy
        hints = []
        for index, block in enumerate(blocks):
            x, _, _ = block(x, modulation, (text_k[index], text_v[index]), rope, lora_scales=lora_scales)
            hints.append(block.after_proj(x, lora_scales)[:, num_reference_tokens:])
        return torch.stack(hints) * scale.reshape(-1, 1, 1, 1)
