"""LoRA adapters: read from the formats of common trainers, and merged into the weights or attached as branches.

A file names a layer and what it adds to it. Trainers write the layer's name in many forms: with dots or underscores,
one or several, in Wan's names or diffusers', behind any of several prefixes. All are compared in one form, without
dots and prefixes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.errors import BadCheckpoint, abbreviate
from export.modules.layers import Linear
from export.weight_names import diffusers_name


@dataclass(frozen=True)
class LowRank:
    """One layer's part of an adapter: y += factor * B(A x), with factor = alpha / rank."""

    down: Tensor  # A, [R, in]
    up: Tensor  # B, [out, R]
    factor: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA: what it adds to which layers, by their names in Wan's checkpoints.

    Attributes:
        name: of the adapter, in messages and requests.
        layers: products of two matrices, by the name of the linear layer.
        diffs: what is added to a parameter as it is, by the parameter's name; linear weights are [out, in].
        left_out: layers that the file changes and the network doesn't have.
    """

    name: str
    layers: Mapping[str, LowRank]
    diffs: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """A sentence about what was left out, None if nothing was."""
        if not self.left_out:
            return None
        used = {*self.layers, *(name.rpartition(".")[0] for name in self.diffs)}
        total = len(used) + len(self.left_out)
        return (
            f"LoRA {self.name}: {len(self.left_out)} of {total} layers left out, because this network does not have "
            f"them: {abbreviate(self.left_out)}"
        )


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
    for name, owners in _owners_of(adapter, modules).items():
        with torch.no_grad():
            for owner in owners:
                parameter: Tensor = getattr(owner, name.rpartition(".")[2])
                parameter.copy_(parameter.float() + _as_stored(owner, name, adapter.diffs[name]))


def attach(adapters: Sequence[Adapter], *modules: nn.Module) -> None:
    """Attach adapters to the layers as branches; `lora_scales[i]` is then the scale of `adapters[i]`.

    Raises:
        BadCheckpoint: as `merge`.
    """
    changed: dict[str, list[Linear]] = {}
    owners: dict[str, list[nn.Module]] = {}
    for adapter in adapters:
        changed |= _layers_of(adapter, modules)
        owners |= _owners_of(adapter, modules)
    for name, layers in changed.items():
        parts = [(index, adapter.layers[name]) for index, adapter in enumerate(adapters) if name in adapter.layers]
        for layer in layers:
            like = layer.weight.detach()
            layer.lora_a = torch.cat([part.down.T for _, part in parts], dim=1).to(like)  # [in, R]
            layer.lora_b = torch.cat([part.factor * part.up.T for _, part in parts]).to(like)  # [R, out]
            ranks = torch.tensor([part.down.shape[0] for _, part in parts])
            indexes = torch.tensor([index for index, _ in parts])
            layer.lora_index = indexes.repeat_interleave(ranks)  # [R]
    for name, modules_of in owners.items():
        diffs = [(index, adapter.diffs[name]) for index, adapter in enumerate(adapters) if name in adapter.diffs]
        parameter = name.rpartition(".")[2]
        for owner in modules_of:
            stacked = torch.stack([_as_stored(owner, name, diff) for _, diff in diffs])  # [K, ...]
            owner.register_buffer(f"lora_{parameter}", stacked.to(getattr(owner, parameter).detach()))
            owner.register_buffer(f"lora_{parameter}_index", torch.tensor([index for index, _ in diffs]))  # [K]


def check_sizes(adapter: Adapter, *modules: nn.Module) -> None:
    """Check that an adapter's tensors have the sizes of the layers that they change.

    Raises:
        BadCheckpoint: one has not.
    """
    _layers_of(adapter, modules)
    _owners_of(adapter, modules)


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
                    f"LoRA {adapter.name} is for a network of another size: {name} is {list(part.down.shape)} and "
                    f"{list(part.up.shape)}, the network's layer takes {size[0]} numbers and returns {size[1]}"
                )
    return found


def _owners_of(adapter: Adapter, modules: Sequence[nn.Module]) -> dict[str, list[nn.Module]]:
    """The modules whose parameters an adapter changes as they are, by the parameter's name."""
    found: dict[str, list[nn.Module]] = {name: [] for name in adapter.diffs}
    for module in modules:
        by_name = dict(module.named_modules())
        for name, parameter in module.named_parameters():
            if name not in found:
                continue
            owner = by_name[name.rpartition(".")[0]]
            shape = list(parameter.T.shape if _is_transposed(owner, name) else parameter.shape)
            if adapter.diffs[name].numel() != parameter.numel() or (
                len(shape) > 1 and list(adapter.diffs[name].squeeze().shape) != [side for side in shape if side > 1]
            ):
                raise BadCheckpoint(
                    f"LoRA {adapter.name} is for a network of another size: it adds {list(adapter.diffs[name].shape)} "
                    f"to {name}, which is {shape}"
                )
            found[name].append(owner)
    for name, owners in found.items():
        if not owners:
            raise BadCheckpoint(f"LoRA {adapter.name} changes {name}, which the network doesn't have")
    return found


