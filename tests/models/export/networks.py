"""Tiny networks with random weights, and what goes into them."""

import torch
from torch import Tensor, nn

from export.checkpoint import load_into
from export.config import CheckpointConfig
from export.modules.layers import Linear
from export.modules.transformer import CausalTransformer, Rope, TextKv
from export.weight_names import Weights
from filmstrip.runtime.transformer import rope_tables

HEIGHT, WIDTH = 4, 6  # of the latents: 2 x 3 tokens a latent frame
TOKENS = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Seeded noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_weights(*modules: nn.Module, seed: int = 0) -> Weights:
    """A checkpoint for modules, linear layers [out, in] as files have them; norms near 1, the rest small."""
    weights: Weights = {}
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        linear = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)}
        for name, parameter in sorted(module.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator)
            if name not in weights:
                near_one = "norm" in name and name.endswith("weight")
                fan_in = value[0].numel() if value.ndim > 1 else 1
                value = 1 + 0.1 * value if near_one else value * (0.1 if value.ndim == 1 else fan_in**-0.5)
                weights[name] = value.T.contiguous() if name in linear else value
    return weights


def transformer(config: CheckpointConfig, seed: int = 0) -> tuple[CausalTransformer, TextKv, Weights]:
    """A causal transformer, the text's part, and the weights of both as a file has them."""
    network, text_kv = CausalTransformer(config).eval(), TextKv(config).eval()
    weights = random_weights(network, text_kv, seed=seed)
    load_into(weights, network, text_kv)
    return network, text_kv, weights


def rope(config: CheckpointConfig, first: int, count: int) -> Rope:
    """Tables of `count` latent frames from frame `first` on."""
    return Rope(*rope_tables(config.head_dim, torch.arange(first, first + count), HEIGHT // 2, WIDTH // 2))


def in_pieces(network: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    """The output of a network that takes a video piece by piece, `sizes` frames each, and hands its caches on."""
    assert sum(sizes) == x.shape[2]
    caches = None
    outputs = []
    for piece in x.split(sizes, dim=2):
        y, caches = network(piece, caches)
        outputs.append(y)
    return torch.cat(outputs, dim=2)
