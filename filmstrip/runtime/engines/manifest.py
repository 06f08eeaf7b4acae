"""The manifest of an engine: what it was built from and for, and whether it can be used here.

The export writes this JSON file next to each engine; the runtime checks it when it loads a model. Errors, in one tree:

    BadEngine
    ├── BadManifest     the manifest is missing, unreadable, or of another version
    ├── DamagedEngine   a file of the engine is missing or isn't the one that was written
    ├── ForeignEngine   it was built for another device or another library
    └── MixedEngines    the engines of a folder don't belong together, or to their pipeline

They fail the loading of a model, and Triton logs their message. It is for the operator: it may name files, and says
what is wrong and which command to run.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from filmstrip.contract import first_problem


class BadEngine(Exception):
    """An engine that can't be used here."""


class BadManifest(BadEngine):
    """A manifest that is missing, unreadable, or of another version."""


class DamagedEngine(BadEngine):
    """A file of an engine that is missing or isn't the one that was written."""


class ForeignEngine(BadEngine):
    """An engine that was built for another device or another library."""


class MixedEngines(BadEngine):
    """Engines of one folder that don't belong together, or to their pipeline."""


# -- The manifest -------------------------------------------------------------------------------------------

FORMAT: Literal[1] = 1
"""Version of the manifest format: increases when its keys change."""

SPEC_VERSION = 1
"""Version of the graphs: increases when a name, a shape or a meaning changes and the runtime must change with it."""

PrecisionName: TypeAlias = Literal["fp32", "bf16", "fp16"]

TensorShape: TypeAlias = tuple[int, ...]

_STRICT = ConfigDict(extra="forbid", strict=True)  # a string is not a number, and an unknown key is an error


class Builder(StrEnum):
    """The library that builds and runs an engine."""

    ONNX_RUNTIME = "onnxruntime"
    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"

    @property
    def module(self) -> str:
        """The name of its Python module."""
        return self.value.replace("-", "_")


class ShapeRange(NamedTuple):
    """Smallest, optimal and largest shape of an input, as in a TensorRT profile."""

    min: TensorShape
    opt: TensorShape
    max: TensorShape

    def contains(self, shape: TensorShape) -> bool:
        """Whether each length is within the range."""
        return len(shape) == len(self.min) and all(
            low <= length <= high for low, length, high in zip(self.min, shape, self.max, strict=True)
        )


Profile: TypeAlias = Mapping[str, ShapeRange]
"""The shapes of all inputs at one video size."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output.

    Attributes:
        name: in the engine.
        dtype: as torch calls it: float32, bfloat16, float16.
        dims: lengths, -1 where one varies.
    """

    __pydantic_config__: ClassVar = _STRICT

    name: str
    dtype: str
    dims: TensorShape

    def accepts(self, shape: TensorShape) -> bool:
        """Whether a tensor may have this shape."""
        return len(shape) == len(self.dims) and all(
            dim in (-1, length) for dim, length in zip(self.dims, shape, strict=True)
        )