def _is_transposed(owner: nn.Module, name: str) -> bool:
    return isinstance(owner, Linear) and name.endswith(".weight")


def _as_stored(owner: nn.Module, name: str, diff: Tensor) -> Tensor:
    """What is added to a parameter, in float32 and in the parameter's shape."""
    shape = getattr(owner, name.rpartition(".")[2]).shape
    return (diff.float().T if _is_transposed(owner, name) else diff.float()).reshape(shape)


# -- Reading --------------------------------------------------------------------------------------------------

# Endings of keys, after the layer's name. peft puts the adapter's own name, such as `default`, between A and weight.
_ENDINGS = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"[._]lora_A(\.[^.]+)?\.weight$|[._]lora_A$", "down"),
        (r"[._]lora_B(\.[^.]+)?\.weight$|[._]lora_B$", "up"),
        (r"[._]lora(_linear_layer)?[._]down(\.weight)?$", "down"),
        (r"[._]lora(_linear_layer)?[._]up(\.weight)?$", "up"),
        (r"[._]lora_B(\.[^.]+)?\.bias$|[._]lora[._]up\.bias$", "up_bias"),
        (r"\.(lora_|network_)?alpha$", "alpha"),
        (r"\.(diff|w_norm)$", "diff"),
        (r"\.(diff_b|b_norm)$", "diff_b"),
        (r"\.diff_m$", "diff_m"),
    )
)
_UNSUPPORTED = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector(\..+)?)$"), "a DoRA, whose magnitudes depend on the scale"),
    (re.compile(r"\.hada_\w+(\.\w+)?$"), "a LoHa"),
    (re.compile(r"\.lokr_\w+(\.\w+)?$"), "a LoKr"),
    (re.compile(r"\.(oft_\w+|boft_\w+|lora_mid(\.\w+)?|glora_\w+)(\.\w+)?$"), "of a kind other than LoRA"),
)


def is_lora_key(key: str) -> bool:
    """Whether a key of a file is one of an adapter, of a kind that we can use or not."""
    return any(pattern.search(key) for pattern, _ in (*_ENDINGS, *_UNSUPPORTED))


@dataclass
class _Part:
    down: Tensor | None = None
    up: Tensor | None = None
    up_bias: Tensor | None = None
    alpha: Tensor | None = None
    diff: Tensor | None = None
    diff_b: Tensor | None = None
    diff_m: Tensor | None = None


