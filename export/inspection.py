"""What a file of weights is, whether the export can use it, and what to do with it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint import Networks, build_networks
from export.checkpoint_files import WeightFile
from export.config import CheckpointConfig
from export.errors import BadCheckpoint, ExportError, abbreviate
from export.lora import Adapter, check_sizes, read_adapter
from export.recognition import SMALLEST, Kind, best_set, why_unknown
from export.tensor_files import (
    SUFFIXES,
    Notes,
    TensorSet,
    WeightChoice,
    WeightSet,
    check_finite,
    read_sets,
    unscaled,
    weight_names,
)
from export.weight_names import unwrapped_name, wan_name

_FOLDERS = {
    Kind.VACE: "vace",
    Kind.VAE: "vae",
    Kind.TAE: "vae",
    Kind.TEXT_ENCODER: "text_encoder",
}


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA changes.

    Attributes:
        ranks: of its pairs of matrices, rising.
        num_layers: layers and parameters that it changes, by their names or, if `network` is given, in that network.
        targets: kinds of layers that it changes, with # for the number of a block.
        left_out: layers that it has and the network doesn't.
        network: that it was compared with, None for any of the family.
    """

    ranks: tuple[int, ...]
    num_layers: int
    targets: tuple[str, ...]
    left_out: tuple[str, ...]
    network: str | None = None


@dataclass(frozen=True)
class FileReport:
    """What a file is.

    Attributes:
        path: of the file.
        usable: whether the export can use it.
        reason: why not, or None.
        kind: of network, None if it is nothing that we know.
        nest: the key under which the weights are, empty if they are at the top of the file.
        nests: all keys under which weights are, with the number of tensors of each.
        prefix: before the names of the weights, empty for none; wrappers within names included.
        layout: whose names the weights have.
        dtypes: number of tensors of each type.
        num_parameters: numbers in all weights.
        scaled: whether 8-bit weights come with scales.
        complete: whether all weights of the network are there; a part of several files is not.
        lora: for a LoRA.
        next: what to type next, or where to put the file.
        notes: what was chosen in the file.
    """

    path: str
    usable: bool
    reason: str | None
    kind: str | None = None
    nest: str = ""
    nests: Mapping[str, int] | None = None
    prefix: str = ""
    layout: str | None = None
    dtypes: Mapping[str, int] | None = None
    num_parameters: int = 0
    scaled: bool = False
    complete: bool = False
    lora: LoraReport | None = None
    next: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self)


def inspect_file(path: Path, network: tuple[str, CheckpointConfig] | None = None) -> FileReport:
    """Say what a file is; nothing about it is an error.

    Args:
        path: of the file.
        network: a name and a configuration that a LoRA is compared with, None for any network of the family.
    """
    notes = Notes()
    try:
        if path.is_dir():
            raise BadCheckpoint(f"{path.name} has no files of weights: no file ends in {', '.join(SUFFIXES)}")
        if not path.exists():
            raise BadCheckpoint(f"there is no file {path}")
        sets = read_sets(path)
        choice = WeightChoice(WeightSet.EMA, is_default=True)
        file = WeightFile(path, *best_set(path, sets, choice, notes))
    except ExportError as error:
        return FileReport(str(path), usable=False, reason=str(error), next="download the file again, or name another")
    return _report(file, sets, network, notes)


def _report(
    file: WeightFile, sets: Sequence[TensorSet], network: tuple[str, CheckpointConfig] | None, notes: Notes
) -> FileReport:
    found, tensors = file.recognition, file.tensors
    lora, reason = None, None
    try:
        weights = unscaled(file.path, tensors)
        check_finite(file.path, weights)
        if found.kind is Kind.LORA:
            lora = _lora_report(file.path.stem, weights, network)
        elif not found.is_usable:
            reason = f"{file.path.name}: {why_unknown(tensors, found)}"
        elif network is not None:
            reason = f"{file.path.name} is a {found.kind}; --for compares LoRAs"
    except ExportError as error:
        weights, reason = {}, str(error)
    usable = reason is None
    plain = weight_names(tensors)
    return FileReport(
        path=str(file.path),
        usable=usable,
        reason=reason,
        kind=found.kind,
        nest=file.chosen.nest,
        nests={one.nest: len(one.tensors) for one in sets},
        prefix=_prefix(plain),
        layout=_layout(found.kind, plain),
        dtypes=dict(Counter(str(tensors[name].dtype).removeprefix("torch.") for name in plain)),
        num_parameters=sum(tensors[name].numel() for name in plain),
        scaled=len(plain) < len(tensors),
        complete=usable and not found.missing,
        lora=lora,
        next=_next(file.path, found.kind, sets, usable=usable),
        notes=tuple(notes.lines),
    )


# -- LoRAs ----------------------------------------------------------------------------------------------------


def _lora_report(name: str, weights: Mapping[str, Tensor], network: tuple[str, CheckpointConfig] | None) -> LoraReport:
    """Compare a LoRA with a network, or with the names of any.

    Raises:
        BadCheckpoint: nothing of it fits.
    """
    if network is None:
        adapter = _adapter(name, weights, _any_network(weights))
    else:
        with torch.device("meta"):
            networks = build_networks(network[1])
        adapter = _adapter(name, weights, networks)
        check_sizes(adapter, *networks.denoisers)
    changed = [*adapter.layers, *adapter.diffs]
    return LoraReport(
        ranks=tuple(sorted({part.down.shape[0] for part in adapter.layers.values()})),
        num_layers=len(changed),
        targets=tuple(sorted({re.sub(r"\d+", "#", layer, count=1) for layer in changed})),
        left_out=adapter.left_out,
        network=None if network is None else network[0],
    )