@dataclass(frozen=True)
class EngineFile:
    """Size and SHA-256 of a file that the export wrote."""

    __pydantic_config__: ClassVar = _STRICT

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure a file."""
        return cls(path.stat().st_size, file_sha256(path))


def _file_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError("must be a file name, without a folder")
    return name


@dataclass(frozen=True)
class Manifest:
    """What an engine was built from and for.

    Attributes:
        graph: name of the graph.
        spec_version: see `SPEC_VERSION`.
        builder: the library that built it.
        builder_version: of that library.
        precision: what it computes in.
        target: cpu, or the compute capabilities of GPUs, separated by commas: sm89 is 8.9.
        profiles: by `profile_name`, in the engine's order; empty for a graph that does not depend on the size.
        inputs: in the engine's order.
        outputs: in the engine's order.
        checkpoint: SHA-256 of the files that it was built from, by their path in the checkpoint's folder; those of
            LoRAs by `--lora` and the LoRA's name.
        loras: names, in the order of the input `lora_scales`.
        files: the engine's file and the files next to it with its weights, by name.
        format: see `FORMAT`.
    """

    __pydantic_config__: ClassVar = _STRICT

    graph: str
    spec_version: int
    builder: Builder
    builder_version: str
    precision: PrecisionName
    target: str
    profiles: Mapping[str, Profile]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    checkpoint: Mapping[str, str]
    loras: tuple[str, ...]
    files: Mapping[Annotated[str, AfterValidator(_file_name)], EngineFile]
    format: Literal[1] = FORMAT

    @property
    def takes_loras(self) -> bool:
        """Whether the engine has branches for LoRAs."""
        return any(one.name == "lora_scales" for one in self.inputs)

    def to_json(self) -> str:
        """The file's text: a line for each key."""
        keys = {"format": FORMAT, **asdict(self)}
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in keys.items()) + "\n}\n"

    @staticmethod
    def from_json(text: str) -> "Manifest":
        """Read the file's text.

        Raises:
            ValueError: it isn't a manifest, or has another format; the message names the fields.
        """
        raw = json.loads(text)
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:  # the fields of another format do not matter
            raise ValueError(f"format: must be {FORMAT}, is {json.dumps(found)}")
        try:
            return _MANIFEST.validate_json(text)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None


_MANIFEST = TypeAdapter(Manifest)


def manifest_path(engine: Path) -> Path:
    """The path of an engine's manifest, next to the engine."""
    return engine.with_name(f"{engine.name}.json")


def write_manifest(engine: Path, manifest: Manifest) -> None:
    """Write the manifest of an engine."""
    manifest_path(engine).write_text(manifest.to_json(), "utf-8")


def read_manifest(engine: Path) -> Manifest:
    """Read the manifest of an engine.

    Raises:
        BadManifest: it is missing, unreadable, or has another format.
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
    """The last sentence of an error: the command to run, with the arguments that are known."""
    # model_repository/NAME/1/engines/GRAPH.onnx
    folder = engine.absolute().parent
    name = folder.parent.parent.name if folder.name == "engines" else "NAME"
    sizes = [f"--size {_width_x_height(name)}" for name in manifest.profiles] if manifest else []
    sizes = sizes or ["--size WxH ..."]
    loras = [f"--lora {lora}=FILE" for lora in manifest.loras] if manifest else []
    command = " ".join(["python -m export longlive --checkpoint DIR --id", name, *sizes, *loras])
    return f"Export it again: {command}"


def profile_name(height: int, width: int) -> str:
    """The name of the profile for a video size in pixels, HEIGHTxWIDTH."""
    return f"{height}x{width}"


def _width_x_height(profile: str) -> str:
    """The size of a profile as people read and write it, WIDTHxHEIGHT."""
    height, _, width = profile.partition("x")
    return f"{width}x{height}"


# -- Whether an engine can be used --------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What engines run on.

    Attributes:
        target: cpu, or the compute capability of the GPU: sm89 is 8.9.
        version_of: returns the version of a builder's library, None if it isn't installed.
    """

    target: str
    version_of: Callable[[Builder], str | None]


def check_engine(engine: Path, machine: Machine) -> Manifest:
    """Check one engine; its files are read last, because that takes longest.

    Raises:
        BadManifest: the manifest is missing, unreadable, or of another version.
        ForeignEngine: it was built for another device or another library.
        DamagedEngine: a file is missing or isn't the one that was written.
    """
    manifest = read_manifest(engine)
    if manifest.spec_version != SPEC_VERSION:
        raise BadManifest(
            f"{engine}: its graph has version {manifest.spec_version}, this runtime needs {SPEC_VERSION}. "
            f"{how_to_export(engine, manifest)}"
        )
    _check_machine(engine, manifest, machine)
    _check_files(engine, manifest)
    return manifest


