"""What is known of an engine, and whether it may be used here.

The export writes a JSON file beside each engine; it is read and checked when a model is loaded. Errors, in one tree:

    BadEngine
    ├── BadManifest      the manifest is missing, can't be read, or is of another version
    ├── DamagedEngine   a file of the engine is missing or isn't the one that was written
    ├── ForeignEngine   it was made for another device or another library
    └── MixedEngines    engines of one folder don't belong together, or to their pipeline

These are for the operator: raised while a model is loaded, they make the load fail, and Triton logs the message. No
client reads it, so it may name files. It says what is wrong and what to run.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar


class BadEngine(Exception):
    """An engine that can't be used here."""


class BadManifest(BadEngine):
    """A manifest that is missing, can't be read, or is of another version."""


class DamagedEngine(BadEngine):
    """A file of an engine that is missing or isn't the one that was written."""


class ForeignEngine(BadEngine):
    """An engine that was made for another device or another library."""


class MixedEngines(BadEngine):
    """Engines of one folder that don't belong together, or to their pipeline."""


FORMAT = 1
"""Of the manifest itself: goes up when its keys change."""

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


class ShapeRange(NamedTuple):
    """Shortest, usual and longest shape of an input."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape lies between the shortest and the longest."""
        return len(shape) == len(self.min) and all(
            low <= length <= high for low, length, high in zip(self.min, shape, self.max, strict=True)
        )


Profile = Mapping[str, ShapeRange]
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
class Manifest:
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
            ValueError: it is no manifest, or one of another format.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or "format" not in raw:
            raise ValueError("it is no manifest of an engine")
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']}, this runtime reads {FORMAT}")
        strange = (raw.keys() - {"format"}) ^ {one.name for one in fields(cls)}
        if strange:
            raise ValueError(f"a key is missing or unknown: {', '.join(sorted(strange))}")
        return cls(**{name: _READERS[name](raw[name]) for name in _READERS})


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine lies: beside it."""
    return engine.with_name(f"{engine.name}.json")


def write(engine: Path, manifest: Manifest) -> None:
    """Write the manifest of an engine."""
    manifest_path(engine).write_text(manifest.to_json(), "utf-8")


def read(engine: Path) -> Manifest:
    """Read the manifest of an engine.

    Raises:
        BadManifest: it is missing, can't be read, or has another format.
    """
    path = manifest_path(engine)
    try:
        return Manifest.from_json(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise BadManifest(f"{path} is missing. {how_to_export(engine)}") from None
    except (OSError, ValueError) as error:
        raise BadManifest(f"{path} cannot be read: {error}. {how_to_export(engine)}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def how_to_export(engine: Path, manifest: Manifest | None = None) -> str:
    """The sentence that ends a refusal: the command, with what can be known of its arguments."""
    # model_repository/NAME/1/engines/GRAPH.onnx
    folder = engine.absolute().parent
    name = folder.parent.parent.name if folder.name == "engines" else "NAME"
    sizes = [f"--size {_as_width_x_height(name)}" for name in manifest.profiles] if manifest else []
    sizes = sizes or ["--size WxH ..."]
    loras = [f"--lora {lora}=FILE" for lora in manifest.loras] if manifest else []
    command = " ".join(["python -m export longlive --checkpoint DIR --id", name, *sizes, *loras])
    return f"Export it again: {command}"


def _as_width_x_height(profile: str) -> str:
    """A profile's name, HEIGHTxWIDTH, in the order in which people read and write sizes."""
    height, _, width = profile.partition("x")
    return f"{width}x{height}"


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


def _reach(value: Any) -> ShapeRange:
    shapes = _list_of(_list_of(_whole))(value)
    if len(shapes) != len(ShapeRange._fields):
        raise ValueError(f"{json.dumps(value)} is not a shortest, a usual and a longest shape")
    return ShapeRange(*shapes)


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


@dataclass(frozen=True)
class Machine:
    """What engines are to run on.

    Attributes:
        target: cpu, or the compute capability of the GPU: sm89 is 8.9.
        version_of: the version of a builder's library, None where it isn't installed.
    """

    target: str
    version_of: Callable[[Builder], str | None]


def check(engine: Path, machine: Machine) -> Manifest:
    """Check one engine, cheapest first: its files are read whole.

    Raises:
        BadManifest: the manifest is missing, can't be read, or is of another version.
        ForeignEngine: it was made for another device or another library.
        DamagedEngine: a file is missing or isn't the one that was written.
    """
    manifest = read(engine)
    if manifest.spec_version != SPEC_VERSION:
        raise BadManifest(
            f"{engine}: its graph has version {manifest.spec_version}, this runtime needs {SPEC_VERSION}. "
            f"{how_to_export(engine, manifest)}"
        )
    _check_machine(engine, manifest, machine)
    _check_files(engine, manifest)
    return manifest


