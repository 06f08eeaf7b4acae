"""The causal transformer on clean history and noisy chunks in one pass: exactly what the cached sampler computes.

Attention runs chunk by chunk on slices: what a mask would hide is not computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from export.modules.layers import gate, join_heads, layer_norm, modulate, split_heads
from export.modules.rope import rotate
from export.modules.transformer import Block, CausalTransformer, Rope
from filmstrip.runtime.rope_tables import rope_tables
from training.layouts import Layout, Pass

Text = tuple[Tensor, Tensor]
"""Keys and values of a caption, each [layers, B, N, Lt, D]."""


def velocities(
    transformer: CausalTransformer,
    layout: Layout,
    latents: Tensor,
    timesteps: Tensor,
    texts: Sequence[Text],
    *,
    hints: Tensor | None = None,
) -> Tensor:
    """What the transformer predicts of all frames of a layout.

    Args:
        transformer: whose keys are cached after RoPE.
        layout: of the step.
        latents: at each place of the layout, with their noise, [B, C, places, H, W].
        timesteps: float32 [B, places].
        texts: of the captions that the layout names.
        hints: what VACE adds to the outputs of its layers, [vace_layers, B, L, C]; zeros at clean places.

    Returns:
        Of the latents' shape; only that of the noisy places is worth anything.
    """
    rows, cols = (side // patch for side, patch in zip(latents.shape[3:], transformer.patch_size[1:], strict=True))
    blocks = cast("list[Block]", list(transformer.blocks))
    head_dim = texts[0][0].shape[-1]
    rope = Rope(*rope_tables(head_dim, torch.tensor(layout.positions), rows, cols))
    embedding, modulation = transformer.embed_time(timesteps)
    x = transformer.embed(latents)
    run = _Run(layout, rows * cols, rope)
    for layer, block in enumerate(blocks):
        x = _block(block, x, modulation, [(k[layer], v[layer]) for k, v in texts], run)
        if hints is not None and layer in transformer.hint_of_layer:
            x = x + hints[transformer.hint_of_layer[layer]]
    return transformer.predict(x, embedding, latents)


@dataclass(frozen=True)
class _Run:
    """What all blocks have in common."""

    layout: Layout
    tokens: int
    """Of a latent frame."""
    rope: Rope


def _block(block: Block, x: Tensor, modulation: Tensor, texts: Sequence[Text], run: _Run) -> Tensor:
    layout, tokens = run.layout, run.tokens
    modulation = modulation + block.modulation
    q, k, v = _to_self_attention(block, x, modulation, run.rope)
    attended = [
        attention(q[:, :, one.first * tokens : one.end * tokens], *_seen(one, k, v, tokens)) for one in layout.passes
    ]
    x, q = _to_cross_attention(block, x, modulation, torch.cat(attended, dim=2))
    attended = [
        attention(q[:, :, first * tokens : end * tokens], *texts[caption])
        for first, end, caption in layout.caption_runs
    ]
    return _after_attention(block, x, modulation, torch.cat(attended, dim=2))


def _to_self_attention(block: Block, x: Tensor, modulation: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
    part = block.self_attn
    y = modulate(layer_norm(x, block.eps), modulation[:, :, 0], modulation[:, :, 1])
    q = rotate(split_heads(part.norm_q(part.q(y)), part.num_heads), rope.cos, rope.sin)
    k = rotate(split_heads(part.norm_k(part.k(y)), part.num_heads), rope.cos, rope.sin)
    return q, k, split_heads(part.v(y), part.num_heads)


def _to_cross_attention(block: Block, x: Tensor, modulation: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    x = x + gate(block.self_attn.o(join_heads(attended)), modulation[:, :, 2])
    part = block.cross_attn
    return x, split_heads(part.norm_q(part.q(block.norm3(x))), part.num_heads)


def _after_attention(block: Block, x: Tensor, modulation: Tensor, attended: Tensor) -> Tensor:
    x = x + block.cross_attn.o(join_heads(attended))
    update = block.ffn(modulate(layer_norm(x, block.eps), modulation[:, :, 3], modulation[:, :, 4]))
    return x + gate(update, modulation[:, :, 5])


def _seen(one: Pass, k: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    parts = [slice(first * tokens, end * tokens) for first, end in one.sees]
    if len(parts) == 1:
        return k[:, :, parts[0]], v[:, :, parts[0]]
    return torch.cat([k[:, :, part] for part in parts], dim=2), torch.cat([v[:, :, part] for part in parts], dim=2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, [B, N, L, D]: for so few tokens faster on a CPU than the fused one with its backward pass."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return scores.softmax(dim=-1).to(v.dtype) @ v
