"""LoRA adapters: read from the formats of common trainers, and merged into the weights or attached as branches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.errors import BadCheckpoint, abbreviate
from export.modules.layers import Linear
from export.weight_names import wan_name


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
    """Add an adapter to the weights permanently, at scale 1.

    Raises:
        BadCheckpoint: the adapter changes a layer that no module has, or one of another size.
    """
    for name, layers in _layers_of(adapter, modules).items():
        part = adapter.layers[name]
        with torch.no_grad():
            for layer in layers:
                delta = part.factor * (part.up.float() @ part.down.float())
                layer.weight.copy_(layer.weight.float() + delta.T)


def attach(adapters: Sequence[Adapter], *modules: nn.Module) -> None:
    """Attach adapters to the layers as branches; `lora_scales[i]` is then the scale of `adapters[i]`.

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
    """The layers that an adapter changes, by name; several if modules share a name."""
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
                    f"the network's layer takes {size[0]} numbers and returns {size[1]}"
                )
    return found


_ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}
_UNDERSCORED = "lora_unet_"


@dataclass
class _Matrices:
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None


def read_adapter(
    name: str, weights: Mapping[str, Tensor], layers: Iterable[str], *, default_alpha: float | None = None
) -> Adapter:
    """Make an adapter from the tensors of a file.

    Args:
        name: of the adapter, in messages and requests.
        weights: `X.lora_A.weight` and `X.lora_B.weight`, or `X.lora_down.weight`, `X.lora_up.weight` and `X.alpha`,
            where X is a layer's name, with or without a prefix such as `diffusion_model.`, or `lora_unet_` and the
            layer's name with underscores for dots.
        layers: names of the network's linear layers, to tell which dots were underscores.
        default_alpha: for files without alphas; None for the rank, so that the factor is 1.

    Raises:
        BadCheckpoint: a key has none of these forms, or a layer has only one of its two matrices.
    """
    by_underscores = {layer.replace(".", "_"): layer for layer in layers}
    matrices: dict[str, _Matrices] = {}
    unknown = []
    for key, value in weights.items():
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        layer = None if ending is None else _layer_name(key.removesuffix(ending), by_underscores)
        if ending is None or layer is None:
            unknown.append(key)
        else:
            setattr(matrices.setdefault(layer, _Matrices()), _ENDINGS[ending], value)
    if unknown:
        raise BadCheckpoint(f"LoRA {name} has keys that fit no layer: {abbreviate(unknown)}")
    if not matrices:
        raise BadCheckpoint(f"LoRA {name} is empty")

    low_rank: dict[str, LowRank] = {}
    for layer, part in matrices.items():
        if part.down is None or part.up is None:
            raise BadCheckpoint(f"LoRA {name} has only one of the two matrices of {layer}")
        rank = part.down.shape[0]
        alpha = default_alpha if part.alpha is None else float(part.alpha)
        low_rank[layer] = LowRank(part.down, part.up, 1.0 if alpha is None else alpha / rank)
    return Adapter(name, low_rank)


def _layer_name(key: str, by_underscores: Mapping[str, str]) -> str | None:
    if key.startswith(_UNDERSCORED):
        return by_underscores.get(key.removeprefix(_UNDERSCORED))
    return wan_name(key)
