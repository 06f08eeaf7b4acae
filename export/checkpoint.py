"""Weights from files into modules, with errors that name what does not fit."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.errors import BadCheckpoint
from export.key_names import wan_name
from export.modules.layers import Linear

Weights = dict[str, Tensor]
"""Tensors by name; linear layers' are [out, in], as checkpoints have them."""

_NAMES_SHOWN = 8
_NESTS = ("generator", "generator_lora", "state_dict")


def read_weights(path: Path) -> Weights:
    """Read a `.safetensors`, `.pt` or `.pth` file, names as they are in it; no code of the file's is run.

    Raises:
        BadCheckpoint: the file has another ending, can't be read, or holds something else than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - needed for this form alone

            return dict(load_file(path))
        if path.suffix not in (".pt", ".pth"):
            raise BadCheckpoint(f"{path.name}: weights must be .safetensors, .pt or .pth")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except BadCheckpoint:
        raise
    except Exception as error:  # the two loaders raise what they like on a broken file
        raise BadCheckpoint(f"{path.name} can't be read: {error}") from error
    for nest in _NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
    if not isinstance(loaded, Mapping):
        raise BadCheckpoint(f"{path.name} must hold named tensors, not {type(loaded).__name__}")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise BadCheckpoint(f"{path.name} holds what is no tensor: {shortened(others)}")
    return dict(loaded)


def wan_names(weights: Mapping[str, Tensor]) -> Weights:
    """The same weights of a transformer under Wan's own names.

    Raises:
        BadCheckpoint: two weights come to have one name.
    """
    named: Weights = {}
    for name, value in weights.items():
        ours = wan_name(name)
        if ours in named:
            raise BadCheckpoint(f"two weights are both {ours}, one of them {name}")
        named[ours] = value
    return named


def fill(weights: Mapping[str, Tensor], *modules: nn.Module) -> None:
    """Copy weights into modules that share them out: each name must be wanted by one module or more.

    Raises:
        BadCheckpoint: names are missing or unexpected, or shapes differ. Nothing was copied then.
    """
    linear = [
        {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)} for module in modules
    ]
    wanted = [dict(module.named_parameters()) for module in modules]
    missing = sorted({name for parameters in wanted for name in parameters if name not in weights})
    unexpected = sorted(set(weights).difference(*wanted))
    misshapen = []
    for transposed, parameters in zip(linear, wanted, strict=True):
        for name in parameters.keys() & weights.keys():
            shape = list(parameters[name].shape)
            expected = shape[::-1] if name in transposed else shape
            if list(weights[name].shape) != expected:
                misshapen.append(f"{name} is {list(weights[name].shape)}, not {expected}")
    problems = [
        f"{what}: {shortened(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", sorted(set(misshapen))),
        )
        if names
    ]
    if problems:
        raise BadCheckpoint(f"the weights don't fit: {'; '.join(problems)}")
    with torch.no_grad():
        for transposed, parameters in zip(linear, wanted, strict=True):
            for name, parameter in parameters.items():
                value = weights[name]
                parameter.copy_(value.T if name in transposed else value)


def shortened(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    shown = list(names)
    more = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
