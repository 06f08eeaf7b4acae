"""The text's keys and values for every layer's cross-attention: run once a prompt, not once a step."""

import torch
from torch import Tensor, nn

from export.config import CheckpointConfig
from export.modules.layers import Linear, Mlp, RmsNorm, split_heads


class CrossKv(nn.Module):
    """What one layer's cross-attention needs of the text."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.k, self.v = (Linear(config.dim, config.dim) for _ in range(2))
        self.norm_k = RmsNorm(config.dim, config.eps)

    def forward(self, text: Tensor, lora_scales: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, Lt, C] to keys and values, each [B, N, Lt, D]."""
        k = self.norm_k(self.k(text, lora_scales))
        return split_heads(k, self.num_heads), split_heads(self.v(text, lora_scales), self.num_heads)


class TextKv(nn.Module):
    """Embeddings of the text encoder to keys and values.

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
