"""Networks as graphs: named tensors in, a tuple of tensors out, and no other types on the way.

Latents, pixels and velocities are float32 at the border whatever a graph computes in, so that the runtime's own
arithmetic does not depend on it. Keys, values, hints and feature caches keep the graph's precision: they only go from
engine to engine. Tables and hints come and go by latent frame, row and column, so that no length is a product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.modules.text_encoder import TextEncoder
from export.modules.text_kv import TextKv
from export.modules.transformer import CausalTransformer, Rope
from export.modules.vace import VaceBranch


class TransformerGraph(nn.Module):
    """See `CausalTransformer`; tables are [T, rows, cols, D / 2], hints as `VaceGraph` makes them."""

    def __init__(self, network: CausalTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        *,
        latents: Tensor,
        timesteps: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        past_k: Tensor,
        past_v: Tensor,
        past_bias: Tensor,
        past_cos: Tensor | None = None,
        past_sin: Tensor | None = None,
        hints: Tensor | None = None,
        lora_scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The velocity in float32; keys and values to be cached."""
        dtype = _dtype(self.network)
        velocity, k, v = self.network(
            latents.to(dtype),
            timesteps,
            text_k,
            text_v,
            Rope(rope_cos.flatten(0, 2), rope_sin.flatten(0, 2), past_cos, past_sin),
            past_k,
            past_v,
            past_bias,
            hints=None if hints is None else hints.flatten(2, 4),
            lora_scales=None if lora_scales is None else lora_scales.to(dtype),
        )
        return velocity.float(), k, v


class VaceGraph(nn.Module):
    """See `VaceBranch`; tables are [R + T, rows, cols, D / 2]."""

    def __init__(self, network: VaceBranch) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        *,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        scale: Tensor,
        lora_scales: Tensor | None = None,
    ) -> tuple[Tensor]:
        """The hints [vace_layers, B, T, rows, cols, C]."""
        dtype = _dtype(self.network)
        hints = self.network(
            latents.to(dtype),
            timesteps,
            context.to(dtype),
            text_k,
            text_v,
            Rope(rope_cos.flatten(0, 2), rope_sin.flatten(0, 2)),
            scale.to(dtype),
            None if lora_scales is None else lora_scales.to(dtype),
        )
        return (hints.unflatten(2, (latents.shape[2], *rope_cos.shape[1:3])),)


class TextKvGraph(nn.Module):
    """See `TextKv`."""

    def __init__(self, network: TextKv) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, embeddings: Tensor, lora_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values for all layers."""
        dtype = _dtype(self.network)
        scales = None if lora_scales is None else lora_scales.to(dtype)
        return self.network(embeddings.to(dtype), scales)


class TextEncoderGraph(nn.Module):
    """See `TextEncoder`: a prompt's own tokens alone, whose embeddings do not depend on padding."""

    def __init__(self, network: TextEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, ids: Tensor) -> tuple[Tensor]:
        """The embeddings of ids [1, Lt] in float32."""
        return (self.network(ids, torch.ones_like(ids)).float(),)


class VaeGraph(nn.Module):
    """A pass of the VAE's encoder or decoder: without feature caches among its inputs it is a video's first."""

    def __init__(self, network: nn.Module, takes: str, *, keeps: bool = True) -> None:
        """`takes` names the input beside the caches; without `keeps` no pass goes on from this one."""
        super().__init__()
        self.network = network
        self.takes = takes
        self.keeps = keeps

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Pixels to latents or latents to pixels, in float32; the new caches."""
        x = tensors.pop(self.takes).to(_dtype(self.network))
        y, caches = self.network(x, list(tensors.values()) or None)
        return (y.float(), *caches) if self.keeps else (y.float(),)


class Positional(nn.Module):
    """A graph that takes its inputs by place, as ONNX has them."""

    def __init__(self, named: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.named = named
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the graph makes of inputs in the order of `names`."""
        return self.named(**dict(zip(self.names, tensors, strict=True)))


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
