"""Files of weights as people have them: opened without running code, taken out of what training wraps round them.

A file holds one or several sets of named tensors: a flat file one, a training checkpoint often one per network, under
keys such as `generator`, `generator_ema` and `critic`. Which of them is used is decided by what they hold.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.errors import BadCheckpoint, abbreviate

Weights = dict[str, Tensor]
"""Tensors by name; linear layers' are [out, in], as checkpoints have them."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class WeightSet(StrEnum):
    """Which weights of a training checkpoint to use: those that were trained, or their moving average."""

    EMA = "ema"
    ONLINE = "online"


@dataclass(frozen=True)
class TensorSet:
    """Named tensors that a file holds together.

    Attributes:
        nest: the keys that lead to them, joined by dots; empty at the top of the file.
        tensors: by their names in the file.
    """

    nest: str
    tensors: Mapping[str, Tensor]

    @property
    def is_ema(self) -> bool:
        """Whether its name says that these are averaged weights."""
        return re.search(r"(^|[._])ema([._]|$)", self.nest) is not None

    @property
    def is_foreign(self) -> bool:
        """Whether it belongs to a network that only training needs, or to an optimizer."""
        return re.search(r"critic|fake|real_score|teacher|discriminator|optim|scheduler", self.nest) is not None


# -- Opening --------------------------------------------------------------------------------------------------


