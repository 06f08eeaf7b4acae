"""LoRA adapters: merged into the weights for good, or branches beside them with scales given at run time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.errors import BadCheckpoint
from export.modules.layers import Linear


@dataclass(frozen=True)
class LowRank:
    """One layer's part of an adapter: y += factor * B(A x), with factor = alpha / rank."""

    down: Tensor  # A, [R, in]
    up: Tensor  # B, [out, R]
    factor: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA: what it adds to which layers, by their names in Wan's checkpoints."""

    name: str
    layers: Mapping[str, LowRank]


def merge(adapter: Adapter, *modules: nn.Module) -> None:
    """Add an adapter to the weights, at scale 1.

    Raises:
        BadCheckpoint: the adapter changes a layer that none of the modules has, or one of another size.
    """
    for name, layers in _layers_of(adapter, modules).items():
        part = adapter.layers[name]
        with torch.no_grad():
            for layer in layers:
                delta = part.factor * (part.up.float() @ part.down.float())
                layer.weight.copy_(layer.weight.float() + delta.T)


def attach(adapters: Sequence[Adapter], *modules: nn.Module) -> None:
    """Put adapters beside the weights as branches; `lora_scales[i]` is then the scale of `adapters[i]`.

    Raises:
        BadCheckpoint: as `merge`.
    """
    changed: dict[str, list[Linear]] = {}
    for adapter in adapters:
        changed |= _layers_of(adapter, modules)
    for name, layers in changed.items():
        parts = [(index, adapter.layers[name]) for index, adapter in enumerate(adapters) if name in adapter.layers]
        for layer in layers:
            like = layer.weight.detach()
            layer.lora_a = torch.cat([part.down.T for _, part in parts], dim=1).to(like)  # [in, R]
            layer.lora_b = torch.cat([part.factor * part.up.T for _, part in parts]).to(like)  # [R, out]
            ranks = torch.tensor([part.down.shape[0] for _, part in parts])
            indexes = torch.tensor([index for index, _ in parts])
            layer.lora_index = indexes.repeat_interleave(ranks)  # [R]


def _layers_of(adapter: Adapter, modules: Sequence[nn.Module]) -> dict[str, list[Linear]]:
    """The layers that an adapter changes; several where modules share a name."""
    found: dict[str, list[Linear]] = {name: [] for name in adapter.layers}
    for module in modules:
        for name, layer in module.named_modules():
            if name in found and isinstance(layer, Linear):
                found[name].append(layer)
    for name, layers in found.items():
        part = adapter.layers[name]
        if not layers:
            raise BadCheckpoint(f"LoRA {adapter.name} changes {name}, which the network doesn't have")
        for layer in layers:
            size = tuple(layer.weight.shape)
            if (part.down.shape[1], part.up.shape[0]) != size or part.down.shape[0] != part.up.shape[1]:
                raise BadCheckpoint(
                    f"LoRA {adapter.name}: {name} is {list(part.down.shape)} and {list(part.up.shape)}, "
                    f"the network's layer takes {size[0]} numbers and makes {size[1]}"
                )
    return found