def check_together(
    engines: Mapping[Path, Manifest], *, graphs: Collection[str], loras: Sequence[str], sizes: Collection[str]
) -> None:
    """Check that engines of one folder belong together, and to their pipeline.

    Args:
        engines: all of a folder, one at least, each checked by itself.
        graphs: names of the graphs that the pipeline needs.
        loras: names in the order that the pipeline gives their scales in.
        sizes: that the pipeline offers: "320x576".

    Raises:
        MixedEngines: a graph is there twice or lacks, or the engines are of different exports.
    """
    first, example = next(iter(engines.items()))
    again = how_to_export(first, example)
    paths: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    for engine, manifest in engines.items():
        if manifest.graph in paths:
            raise MixedEngines(f"{engine} and {paths[manifest.graph].name} are the same graph: remove one of them")
        paths[manifest.graph] = engine
        # Each engine names the files that it was made of, and only those.
        others = [name for name, sha256 in manifest.checkpoint.items() if hashes.setdefault(name, sha256) != sha256]
        if others:
            raise MixedEngines(f"{engine} was made of another {others[0]} than others of its folder. {again}")
        _check_pipeline(engine, manifest, loras, sizes)
    lacking = sorted(set(graphs) - paths.keys())
    if lacking:
        raise MixedEngines(f"{first.parent} lacks {', '.join(lacking)}. {again}")
    if loras and not any(takes_loras(manifest) for manifest in engines.values()):
        raise MixedEngines(f"no engine of {first.parent} has {_listed(loras)}. {again}")


def _check_pipeline(engine: Path, manifest: Manifest, loras: Sequence[str], sizes: Collection[str]) -> None:
    again = how_to_export(engine, manifest)
    if takes_loras(manifest) and manifest.loras != tuple(loras):
        raise MixedEngines(f"{engine} has {_listed(manifest.loras)}, its pipeline {_listed(loras)}. {again}")
    lacking = sorted(set(sizes) - manifest.profiles.keys())
    if manifest.profiles and lacking:
        raise MixedEngines(f"{engine} was not made for {', '.join(lacking)}, which its pipeline offers. {again}")


def takes_loras(manifest: Manifest) -> bool:
    """Whether the engine has branches of LoRAs."""
    return any(one.name == "lora_scales" for one in manifest.inputs)


def _check_machine(engine: Path, manifest: Manifest, machine: Machine) -> None:
    again = how_to_export(engine, manifest)
    if machine.target not in manifest.target.split(","):
        raise ForeignEngine(
            f"{engine} was made for {_described(manifest.target)}, this is {_described(machine.target)}. {again}"
        )
    version = machine.version_of(manifest.builder)
    if version is None:
        wanted = "" if manifest.builder is Builder.ONNX_RUNTIME else f"=={manifest.builder_version}"
        raise ForeignEngine(f"{engine} needs {manifest.builder}: pip install {manifest.builder}{wanted}")
    # TensorRT's engines, of either kind, run only with the version that built them; ONNX's are a standard.
    if manifest.builder is not Builder.ONNX_RUNTIME and version != manifest.builder_version:
        raise ForeignEngine(
            f"{engine} was made by {manifest.builder} {manifest.builder_version}, {version} is installed. {again}"
        )


def _check_files(engine: Path, manifest: Manifest) -> None:
    again = how_to_export(engine, manifest)
    if engine.name not in manifest.files:
        raise DamagedEngine(f"{engine} is not the file that its manifest is of. {again}")
    for name, expected in manifest.files.items():
        path = engine.with_name(name)
        if not path.is_file():
            raise DamagedEngine(f"{path} is missing. {again}")
        if path.stat().st_size != expected.bytes:
            raise DamagedEngine(f"{path} has {path.stat().st_size} bytes and should have {expected.bytes}. {again}")
        if file_sha256(path) != expected.sha256:
            raise DamagedEngine(f"{path} has changed since it was written: its SHA-256 is another. {again}")


def _described(target: str) -> str:
    if not target.startswith("sm"):
        return f"the {target.upper()}"
    capabilities = " or ".join(f"{one[2:-1]}.{one[-1:]}" for one in target.split(","))
    return f"a GPU of compute capability {capabilities}"


def _listed(loras: Sequence[str]) -> str:
    return f"the LoRAs {', '.join(loras)}" if loras else "no LoRAs"
