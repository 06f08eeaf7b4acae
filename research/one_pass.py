"""The causal transformer on clean history and noisy chunks in one pass: exactly what the cached sampler computes.

Attention runs chunk by chunk on slices: what a mask would hide is not computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from export.modules.layers import gate, join_heads, layer_norm, modulate, rotate, split_heads
from export.modules.transformer import Block, CausalTransformer, Rope
from filmstrip.runtime.transformer import rope_tables
from research.layouts import Layout

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
    # Split once and joined again: the backward pass of a slice would fill the whole with zeros, once for each slice.
    lengths = [one.num_frames * tokens for one in layout.passes]
    seen = zip(_seen(layout, k, tokens), _seen(layout, v, tokens), strict=True)
    attended = [attention(part, *past) for part, past in zip(q.split(lengths, dim=2), seen, strict=True)]
    x, q = _to_cross_attention(block, x, modulation, torch.cat(attended, dim=2))
    lengths = [(end - first) * tokens for first, end, _ in layout.caption_runs]
    parts = zip(q.split(lengths, dim=2), layout.caption_runs, strict=True)
    attended = [attention(part, *texts[caption]) for part, (_, _, caption) in parts]
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


def _seen(layout: Layout, x: Tensor, tokens: int) -> list[Tensor]:
    """What each pass attends to of keys or values [B, N, L, D]."""
    frames = x.split(tokens, dim=2)
    return [torch.cat([frames[at] for span in one.sees for at in range(*span)], dim=2) for one in layout.passes]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, [B, N, L, D]: for so few tokens faster on a CPU than the fused one with its backward pass."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return scores.softmax(dim=-1).to(v.dtype) @ v
