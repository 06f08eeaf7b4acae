"""Rotary positions: queries and keys turned by the angles of their tokens' places.

The tables of `filmstrip.runtime.transformer` are inputs of the networks. Who runs them decides at which positions the
latent frames stand: at their place in the video, or in the window.
"""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring numbers by its angle: x [B, N, L, D], cos and sin [L, D / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
