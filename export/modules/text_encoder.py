"""UMT5's encoder: what a prompt's tokens mean, as Wan's transformer expects it.

Source: the T5 and UniMax (UMT5) papers. Of T5 it keeps the norm without a mean, scores that are not scaled, and learned
biases on them by distance instead of positions; its own is that every layer has biases of its own. Weights have the
names that they have in Wan's checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.config import TextEncoderConfig
from export.modules.layers import Linear, RmsNorm, join_heads, split_heads


class Embedding(nn.Module):
    """A table of rows, initially zero: `nn.Embedding` would draw a billion random numbers for nothing."""

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_rows, dim))

    def forward(self, indexes: Tensor) -> Tensor:
        """[...] to [..., dim]."""
        return F.embedding(indexes, self.weight)


class DistanceBias(nn.Module):
    """A layer's biases on its scores, one for each head and bucket of distances."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config.num_buckets, config.num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """[L, L] to [1, N, L, L]."""
        return self.embedding(buckets).permute(2, 0, 1).unsqueeze(0)


class Attention(nn.Module):
    """Bidirectional attention among the prompt's tokens."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.head_dim
        self.q, self.k, self.v = (Linear(config.dim, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, config.dim, bias=False)

    def forward(self, x: Tensor, score_bias: Tensor) -> Tensor:
        """Tokens [B, L, C] and the bias on their scores [B, N, L, L] to the tokens' update."""
        q, k, v = (split_heads(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return self.o(join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=score_bias, scale=1.0)))


class GatedMlp(nn.Module):
    """Feed-forward layers in which one branch gates the other."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(Linear(config.dim, config.ffn_dim, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] to the same."""
        return self.fc2(self.fc1(x) * self.gate(x))


class EncoderBlock(nn.Module):
    """One layer: attention and feed-forward."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = RmsNorm(config.dim, config.eps)
        self.attn = Attention(config)
        self.norm2 = RmsNorm(config.dim, config.eps)
        self.ffn = GatedMlp(config)
        self.pos_embedding = DistanceBias(config)

    def forward(self, x: Tensor, buckets: Tensor, is_padding: Tensor) -> Tensor:
        """Tokens [B, L, C], buckets [L, L] of their distances and padding [B, 1, 1, L] to tokens."""
        # The lowest number instead of minus infinity, so that a prompt without a single token yields no NaN.
        bias = self.pos_embedding(buckets)
        x = x + self.attn(self.norm1(x), bias.masked_fill(is_padding, torch.finfo(bias.dtype).min))
        return x + self.ffn(self.norm2(x))


class TextEncoder(nn.Module):
    """Token ids to embeddings, zero beyond the prompt's end.

    For float32 and bfloat16. It runs in float16 too, but T5's sums over the layers are known to pass its 65504.

    Args:
        config: the encoder's sizes.
        text_len: most tokens of a prompt, padding included.
    """

    buckets: Tensor

    def __init__(self, config: TextEncoderConfig, text_len: int) -> None:
        super().__init__()
        self.token_embedding = Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.dim, config.eps)
        self.register_buffer(
            "buckets", distance_buckets(text_len, config.num_buckets, config.max_distance), persistent=False
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids [B, Lt] and mask [B, Lt], both int64 and the mask 1 at a token, to [B, Lt, text_dim]."""
        is_padding = mask == 0
        length = ids.shape[1]
        x = self.token_embedding(ids)  # [B, Lt, C]
        for block in self.blocks:
            x = block(x, self.buckets[:length, :length], is_padding[:, None, None, :])
        return self.norm(x).masked_fill(is_padding.unsqueeze(-1), 0)


def distance_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of the distance from each token to each, int64 [length, length].

    Half the buckets are for what lies ahead. Of each half, one half holds a distance each, the other spans that grow
    with the logarithm; `max_distance` and all beyond it share the last.
    """
    places = torch.arange(length)
    ahead = places - places.unsqueeze(1)  # from the row's token to the column's
    distance = ahead.abs()
    half = num_buckets // 2
    exact = half // 2
    # In float32, with these operations in this order: at a span's edge another rounding would be another bucket.
    spans = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + spans.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (ahead > 0)
