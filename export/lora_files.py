"""LoRA files: the key forms that trainers write, to one `Adapter`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from export.checkpoint import shortened
from export.errors import BadCheckpoint
from export.key_names import wan_name
from export.modules.lora import Adapter, LowRank

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
class _Part:
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None


def read_adapter(
    name: str, weights: Mapping[str, Tensor], layers: Iterable[str], *, default_alpha: float | None = None
) -> Adapter:
    """Make an adapter from the tensors of a file.

    Args:
        name: the adapter's, for messages and for requests.
        weights: `X.lora_A.weight` and `X.lora_B.weight`, or `X.lora_down.weight`, `X.lora_up.weight` and `X.alpha`,
            where X is a layer's name, with a prefix such as `diffusion_model.` or not, or `lora_unet_` and the
            layer's name with underscores for dots.
        layers: names of the network's linear layers, by which names with underscores are read.
        default_alpha: for files without alphas; without one it is the rank, so that the factor is 1.

    Raises:
        BadCheckpoint: a key has none of these forms, or a layer has only one of the two matrices.
    """
    by_underscores = {layer.replace(".", "_"): layer for layer in layers}
    parts: dict[str, _Part] = {}
    strange = []
    for key, value in weights.items():
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        layer = None if ending is None else _layer(key.removesuffix(ending), by_underscores)
        if ending is None or layer is None:
            strange.append(key)
        else:
            setattr(parts.setdefault(layer, _Part()), _ENDINGS[ending], value)
    if strange:
        raise BadCheckpoint(f"LoRA {name} has keys that fit no layer: {shortened(strange)}")
    if not parts:
        raise BadCheckpoint(f"LoRA {name} is empty")

    found: dict[str, LowRank] = {}
    for layer, part in parts.items():
        if part.down is None or part.up is None:
            raise BadCheckpoint(f"LoRA {name} has only one of the two matrices of {layer}")
        rank = part.down.shape[0]
        alpha = default_alpha if part.alpha is None else float(part.alpha)
        found[layer] = LowRank(part.down, part.up, 1.0 if alpha is None else alpha / rank)
    return Adapter(name, found)


def _layer(key: str, by_underscores: Mapping[str, str]) -> str | None:
    if key.startswith(_UNDERSCORED):
        return by_underscores.get(key.removeprefix(_UNDERSCORED))
    return wan_name(key)
