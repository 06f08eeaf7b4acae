"""Rotary positions of a video's tokens: each head's numbers are split over time, height and width."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from filmstrip.runtime.recent import Recent
from filmstrip.runtime.upload import upload


class RopeTables:
    """The tables of latent frames of one size, on the device; those used last are kept.

    Args:
        head_dim: numbers of one head.
        theta: the base of the wavelengths.
        rows: of tokens in a latent frame.
        cols: tokens in a row.
        device: where the tables are wanted.
    """

    _MAX_TABLES = 8  # a chunk's own, its cached frames', those of VACE and of a recache, and room for the next ones

    def __init__(self, head_dim: int, theta: float, rows: int, cols: int, device: torch.device) -> None:
        self._head_dim = head_dim
        self._theta = theta
        self._rows = rows
        self._cols = cols
        self._device = device
        self._made: Recent[tuple[int, ...], tuple[Tensor, Tensor]] = Recent(self._MAX_TABLES)

    def at(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of latent frames at these positions, each [T, rows, cols, D / 2] in float32."""
        return self._made.get(tuple(positions), partial(self._make, positions))

    def _make(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        tables = rope_tables(self._head_dim, torch.tensor(positions), self._rows, self._cols, self._theta)
        cos, sin = (upload(table, self._device) for table in tables)
        shape = (len(positions), self._rows, self._cols, -1)
        return cos.reshape(shape), sin.reshape(shape)


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