def check_together(
    engines: Mapping[Path, Manifest],
    *,
    graphs: Collection[str],
    loras: Sequence[str],
    sizes: Collection[tuple[int, int]],
) -> None:
    """Check that engines of one folder belong together, and to their pipeline.

    Args:
        engines: all of a folder, at least one, each checked on its own.
        graphs: names of the graphs that the pipeline needs.
        loras: names, in the order in which the pipeline passes their scales.
        sizes: (height, width) in pixels that the pipeline offers.

    Raises:
        MixedEngines: a graph is missing or there twice, or the engines are of different exports.
    """
    first, example = next(iter(engines.items()))
    again = how_to_export(first, example)
    paths: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    for engine, manifest in engines.items():
        if manifest.graph in paths:
            raise MixedEngines(f"{engine} and {paths[manifest.graph].name} are the same graph: remove one of them")
        paths[manifest.graph] = engine
        # Each engine names only the files that it was built from.
        others = [name for name, sha256 in manifest.checkpoint.items() if hashes.setdefault(name, sha256) != sha256]
        if others:
            raise MixedEngines(
                f"{engine} was built from another {others[0]} than the other engines of its folder. {again}"
            )
        _check_pipeline(engine, manifest, loras, sizes)
    missing = sorted(set(graphs) - paths.keys())
    if missing:
        raise MixedEngines(f"{first.parent} has no engine for {', '.join(missing)}. {again}")
    if loras and not any(manifest.takes_loras for manifest in engines.values()):
        raise MixedEngines(f"no engine of {first.parent} has {_listed(loras)}. {again}")


def _check_pipeline(engine: Path, manifest: Manifest, loras: Sequence[str], sizes: Collection[tuple[int, int]]) -> None:
    again = how_to_export(engine, manifest)
    if manifest.takes_loras and manifest.loras != tuple(loras):
        raise MixedEngines(f"{engine} has {_listed(manifest.loras)}, its pipeline {_listed(loras)}. {again}")
    missing = [
        f"{width}x{height}" for height, width in sorted(sizes) if profile_name(height, width) not in manifest.profiles
    ]
    if manifest.profiles and missing:
        raise MixedEngines(f"{engine} was not built for {', '.join(missing)}, which its pipeline offers. {again}")


def _check_machine(engine: Path, manifest: Manifest, machine: Machine) -> None:
    again = how_to_export(engine, manifest)
    if machine.target not in manifest.target.split(","):
        raise ForeignEngine(
            f"{engine} was built for {_described(manifest.target)}, this is {_described(machine.target)}. {again}"
        )
    version = machine.version_of(manifest.builder)
    if version is None:
        pin = "" if manifest.builder is Builder.ONNX_RUNTIME else f"=={manifest.builder_version}"
        raise ForeignEngine(f"{engine} needs {manifest.builder}: pip install {manifest.builder}{pin}")
    # Engines of either TensorRT need the version that built them; ONNX is a standard.
    if manifest.builder is not Builder.ONNX_RUNTIME and version != manifest.builder_version:
        raise ForeignEngine(
            f"{engine} was built by {manifest.builder} {manifest.builder_version}, {version} is installed. {again}"
        )


def _check_files(engine: Path, manifest: Manifest) -> None:
    again = how_to_export(engine, manifest)
    if engine.name not in manifest.files:
        raise DamagedEngine(f"{engine} is not the file that its manifest describes. {again}")
    for name, expected in manifest.files.items():
        path = engine.with_name(name)
        if not path.is_file():
            raise DamagedEngine(f"{path} is missing. {again}")
        if path.stat().st_size != expected.bytes:
            raise DamagedEngine(f"{path} has {path.stat().st_size} bytes, should have {expected.bytes}. {again}")
        if file_sha256(path) != expected.sha256:
            raise DamagedEngine(f"{path} has changed since it was written: its SHA-256 differs. {again}")


def _described(target: str) -> str:
    if not target.startswith("sm"):
        return f"the {target.upper()}"
    capabilities = " or ".join(f"{one[2:-1]}.{one[-1:]}" for one in target.split(","))
    return f"a GPU of compute capability {capabilities}"


def _listed(loras: Sequence[str]) -> str:
    return f"the LoRAs {', '.join(loras)}" if loras else "no LoRAs"