def _adapter(name: str, weights: Mapping[str, Tensor], networks: Networks) -> Adapter:
    parameters = {name for network in networks.denoisers for name, _ in network.named_parameters()}
    return read_adapter(name, weights, networks.linear_layers, parameters=parameters)


def _any_network(weights: Mapping[str, Tensor]) -> Networks:
    """A network that has as many blocks as a LoRA names, and a VACE branch."""
    numbers = [int(number) for name in weights for number in re.findall(r"blocks[._](\d{1,3})[._]", name)]
    num_layers = max(numbers, default=0) + 1
    layers = tuple(range(num_layers))
    with torch.device("meta"):
        return build_networks(SMALLEST.model_copy(update={"num_layers": num_layers, "vace_layers": layers}))


# -- Names ----------------------------------------------------------------------------------------------------


def _prefix(names: Sequence[str]) -> str:
    """What most names have before the network's own name, wrappers within it included."""
    prefixes = Counter(_prefix_of(name) for name in names)
    return prefixes.most_common(1)[0][0] if prefixes else ""


def _prefix_of(name: str) -> str:
    bare = unwrapped_name(name)
    if name.endswith(bare):
        return name.removesuffix(bare)
    kept = iter(bare.split("."))
    expected = next(kept, None)
    removed = []
    for part in name.split("."):
        if part == expected:
            expected = next(kept, None)
        elif part not in removed:
            removed.append(part)
    return "".join(f"{part}." for part in removed)


def _layout(kind: Kind | None, names: Sequence[str]) -> str | None:
    """Whose names the weights have."""
    bare = [unwrapped_name(name) for name in names]
    match kind:
        case None:
            return None
        case Kind.TAE:
            return "TAEHV"
        case Kind.LORA:
            forms = {"lora_down/lora_up": r"lora[._](down|up)", "lora_A/lora_B": r"lora_[AB]", "diff": r"\.diff"}
        case Kind.VAE:
            forms = {"diffusers": r"^(post_)?quant_conv\.", "Wan": ""}
        case Kind.TEXT_ENCODER:
            forms = {"transformers": r"\.SelfAttention\.", "Wan": ""}
        case _:
            return "Wan" if all(wan_name(name) == name for name in bare) else "diffusers"
    return next((form for form, pattern in forms.items() if any(re.search(pattern, name) for name in bare)), None)


# -- What next ------------------------------------------------------------------------------------------------


def _next(path: Path, kind: Kind | None, sets: Sequence[TensorSet], *, usable: bool) -> str:
    folder = path.parent
    if not usable or kind is None:
        return "use another file; docs/export.md lists what is supported"
    if kind is Kind.LORA:
        return f"python -m export longlive --checkpoint DIR --id NAME --size 832x480 --lora {path.stem}={path}"
    if kind in _FOLDERS:
        return f"cp {path} CHECKPOINT/{_FOLDERS[kind]}/, where CHECKPOINT is the folder of a checkpoint"
    both = {one.is_ema for one in sets if not one.is_foreign}
    weights = " --weights ema" if len(both) > 1 else ""
    source = f"--checkpoint {folder}" if (folder / "config.json").is_file() else f"--preset PRESET --from {folder}"
    return f"python -m export longlive {source} --id NAME --size 832x480{weights}"


def describe(report: FileReport) -> str:
    """The report for people, several lines."""
    if report.kind is None or not report.dtypes:
        return f"{report.path}: not usable\n  {report.reason}\n  next: {report.next}"
    types = ", ".join(f"{count} {name}" for name, count in report.dtypes.items())
    what = f"a {report.kind}" + ("" if report.complete or report.lora else ", or a part of one")
    lines = [
        f"{report.path}: {'usable, ' if report.usable else 'not usable, '}{what}",
        f"  weights: {report.num_parameters:,} in {sum(report.dtypes.values())} tensors ({types})"
        + (", with scales" if report.scaled else ""),
        f"  names: {report.layout}" + (f", behind {report.prefix}" if report.prefix else ""),
    ]
    if report.nest:
        lines.append(f"  nest: {report.nest}")
    others = [f"{nest or 'top'} ({count})" for nest, count in (report.nests or {}).items() if nest != report.nest]
    if others:
        lines.append(f"  also in the file: {', '.join(others)}")
    if report.lora is not None:
        ranks = ", ".join(map(str, report.lora.ranks)) or "none"
        network = f" of {report.lora.network}" if report.lora.network else ""
        lines.append(f"  LoRA: rank {ranks}; changes {report.lora.num_layers} layers{network}")
        lines.append(f"  targets: {abbreviate(report.lora.targets)}")
        if report.lora.left_out:
            lines.append(
                f"  left out, not in the network: {len(report.lora.left_out)}: {abbreviate(report.lora.left_out)}"
            )
    if report.reason:
        lines.append(f"  {report.reason}")
    lines += [f"  {note}" for note in report.notes]
    return "\n".join([*lines, f"  next: {report.next}"])
