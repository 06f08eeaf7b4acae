"""Layers of the transformer, its VACE branch and the text's keys and values.

Weights of linear layers are stored [in, out] and used as `x @ w`, so they keep their names in an ONNX graph.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def with_diffs(module: nn.Module, name: str, lora_scales: Tensor | None) -> Tensor:
    """A module's parameter, plus what LoRAs add to it as it is, each times its scale.

    `lora_NAME` [K, ...] has the additions, and `lora_NAME_index` [K] says to which adapter each belongs.
    """
    parameter: Tensor = getattr(module, name)
    diffs: Tensor | None = getattr(module, f"lora_{name}", None)
    if diffs is None or lora_scales is None:
        return parameter
    scales = lora_scales[getattr(module, f"lora_{name}_index")]
    return parameter + (scales.reshape(-1, *[1] * parameter.ndim) * diffs).sum(0)


def has_loras(network: nn.Module) -> bool:
    """Whether an adapter is attached to any layer of a network."""
    return any(name.rpartition(".")[2].startswith("lora_") for name, _ in network.named_buffers())


class Linear(nn.Module):
    """x @ w + b, or without b, plus the branches of any number of LoRAs, each times a scale given at run time.

    The adapters are concatenated into one pair of matrices, `lora_a` [in, R] and `lora_b` [R, out]; R is the sum of
    their ranks, and `lora_b` includes alpha / rank. `lora_index` [R] says to which adapter a column belongs.
    """

    bias: nn.Parameter | None
    lora_a: Tensor | None
    lora_b: Tensor | None
    lora_index: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_features, out_features))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        for name in ("lora_a", "lora_b", "lora_index"):
            self.register_buffer(name, None)

    def forward(self, x: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """[..., in] to [..., out]; `lora_scales` has one number per adapter."""
        y = x @ with_diffs(self, "weight", lora_scales)
        if self.bias is not None:
            y = y + with_diffs(self, "bias", lora_scales)
        if lora_scales is None or self.lora_a is None or self.lora_b is None or self.lora_index is None:
            return y
        return y + (x @ self.lora_a * lora_scales[self.lora_index]) @ self.lora_b


class Mlp(nn.Sequential):
    """Two linear layers with an activation between them, named 0 and 2 as in Wan's checkpoints."""

    def __init__(self, in_features: int, hidden: int, out_features: int, activation: nn.Module) -> None:
        super().__init__(Linear(in_features, hidden), activation, Linear(hidden, out_features))

    def forward(self, x: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """[..., in] to [..., out]."""
        return self[2](self[1](self[0](x, lora_scales)), lora_scales)


class PositionEmbedding(nn.Module):
    """Adds its place in the picture to a token: RoPE alone only sees distances.

    It uses waves over the row's and the column's place between the edges, so all sizes share the same weights.
    """

    NUM_WAVES = 4

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = Linear(4 * self.NUM_WAVES, dim, bias=False)

    def forward(self, x: Tensor, num_frames: int, rows: int, cols: int) -> Tensor:
        """[B, num_frames * rows * cols, C] to the same."""
        row_waves, column_waves = self._waves(rows, x.device), self._waves(cols, x.device)
        waves = torch.cat(
            [row_waves.unsqueeze(1).expand(-1, cols, -1), column_waves.unsqueeze(0).expand(rows, -1, -1)], dim=-1
        )
        added = self.linear(waves.to(self.linear.weight.dtype))  # [rows, cols, C]
        return (x.unflatten(1, (num_frames, rows, cols)) + added).flatten(1, 3)

    def _waves(self, num_places: int, device: torch.device) -> Tensor:
        """[num_places, 2 * NUM_WAVES] in float32."""
        places = (torch.arange(num_places, dtype=torch.float32, device=device) + 0.5) / num_places
        angles = [places * (math.pi * 2**wave) for wave in range(self.NUM_WAVES)]
        return torch.stack([angle.sin() for angle in angles] + [angle.cos() for angle in angles], dim=-1)


class RmsNorm(nn.Module):
    """Root mean square norm over the last axis, all heads together."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """[..., dim] to the same; the mean is taken in float32."""
        x32 = x.float()
        normed = (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return normed * with_diffs(self, "weight", lora_scales)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weights that LoRAs may change."""

    def forward(self, x: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """[..., dim] to the same."""
        weight, bias = (with_diffs(self, name, lora_scales) for name in ("weight", "bias"))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class PatchEmbedding(nn.Conv3d):
    """Patches of latents to tokens, with weights that LoRAs may change."""

    def __init__(self, in_channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(in_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor, lora_scales: Tensor | None = None) -> Tensor:
        """[B, C, T, H, W] to [B, dim, T, rows, cols]."""
        weight, bias = (with_diffs(self, name, lora_scales) for name in ("weight", "bias"))
        return F.conv3d(x, weight, bias, self.stride)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, L, N * D] to [B, N, L, D]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, N, L, D] to [B, L, N * D]."""
    return x.transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale the tokens of each latent frame: x [B, L, C], shift and scale [B, T, C]."""
    return (_by_frame(x, shift) * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


def gate(x: Tensor, by: Tensor) -> Tensor:
    """Multiply the tokens of each latent frame: x [B, L, C], by [B, T, C]."""
    return (_by_frame(x, by) * by.unsqueeze(2)).flatten(1, 2)


def _by_frame(x: Tensor, frames: Tensor) -> Tensor:
    """[B, T * S, C] to [B, T, S, C]."""
    return x.reshape(frames.shape[0], frames.shape[1], -1, frames.shape[2])


class TimedNetwork(nn.Module):
    """A network that timesteps modulate, with one set of vectors per latent frame.

    It is a base class so that the weights keep the names of Wan's checkpoints.
    """

    def __init__(self, dim: int, freq_dim: int) -> None:
        super().__init__()
        self.time_embedding = Mlp(freq_dim, dim, dim, nn.SiLU())
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, dim * 6))
        half = freq_dim // 2
        # Numbers, not a buffer: `.to(torch.bfloat16)` would round them, and timesteps go up to 1000.
        self._frequencies = [10000.0 ** (-index / half) for index in range(half)]

    def embed_time(self, timesteps: Tensor, lora_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The embedding [B, T, C] and its six projections [B, T, 6, C] of float32 timesteps [B, T]."""
        frequencies = torch.tensor(self._frequencies, dtype=torch.float32, device=timesteps.device)
        angles = timesteps.unsqueeze(-1) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.parameters()).dtype)
        embedding = self.time_embedding(waves, lora_scales)
        return embedding, self.time_projection[1](F.silu(embedding), lora_scales).unflatten(-1, (6, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring numbers by its angle: x [B, N, L, D], cos and sin [L, D / 2].

    The tables of `filmstrip.runtime.transformer` are inputs of the networks: the caller decides whether latent frames
    stand at their place in the video or in the window.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
