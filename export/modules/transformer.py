"""Wan's transformer made causal: it denoises a few latent frames, which see the keys and values of earlier ones.

Source: the Wan2.1 technical report for the network, CausVid and Self-Forcing for the cache.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.config import CheckpointConfig
from export.modules.layers import (
    LayerNorm,
    Linear,
    Mlp,
    PatchEmbedding,
    PositionEmbedding,
    RmsNorm,
    TimedNetwork,
    gate,
    join_heads,
    layer_norm,
    modulate,
    rotate,
    split_heads,
    with_diffs,
)


class Rope(NamedTuple):
    """Tables of a chunk's tokens, [L, D / 2]; if keys are cached before RoPE, also of the cached ones, [P, D / 2]."""

    cos: Tensor
    sin: Tensor
    past_cos: Tensor | None = None
    past_sin: Tensor | None = None


class SelfAttention(nn.Module):
    """Attention of the chunk's tokens to each other and to the cached ones."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.cache_before_rope = config.rope_positions == "window"
        self.q, self.k, self.v, self.o = (Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q = RmsNorm(config.dim, config.eps)
        self.norm_k = RmsNorm(config.dim, config.eps)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        past: tuple[Tensor, Tensor] | None,
        score_bias: Tensor | None,
        lora_scales: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens' update [B, L, C], and their keys and values [B, N, L, D] to cache."""
        q = split_heads(self.norm_q(self.q(x, lora_scales), lora_scales), self.num_heads)
        k = split_heads(self.norm_k(self.k(x, lora_scales), lora_scales), self.num_heads)
        v = split_heads(self.v(x, lora_scales), self.num_heads)
        q = rotate(q, rope.cos, rope.sin)
        rotated = rotate(k, rope.cos, rope.sin)
        new_k, new_v = k if self.cache_before_rope else rotated, v
        if past is not None:
            past_k, past_v = past
            if rope.past_cos is not None and rope.past_sin is not None:
                past_k = rotate(past_k, rope.past_cos, rope.past_sin)
            rotated = torch.cat([past_k, rotated], dim=2)
            v = torch.cat([past_v, v], dim=2)
        attended = F.scaled_dot_product_attention(q, rotated, v, attn_mask=score_bias)
        return self.o(join_heads(attended), lora_scales), new_k, new_v


class CrossAttention(nn.Module):
    """Attention to the text, whose keys and values `TextKv` has computed."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.o = (Linear(config.dim, config.dim) for _ in range(2))
        self.norm_q = RmsNorm(config.dim, config.eps)

    def forward(self, x: Tensor, text_k: Tensor, text_v: Tensor, lora_scales: Tensor | None) -> Tensor:
        """Tokens [B, L, C], text_k and text_v [B, N, Lt, D], to the tokens' update [B, L, C]."""
        q = split_heads(self.norm_q(self.q(x, lora_scales), lora_scales), self.num_heads)
        return self.o(join_heads(F.scaled_dot_product_attention(q, text_k, text_v)), lora_scales)


class Block(nn.Module):
    """One layer: self-attention, cross-attention, feed-forward; the first and last modulated by the timestep."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = Mlp(config.dim, config.ffn_dim, config.dim, nn.GELU(approximate="tanh"))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: tuple[Tensor, Tensor],
        rope: Rope,
        past: tuple[Tensor, Tensor] | None = None,
        score_bias: Tensor | None = None,
        lora_scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, L, C] and their frames' modulation [B, T, 6, C] to tokens, keys and values."""
        shift, scale, gate_attn, shift_ffn, scale_ffn, gate_ffn = (
            modulation + with_diffs(self, "modulation", lora_scales)
        ).unbind(2)
        update, k, v = self.self_attn(
            modulate(layer_norm(x, self.eps), shift, scale), rope, past, score_bias, lora_scales
        )
        x = x + gate(update, gate_attn)
        x = x + self.cross_attn(self.norm3(x, lora_scales), *text, lora_scales)
        update = self.ffn(modulate(layer_norm(x, self.eps), shift_ffn, scale_ffn), lora_scales)
        return x + gate(update, gate_ffn), k, v


