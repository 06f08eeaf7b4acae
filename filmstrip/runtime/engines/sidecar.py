"""What is known of an engine: a JSON file beside it, written by the export and checked when a model is loaded."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from filmstrip.runtime.engines.errors import BadSidecar

FORMAT = 1
"""Of the sidecar itself: goes up when its keys change."""

SPEC_VERSION = 1
"""Of the graphs: goes up when one changes so that the runtime must change with it: a name, a shape, a meaning."""

PRECISIONS = ("fp32", "bf16", "fp16")

T = TypeVar("T")
Shape = tuple[int, ...]


class Builder(StrEnum):
    """What made an engine, and runs it."""

    ONNX_RUNTIME = "onnxruntime"
    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"


class Reach(NamedTuple):
    """Shortest, usual and longest shape of an input."""

    minimum: Shape
    usual: Shape
    maximum: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape lies between the shortest and the longest."""
        return len(shape) == len(self.minimum) and all(
            low <= length <= high for low, length, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


Profile = Mapping[str, Reach]
"""Shapes of all inputs at one size."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output.

    Attributes:
        name: in the engine.
        dtype: as torch calls it: float32, bfloat16, float16.
        dims: its lengths, -1 where one varies.
    """

    name: str
    dtype: str
    dims: Shape

    def accepts(self, shape: Shape) -> bool:
        """Whether a shape is one of these dims'."""
        return len(shape) == len(self.dims) and all(
            dim in (-1, length) for dim, length in zip(self.dims, shape, strict=True)
        )


@dataclass(frozen=True)
class EngineFile:
    """A file as it was when the export had written it."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure a file."""
        return cls(path.stat().st_size, file_sha256(path))


@dataclass(frozen=True)
class Sidecar:
    """What is known of an engine.

    Attributes:
        graph: name of the graph.
        spec_version: see `SPEC_VERSION`.
        builder: what made it.
        builder_version: of the builder's library.
        precision: what it computes in: fp32, bf16 or fp16.
        target: cpu, or the compute capabilities of GPUs, separated by commas: sm89 is 8.9.
        profiles: by size, in the engine's order: "320x576" is 320 high. None for a graph that has no size.
        inputs: in the engine's order.
        outputs: likewise.
        checkpoint: SHA-256 of the files that it was made of, by their path in the checkpoint's folder; LoRAs' by
            `--lora` and their name.
        loras: names, in the order of the input `lora_scales`.
        files: the engine's file and those beside it that hold its weights, by name.
    """

    graph: str
    spec_version: int
    builder: Builder
    builder_version: str
    precision: str
    target: str
    profiles: Mapping[str, Profile]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    checkpoint: Mapping[str, str]
    loras: tuple[str, ...]
    files: Mapping[str, EngineFile]

    def to_json(self) -> str:
        """As the file holds it: a line for each key."""
        keys = {"format": FORMAT, **asdict(self)}
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in keys.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it back.

        Raises:
            ValueError: it is no sidecar, or one of another format.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or "format" not in raw:
            raise ValueError("it is no sidecar of an engine")
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']}, this runtime reads {FORMAT}")
        strange = (raw.keys() - {"format"}) ^ {one.name for one in fields(cls)}
        if strange:
            raise ValueError(f"a key is missing or unknown: {', '.join(sorted(strange))}")
        return cls(**{name: _READERS[name](raw[name]) for name in _READERS})


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine lies: beside it."""
    return engine.with_name(f"{engine.name}.json")


def write(engine: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of an engine."""
    sidecar_path(engine).write_text(sidecar.to_json(), "utf-8")


def read(engine: Path) -> Sidecar:
    """Read the sidecar of an engine.

    Raises:
        BadSidecar: it is missing, can't be read, or has another format.
    """
    path = sidecar_path(engine)
    try:
        return Sidecar.from_json(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise BadSidecar(f"{path} is missing. {how_to_export(engine)}") from None
    except (OSError, ValueError) as error:
        raise BadSidecar(f"{path} cannot be read: {error}. {how_to_export(engine)}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def how_to_export(engine: Path, sidecar: Sidecar | None = None) -> str:
    """The sentence that ends a refusal: the command, with what can be known of its arguments."""
    # model_repository/NAME/1/engines/GRAPH.onnx
    folder = engine.absolute().parent
    name = folder.parent.parent.name if folder.name == "engines" else "NAME"
    sizes = [f"--size {size}" for size in sidecar.profiles] if sidecar and sidecar.profiles else ["--size HxW ..."]
    loras = [f"--lora {lora}=FILE" for lora in sidecar.loras] if sidecar else []
    command = " ".join(["python -m export longlive --checkpoint DIR --id", name, *sizes, *loras])
    return f"Export it again: {command}"


# -- Reading --------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{json.dumps(value)} is no text")
    return value


def _file_name(value: Any) -> str:
    if Path(_text(value)).name != value:
        raise ValueError(f"{json.dumps(value)} is no name of a file")
    return str(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{json.dumps(value)} is no whole number")
    return value


def _one_of(allowed: tuple[str, ...]) -> Callable[[Any], str]:
    def read_one(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{json.dumps(value)} is none of {', '.join(allowed)}")
        return str(value)

    return read_one


def _list_of(read_one: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def read_list(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{json.dumps(value)} is no list")
        return tuple(read_one(one) for one in value)

    return read_list


def _by_name(read_one: Callable[[Any], T], read_name: Callable[[Any], str] = _text) -> Callable[[Any], dict[str, T]]:
    def read_map(value: Any) -> dict[str, T]:
        if not isinstance(value, dict):
            raise ValueError(f"{json.dumps(value)} is no object")
        return {read_name(name): read_one(one) for name, one in value.items()}

    return read_map


def _fields(value: Any, *names: str) -> list[Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ValueError(f"{json.dumps(value)} does not have the keys {', '.join(names)}")
    return [value[name] for name in names]


def _tensor(value: Any) -> EngineTensor:
    name, dtype, dims = _fields(value, "name", "dtype", "dims")
    return EngineTensor(_text(name), _text(dtype), _list_of(_whole)(dims))


def _file(value: Any) -> EngineFile:
    size, sha256 = _fields(value, "bytes", "sha256")
    return EngineFile(_whole(size), _text(sha256))


def _reach(value: Any) -> Reach:
    shapes = _list_of(_list_of(_whole))(value)
    if len(shapes) != len(Reach._fields):
        raise ValueError(f"{json.dumps(value)} is not a shortest, a usual and a longest shape")
    return Reach(*shapes)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "graph": _text,
    "spec_version": _whole,
    "builder": lambda value: Builder(_one_of(tuple(Builder))(value)),
    "builder_version": _text,
    "precision": _one_of(PRECISIONS),
    "target": _text,
    "profiles": _by_name(_by_name(_reach)),
    "inputs": _list_of(_tensor),
    "outputs": _list_of(_tensor),
    "checkpoint": _by_name(_text),
    "loras": _list_of(_text),
    "files": _by_name(_file, _file_name),
}
