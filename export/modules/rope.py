"""Rotary positions of a video's tokens: each head's numbers are split over time, height and width.

The tables are inputs of the networks. Who runs them decides at which positions the latent frames stand: at their
place in the video, or in the window.
"""

import torch
from torch import Tensor


def rope_tables(
    head_dim: int, frame_positions: Tensor, height: int, width: int, theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T * height * width, head_dim / 2] in float32.

    Args:
        head_dim: numbers of one head, D; time takes D - 4 * (D // 6) of them, height and width 2 * (D // 6) each.
        frame_positions: the latent frames' positions, [T].
        height: rows of tokens in a latent frame.
        width: tokens in a row.
        theta: the base of the wavelengths.

    Computed in float64: float32 loses the low digits of an angle of a late frame.
    """
    side = 2 * (head_dim // 6)
    grid = (frame_positions.numel(), height, width)
    time = _angles(frame_positions, head_dim - 2 * side, theta)[:, None, None, :].expand(*grid, -1)
    rows = _angles(torch.arange(height), side, theta)[None, :, None, :].expand(*grid, -1)
    columns = _angles(torch.arange(width), side, theta)[None, None, :, :].expand(*grid, -1)
    angles = torch.cat([time, rows, columns], dim=-1).flatten(0, 2)
    return angles.cos().float(), angles.sin().float()


def _angles(positions: Tensor, dim: int, theta: float) -> Tensor:
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return positions.double()[:, None] * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring numbers by its angle: x [B, N, L, D], cos and sin [L, D / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