class Head(nn.Module):
    """Tokens to the values of their patches."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.eps = config.eps
        rows, columns = config.patch_size[1:]
        self.head = Linear(config.dim, rows * columns * config.out_channels)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, embedding: Tensor, lora_scales: Tensor | None) -> Tensor:
        """Tokens [B, L, C] and the time embedding [B, T, C] to [B, L, patch]."""
        shift, scale = (embedding.unsqueeze(2) + with_diffs(self, "modulation", lora_scales)).unbind(2)
        return self.head(modulate(layer_norm(x, self.eps), shift, scale), lora_scales)


class CausalTransformer(TimedNetwork):
    """The velocity (noise - x0) of a chunk's latents, and the keys and values that the next chunks may see.

    Module and parameter names are those of Wan's checkpoints. Keys and values of the text are left to `TextKv`.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__(config.dim, config.freq_dim)
        self.patch_size = config.patch_size
        self.hint_of_layer = {layer: hint for hint, layer in enumerate(config.vace_layers)}
        patch = config.patch_size
        self.patch_embedding = PatchEmbedding(config.in_channels, config.dim, patch)
        self.position_embedding = PositionEmbedding(config.dim) if config.position_embedding else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        rope: Rope,
        past_k: Tensor | None = None,
        past_v: Tensor | None = None,
        past_bias: Tensor | None = None,
        hints: Tensor | None = None,
        lora_scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the velocity of a chunk once.

        Args:
            latents: [B, C, T, H, W].
            timesteps: float32 [B, T], 0 to 1000.
            text_k: the text's keys, [layers, B, N, Lt, D].
            text_v: the text's values, the same.
            rope: the tables of `rope_tables`.
            past_k: cached keys, [layers, B, N, P, D], in any order; P may be 0.
            past_v: cached values, the same.
            past_bias: added to the attention scores of cached tokens, [P]: 0 for a token that is simply seen, log(b) to
                weaken or strengthen it (`kv_cache_attention_bias` outside the sink), -inf for an empty place.
            hints: what VACE adds to the outputs of its layers, [vace_layers, B, L, C].
            lora_scales: one scale per adapter, [A].

        Returns:
            The velocity [B, C, T, H, W]; the chunk's keys and values, each [layers, B, N, L, D].
        """
        embedding, modulation = self.embed_time(timesteps, lora_scales)
        x = self.embed(latents, lora_scales)

        # One row for all heads and queries: the biases of the cached tokens, then none for the chunk's own.
        score_bias = None
        if past_bias is not None:
            score_bias = torch.cat([past_bias.to(x.dtype), x.new_zeros(x.shape[1])]).expand(1, 1, x.shape[1], -1)

        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            past = None if past_k is None or past_v is None else (past_k[layer], past_v[layer])
            text = (text_k[layer], text_v[layer])
            x, k, v = block(x, modulation, text, rope, past, score_bias, lora_scales)
            if hints is not None and layer in self.hint_of_layer:
                x = x + hints[self.hint_of_layer[layer]]
            keys.append(k)
            values.append(v)

        return self.predict(x, embedding, latents, lora_scales), torch.stack(keys), torch.stack(values)

    def embed(self, latents: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """[B, C, T, H, W] to the tokens that the blocks take, [B, L, C]."""
        return embed_latents(latents, self.patch_embedding, self.position_embedding, lora_scales)

    def predict(self, x: Tensor, embedding: Tensor, latents: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """The velocity, in the latents' shape, from the last block's tokens and the embedding of the timesteps."""
        batch, _, num_frames, height, width = latents.shape
        _, patch_h, patch_w = self.patch_size
        patches = self.head(x, embedding, lora_scales)
        patches = patches.reshape(batch, num_frames, height // patch_h, width // patch_w, patch_h, patch_w, -1)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, num_frames, height, width)


def embed_latents(
    latents: Tensor,
    patch_embedding: PatchEmbedding,
    position_embedding: PositionEmbedding | None,
    lora_scales: Tensor | None = None,
) -> Tensor:
    """Latents [B, C, T, H, W] to tokens [B, L, C], with the position embedding added if there is one."""
    patches = patch_embedding(latents, lora_scales)  # [B, C, T, rows, cols]
    x = patches.flatten(2).transpose(1, 2)
    return x if position_embedding is None else position_embedding(x, *patches.shape[2:])


class CrossKv(nn.Module):
    """Keys and values of the text for one layer's cross-attention."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.k, self.v = (Linear(config.dim, config.dim) for _ in range(2))
        self.norm_k = RmsNorm(config.dim, config.eps)

    def forward(self, text: Tensor, lora_scales: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, Lt, C] to keys and values, each [B, N, Lt, D]."""
        k = self.norm_k(self.k(text, lora_scales), lora_scales)
        return split_heads(k, self.num_heads), split_heads(self.v(text, lora_scales), self.num_heads)


class TextKv(nn.Module):
    """Embeddings of the text encoder to keys and values for every layer: run once per prompt, not once per step.

    The transformer's layers are `blocks` in a checkpoint, those of its VACE branch `vace_blocks`: one module for each.
    """

    def __init__(self, config: CheckpointConfig, *, vace: bool = False) -> None:
        super().__init__()
        self.text_embedding = Mlp(config.text_dim, config.dim, config.dim, nn.GELU(approximate="tanh"))
        num_layers = len(config.vace_layers) if vace else config.num_layers
        self._layers = "vace_blocks" if vace else "blocks"
        layers = (nn.ModuleDict({"cross_attn": CrossKv(config)}) for _ in range(num_layers))
        self.add_module(self._layers, nn.ModuleList(layers))

    def forward(self, text: Tensor, lora_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings [B, Lt, text_dim] to keys and values, each [layers, B, N, Lt, D]."""
        text = self.text_embedding(text, lora_scales)
        pairs = [layer["cross_attn"](text, lora_scales) for layer in getattr(self, self._layers)]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])