def read_adapter(
    name: str,
    weights: Mapping[str, Tensor],
    layers: Iterable[str],
    *,
    parameters: Iterable[str] | None = None,
    default_alpha: float | None = None,
) -> Adapter:
    """Make an adapter from the tensors of a file.

    Args:
        name: of the adapter, in messages and requests.
        weights: pairs of matrices (`X.lora_A.weight` and `X.lora_B.weight`, or `lora_down` and `lora_up`) with or
            without `X.alpha`, and `X.diff`, `X.diff_b` and `X.diff_m`, which are added to X's weight, bias and
            modulation. X is a layer's name in any form.
        layers: names of the network's linear layers.
        parameters: names of all its parameters that `diff`s can change; weights and biases of the layers if None.
        default_alpha: for files without alphas; None for the rank, so that the factor is 1.

    Raises:
        BadCheckpoint: no key fits a layer, a layer has only one of its two matrices, or it is another kind of adapter.
    """
    linear = frozenset(layers)
    changeable = frozenset(
        parameters if parameters is not None else (f"{layer}.{what}" for layer in linear for what in ("weight", "bias"))
    )
    parts, left_out = _parts(name, weights, _table(linear, changeable))
    low_rank: dict[str, LowRank] = {}
    diffs: dict[str, Tensor] = {}
    for layer, part in parts.items():
        factor = _factor(name, layer, part, default_alpha)
        if part.down is not None and part.up is not None:
            if layer in linear:
                low_rank[layer] = LowRank(part.down.flatten(1), part.up.flatten(1), factor)
            else:
                product = factor * (part.up.flatten(1).float() @ part.down.flatten(1).float())
                part.diff = product.reshape(len(part.up), *part.down.shape[1:])
        if part.up_bias is not None:
            part.diff_b = factor * part.up_bias.float() + (0 if part.diff_b is None else part.diff_b.float())
        weight = layer if layer in changeable else f"{layer}.weight"
        added = {weight: part.diff, f"{layer}.bias": part.diff_b, f"{layer}.modulation": part.diff_m}
        for parameter, diff in added.items():
            if diff is not None and parameter in changeable:
                diffs[parameter] = diff
            elif diff is not None:
                left_out.append(parameter)
    if not low_rank and not diffs:
        raise BadCheckpoint(f"LoRA {name} has only keys that fit no layer: {abbreviate(weights)}")
    return Adapter(name, low_rank, diffs, tuple(left_out))


def _parts(name: str, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, _Part], list[str]]:
    """What a file adds to each layer, and the layers that the network doesn't have."""
    for pattern, kind in _UNSUPPORTED:
        if any(pattern.search(key) for key in weights):
            raise BadCheckpoint(f"LoRA {name} is {kind}: not supported; merge it into the weights with its own tools")
    if not weights:
        raise BadCheckpoint(f"LoRA {name} is empty")
    parts: dict[str, _Part] = {}
    left_out: dict[str, None] = {}
    for key, value in weights.items():
        match, role = next(((m, role) for pattern, role in _ENDINGS if (m := pattern.search(key))), (None, ""))
        target = key if match is None else key[: match.start()]
        layer = None if match is None else names.get(_plain(target))
        if layer is None:
            left_out[target] = None
        else:
            setattr(parts.setdefault(layer, _Part()), role, value)
    if not parts:
        raise BadCheckpoint(f"LoRA {name} has only keys that fit no layer: {abbreviate(weights)}")
    return parts, list(left_out)


def _factor(name: str, layer: str, part: _Part, default_alpha: float | None) -> float:
    """What the product of a layer's matrices is multiplied by."""
    if part.down is None and part.up is None:
        return 1.0
    if part.down is None or part.up is None:
        raise BadCheckpoint(f"LoRA {name} has only one of the two matrices of {layer}")
    if part.alpha is not None and part.alpha.numel() != 1:
        raise BadCheckpoint(f"LoRA {name}: the alpha of {layer} must be one number, not {list(part.alpha.shape)}")
    alpha = default_alpha if part.alpha is None else float(part.alpha)
    return 1.0 if alpha is None else alpha / part.down.shape[0]


# Before a layer's name, once every dot is an underscore and several are one.
_PREFIX = re.compile(
    r"^((lora|lycoris|unet|transformer|base|model|diffusion|pipe|dit|net|module|generator|prior"
    r"|fsdp_wrapped_module|checkpoint_wrapped_module|orig_mod)_)+"
)
_WITHIN = re.compile(r"_(fsdp_wrapped_module|checkpoint_wrapped_module|orig_mod|processor)(?=_|$)")


def _plain(name: str) -> str:
    """A layer's name in the one form in which they are compared."""
    plain = re.sub(r"[._]+", "_", name).strip("_")
    return _PREFIX.sub("", _WITHIN.sub("", plain))


def _table(linear: frozenset[str], parameters: frozenset[str]) -> dict[str, str]:
    """What can be changed, by its plain name: linear layers, other modules with weights, and single parameters."""
    owners = {name.rpartition(".")[0] for name in parameters}
    return {
        _plain(form): name
        for name in (*linear, *owners, *(name for name in parameters if name.endswith(".modulation")))
        for form in (name, diffusers_name(name))
    }