def read_sets(path: Path) -> list[TensorSet]:
    """All sets of tensors in a file, largest first; no code in the file is run.

    Raises:
        BadCheckpoint: the file can't be read, or holds no tensors; the message says what to do.
    """
    if path.suffix not in SUFFIXES:
        kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        more = ": its quantised blocks are not supported, use the original file" if path.suffix == ".gguf" else ""
        raise BadCheckpoint(f"{path.name}: weights must be {kinds}{more}")
    _check_start(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise BadCheckpoint(f"{path.name} must hold named tensors, not {type(content).__name__}")
    sets = [part for found in _find_sets(content, ()) for part in _split_by_network(found)]
    if not sets:
        keys = [str(key) for key in content]
        what = f"only holds values that are not tensors: {abbreviate(keys)}" if keys else "holds nothing"
        raise BadCheckpoint(f"{path.name} {what}")
    return sorted(sets, key=lambda found: -len(found.tensors))


def _check_start(path: Path) -> None:
    """Refuse what is no file of weights at all, by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise BadCheckpoint(f"{path.name} can't be read: {error.strerror or error}") from error
    if not start:
        raise BadCheckpoint(f"{path.name} can't be read: the file is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise BadCheckpoint(
            f"{path.name} can't be read: it is a Git LFS pointer, not the weights; "
            "run `git lfs pull` in its folder, or download the file itself"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BadCheckpoint(f"{path.name} can't be read: it is a web page, not weights; download the file itself")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - needed for this format only

    try:
        return dict(load_file(path))
    except Exception as error:  # the library raises nothing narrower for some broken files
        raise BadCheckpoint(
            f"{path.name} can't be read: it is incomplete, or not a .safetensors file; download it again ({error})"
        ) from error


# Classes that training scripts save beside weights, and that only hold data. They are replaced, not imported.
_DATA_CLASSES = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|easydict\.EasyDict|(omegaconf|collections|typing|enum)\..*"
    r"|(lightning_fabric|lightning|pytorch_lightning)\..*\.AttributeDict"
)


class _PassedOver:
    """Stands for an object beside the weights: it takes whatever the file says about it, and is then ignored."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


def _read_pickle(path: Path) -> Any:
    """The content of a file that torch has saved, tensors as views of the file where possible."""
    try:
        beside = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - of an older format, or broken: loading finds out
        beside = []
    code = sorted(name for name in beside if not _DATA_CLASSES.fullmatch(name))
    if code:
        raise BadCheckpoint(
            f"{path.name} can't be read: it would run code ({abbreviate(code)}); "
            "get the weights as .safetensors, or save them again as a plain dict of tensors where they come from"
        )
    replaced: list[Any] = [(_PassedOver, name) for name in beside]
    with torch.serialization.safe_globals(replaced):
        for mmap in (True, False):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            except Exception as error:
                if not mmap:
                    # Not torch's own text: it advises to load the file unsafely.
                    raise BadCheckpoint(
                        f"{path.name} can't be read: it is incomplete, or holds more than tensors; download it again, "
                        "or get the weights as .safetensors"
                    ) from error
    raise AssertionError("unreachable")


def _find_sets(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Iterator[TensorSet]:
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield TensorSet(".".join(keys), tensors)
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _find_sets(value, (*keys, str(name)))


_NETWORK = re.compile(r"(generator|critic|fake_score|real_score|discriminator|teacher)(_lora)?(_ema)?\.")


def _split_by_network(found: TensorSet) -> list[TensorSet]:
    """The sets of a file that has several networks side by side, `generator.x` and `critic.x`."""
    parts: dict[str, Weights] = {}
    for name, value in found.tensors.items():
        match = _NETWORK.match(name)
        parts.setdefault(match[0] if match else "", {})[name[match.end() :] if match else name] = value
    if len(parts) < 2 and "" in parts:
        return [found]
    keys = [found.nest] if found.nest else []
    return [TensorSet(".".join([*keys, *([part[:-1]] if part else [])]), tensors) for part, tensors in parts.items()]


# -- Choosing -------------------------------------------------------------------------------------------------

# Where several sets fit a network equally well, the one under the first of these keys.
_USUAL_NESTS = ("generator", "generator_lora", "model", "state_dict", "module", "")


@dataclass
class WeightChoice:
    """Which weights are used where a file has both.

    Attributes:
        weights: None if nobody has chosen.
        is_default: whether a preset has chosen, so that a file with only the other set is used as it is.
    """

    weights: WeightSet | None = None
    is_default: bool = False


@dataclass
class Notes:
    """What was decided or left out while files were read, for the report of the export."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Add a line, once."""
        if line not in self.lines:
            self.lines.append(line)


def choose_set(
    path: Path,
    sets: Sequence[TensorSet],
    num_known: Callable[[Mapping[str, Tensor]], int],
    choice: WeightChoice,
    notes: Notes,
) -> TensorSet:
    """The set of a file that holds a network's weights.

    Args:
        path: of the file, for messages.
        sets: all that it holds, at least one.
        num_known: how many tensors of a set the network has, by their names.
        choice: between trained and averaged weights.
        notes: what was chosen is added.

    Raises:
        BadCheckpoint: several sets fit, and nothing says which is meant.
    """
    known = {id(found): num_known(found.tensors) for found in sets}
    fitting = [found for found in sets if known[id(found)]] or list(sets[:1])
    candidates = [found for found in fitting if not found.is_foreign] or fitting
    averaged = [found for found in candidates if found.is_ema]
    online = [found for found in candidates if not found.is_ema]
    if averaged and online:
        if choice.weights is None:
            raise BadCheckpoint(
                f"{path.name} has two sets of weights, {_name(online[0])} (as trained) and {_name(averaged[0])} "
                "(their moving average): choose with --weights online or --weights ema"
            )
        candidates = averaged if choice.weights is WeightSet.EMA else online
    elif choice.weights is not None and not choice.is_default and candidates[0].nest:
        if averaged and choice.weights is WeightSet.ONLINE:
            raise BadCheckpoint(f"{path.name} only has averaged weights, {_name(averaged[0])}: use --weights ema")
        if online and choice.weights is WeightSet.EMA:
            raise BadCheckpoint(f"{path.name} has no averaged weights, only {_name(online[0])}: use --weights online")
    most = max(known[id(found)] for found in candidates)
    best = [found for found in candidates if known[id(found)] == most]
    if len(best) > 1:
        usual = [found for key in _USUAL_NESTS for found in best if _plain(found.nest) == key]
        if not usual:
            names = abbreviate(_name(found) for found in best)
            raise BadCheckpoint(f"{path.name} has several networks that fit: {names}; save the one you mean alone")
        best = usual
    if len(sets) > 1 and (averaged or len(fitting) > 1):
        others = [_name(found) for found in fitting if found is not best[0]]
        notes.add(f"{path.name}: {_name(best[0])} is used" + (f", not {', '.join(others)}" if others else ""))
    return best[0]


def _name(found: TensorSet) -> str:
    return found.nest or "the top of the file"


def _plain(nest: str) -> str:
    return re.sub(r"_ema$", "", nest.rpartition(".")[2])


# -- Content --------------------------------------------------------------------------------------------------

_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
# What quantised files have beside that: scales of activations, and markers.
_QUANTISATION_EXTRAS = re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|comfy_quant)$")
_UNSUPPORTED_QUANTISATION = re.compile(r"\.(weight_scale_2|quant_state\..*|absmax|quant_map|qweight|qzeros)$")
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def weight_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of a file's weights: without scales and markers of quantised ones."""
    return [name for name in tensors if not _is_scale(name, tensors) and not _QUANTISATION_EXTRAS.search(name)]


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    layer, _, kind = name.rpartition(".")
    return kind in _SCALES and f"{layer}.weight" in tensors


def unscaled(path: Path, tensors: Mapping[str, Tensor]) -> Weights:
    """The weights of a file, with the scales of 8-bit weights multiplied in, in float32.

    Raises:
        BadCheckpoint: the weights are quantised in another way, or a scale doesn't fit its weight.
    """
    quantised = sorted(name for name in tensors if _UNSUPPORTED_QUANTISATION.search(name))
    if quantised:
        raise BadCheckpoint(
            f"{path.name} is quantised in a way that is not supported ({abbreviate(quantised[:1])}): "
            "use the original weights, or fp8 with one scale per layer or channel"
        )
    scales = {f"{name.rpartition('.')[0]}.weight": value for name, value in tensors.items() if _is_scale(name, tensors)}
    weights = {name: tensors[name] for name in weight_names(tensors)}
    for name, scale in scales.items():
        weights[name] = _times(path, name, weights[name], scale)
    for name, value in weights.items():
        if value.dtype is torch.int8 and name not in scales:
            raise BadCheckpoint(f"{path.name}: {name} is in int8 and has no scale")
    return weights


def _times(path: Path, name: str, weight: Tensor, scale: Tensor) -> Tensor:
    """A weight times its scale: one number, one per output channel, or one per block of rows and columns."""
    if weight.dtype not in _EIGHT_BITS:
        raise BadCheckpoint(f"{path.name}: {name} has a scale, but is {weight.dtype}, not 8-bit")
    scale = scale.float()
    if scale.numel() == 1:
        return weight.float() * scale.reshape(())
    if scale.numel() == weight.shape[0] == scale.shape[0]:
        return weight.float() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if scale.ndim == weight.ndim == 2:
        pairs = list(zip(weight.shape, scale.shape, strict=True))
        blocks = [-(-side // count) for side, count in pairs]
        if all(-(-side // block) == count for (side, count), block in zip(pairs, blocks, strict=True)):
            spread = scale.repeat_interleave(blocks[0], 0).repeat_interleave(blocks[1], 1)
            return weight.float() * spread[: weight.shape[0], : weight.shape[1]]
    raise BadCheckpoint(f"{path.name}: the scale of {name} is {list(scale.shape)}, the weight {list(weight.shape)}")


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers.

    Raises:
        BadCheckpoint: a tensor has NaN or infinite values.
    """
    bad = [name for name, value in tensors.items() if not _is_finite(value)]
    if bad:
        raise BadCheckpoint(
            f"{path.name} has NaN or infinite values in {abbreviate(bad)}: the file is damaged, or its training "
            "diverged; download it again, or use another one"
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not value.is_floating_point():
        return True
    number = value.float() if value.dtype.itemsize == 1 else value
    return bool(number.isfinite().all())


# -- Folders --------------------------------------------------------------------------------------------------

_VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8|ema|non_ema)$")
_INDEX = ".index.json"


def is_weight_file(path: Path) -> bool:
    """Whether a file is one of weights, by its name; hidden files, such as macOS's `._model.pt`, are none."""
    return path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()


def weight_files(folder: Path, notes: Notes | None = None) -> list[Path]:
    """The files of weights in a folder: those that its index.json names, if it has one; hidden files are none.

    Raises:
        BadCheckpoint: an index names files that are missing.
    """
    files = sorted(path for path in folder.glob("*") if is_weight_file(path))
    indexes = sorted(
        (path for path in folder.glob(f"*{_INDEX}") if not path.name.startswith(".")),
        key=lambda path: (len(path.name), path.name),
    )
    named = _named_by_index(indexes[0]) if indexes else []
    if named:
        # Other variants of the same weights are beside them; what else is there has a name of its own.
        stem = indexes[0].name.removesuffix(_INDEX).partition(".")[0]
        variants = [
            path for path in files if path not in named and re.match(rf"{re.escape(stem)}[.-]|pytorch_model", path.name)
        ]
        if variants and notes is not None:
            names = abbreviate(path.name for path in variants)
            notes.add(f"{folder.name}: the files that {indexes[0].name} names are used, not {names}")
        return sorted({*named, *(path for path in files if path not in variants)})
    plain = [path for path in files if not _is_variant_of(path, files)]
    if len(plain) < len(files) and notes is not None:
        names = abbreviate(path.name for path in files if path not in plain)
        notes.add(f"{folder.name}: not used, as it repeats another file: {names}")
    return plain


def _named_by_index(index: Path) -> list[Path]:
    try:
        names = {str(name) for name in json.loads(index.read_text("utf-8-sig"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []  # without a map of files it says nothing about them
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise BadCheckpoint(f"{index.name} names files outside its folder: {abbreviate(outside)}")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise BadCheckpoint(f"{index.name} names files that are missing: {abbreviate(missing)}; download them too")
    return [index.parent / name for name in sorted(names)]


def _is_variant_of(path: Path, files: Sequence[Path]) -> bool:
    """Whether a file repeats one beside it: `x.fp16.safetensors` and `x.safetensors`, `x.bin` and `x.safetensors`."""
    match = _VARIANT.search(path.stem)
    if match is not None and path.with_name(f"{path.stem[: match.start()]}{path.suffix}") in files:
        return True
    stem = path.stem.removeprefix("pytorch_") if path.stem == "pytorch_model" else path.stem
    return path.suffix == ".bin" and path.with_name(f"{stem}.safetensors") in files
