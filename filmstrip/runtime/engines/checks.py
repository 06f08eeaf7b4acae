"""Whether engines may be used: of this version, whole, made for this machine, and of one export."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filmstrip.runtime.engines.errors import BadSidecar, DamagedEngine, ForeignEngine, MixedEngines
from filmstrip.runtime.engines.sidecar import SPEC_VERSION, Builder, Sidecar, file_sha256, how_to_export, read


@dataclass(frozen=True)
class Machine:
    """What engines are to run on.

    Attributes:
        target: cpu, or the compute capability of the GPU: sm89 is 8.9.
        version_of: the version of a builder's library, None where it isn't installed.
    """

    target: str
    version_of: Callable[[Builder], str | None]


def check(engine: Path, machine: Machine) -> Sidecar:
    """Check one engine, cheapest first: its files are read whole.

    Raises:
        BadSidecar: the sidecar is missing, can't be read, or is of another version.
        ForeignEngine: it was made for another device or another library.
        DamagedEngine: a file is missing or isn't the one that was written.
    """
    sidecar = read(engine)
    if sidecar.spec_version != SPEC_VERSION:
        raise BadSidecar(
            f"{engine}: its graph has version {sidecar.spec_version}, this runtime needs {SPEC_VERSION}. "
            f"{how_to_export(engine, sidecar)}"
        )
    _check_machine(engine, sidecar, machine)
    _check_files(engine, sidecar)
    return sidecar


def check_together(
    engines: Mapping[Path, Sidecar], *, graphs: Collection[str], loras: Sequence[str], sizes: Collection[str]
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
    for engine, sidecar in engines.items():
        if sidecar.graph in paths:
            raise MixedEngines(f"{engine} and {paths[sidecar.graph].name} are the same graph: remove one of them")
        paths[sidecar.graph] = engine
        # Each engine names the files that it was made of, and only those.
        others = [name for name, sha256 in sidecar.checkpoint.items() if hashes.setdefault(name, sha256) != sha256]
        if others:
            raise MixedEngines(f"{engine} was made of another {others[0]} than others of its folder. {again}")
        _check_pipeline(engine, sidecar, loras, sizes)
    lacking = sorted(set(graphs) - paths.keys())
    if lacking:
        raise MixedEngines(f"{first.parent} lacks {', '.join(lacking)}. {again}")
    if loras and not any(takes_loras(sidecar) for sidecar in engines.values()):
        raise MixedEngines(f"no engine of {first.parent} has {_listed(loras)}. {again}")


def _check_pipeline(engine: Path, sidecar: Sidecar, loras: Sequence[str], sizes: Collection[str]) -> None:
    again = how_to_export(engine, sidecar)
    if takes_loras(sidecar) and sidecar.loras != tuple(loras):
        raise MixedEngines(f"{engine} has {_listed(sidecar.loras)}, its pipeline {_listed(loras)}. {again}")
    lacking = sorted(set(sizes) - sidecar.profiles.keys())
    if sidecar.profiles and lacking:
        raise MixedEngines(f"{engine} was not made for {', '.join(lacking)}, which its pipeline offers. {again}")


def takes_loras(sidecar: Sidecar) -> bool:
    """Whether the engine has branches of LoRAs."""
    return any(one.name == "lora_scales" for one in sidecar.inputs)


def _check_machine(engine: Path, sidecar: Sidecar, machine: Machine) -> None:
    again = how_to_export(engine, sidecar)
    if machine.target not in sidecar.target.split(","):
        raise ForeignEngine(
            f"{engine} was made for {_described(sidecar.target)}, this is {_described(machine.target)}. {again}"
        )
    version = machine.version_of(sidecar.builder)
    if version is None:
        wanted = "" if sidecar.builder is Builder.ONNX_RUNTIME else f"=={sidecar.builder_version}"
        raise ForeignEngine(f"{engine} needs {sidecar.builder}: pip install {sidecar.builder}{wanted}")
    # TensorRT's engines, of either kind, run only with the version that built them; ONNX's are a standard.
    if sidecar.builder is not Builder.ONNX_RUNTIME and version != sidecar.builder_version:
        raise ForeignEngine(
            f"{engine} was made by {sidecar.builder} {sidecar.builder_version}, {version} is installed. {again}"
        )


def _check_files(engine: Path, sidecar: Sidecar) -> None:
    again = how_to_export(engine, sidecar)
    if engine.name not in sidecar.files:
        raise DamagedEngine(f"{engine} is not the file that its sidecar is of. {again}")
    for name, expected in sidecar.files.items():
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
