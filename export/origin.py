"""What engines are made of, by hash: so that an export knows what it need not make again, and a runtime what fits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from export.checkpoint_folder import weight_files
from export.spec import GraphSpec, Grid, Part, Precision, Size, varying
from filmstrip.runtime.engines.manifest import (
    SPEC_VERSION,
    BadEngine,
    Builder,
    EngineFile,
    EngineTensor,
    Manifest,
    Profile,
    ShapeRange,
    file_sha256,
    read,
)


@dataclass(frozen=True)
class Origin:
    """SHA-256 of a checkpoint's files, by their path in its folder, and of the LoRAs' files, by their name."""

    files: Mapping[Part, Mapping[str, str]]
    loras: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Path, loras: Mapping[str, Path]) -> "Origin":
        """Hash all files that a checkpoint's engines are made of."""
        files = {
            part: {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in paths}
            for part, paths in weight_files(checkpoint).items()
        }
        return cls(files, {name: file_sha256(path) for name, path in loras.items()})


@dataclass(frozen=True)
class Make:
    """How engines are made.

    Attributes:
        builder: what makes them.
        builder_version: of its library.
        precision: what they compute in.
        target: cpu, or a compute capability such as sm89.
        sizes: of the video, the first of them the pipeline's own.
    """

    builder: Builder
    builder_version: str
    precision: Precision
    target: str
    sizes: Mapping[Size, Grid]


def manifest_of(spec: GraphSpec, make: Make, origin: Origin, files: Mapping[str, EngineFile]) -> Manifest:
    """What is to be written beside an engine; without `files`, what would be but for them."""
    takes_loras = any(port.name == "lora_scales" for port in spec.inputs)
    loras = origin.loras if takes_loras else {}
    return Manifest(
        graph=spec.name,
        spec_version=SPEC_VERSION,
        builder=make.builder,
        builder_version=make.builder_version,
        precision=make.precision.value,
        target=make.target,
        profiles=_profiles(spec, make.sizes),
        inputs=tuple(_tensor(port.name, port.dtype, varying(port.shape), make) for port in spec.inputs),
        outputs=tuple(_tensor(output.name, output.dtype, output.shape, make) for output in spec.outputs),
        checkpoint={**origin.files[spec.part], **{f"--lora {name}": sha256 for name, sha256 in loras.items()}},
        loras=tuple(loras),
        files=files,
    )


def _tensor(name: str, dtype: torch.dtype | None, dims: tuple[int, ...], make: Make) -> EngineTensor:
    return EngineTensor(name, str(dtype or make.precision.dtype).removeprefix("torch."), dims)


def _profiles(spec: GraphSpec, sizes: Mapping[Size, Grid]) -> dict[str, Profile]:
    if not spec.has_size:
        return {}
    return {
        str(size): {name: ShapeRange(*reach) for name, reach in spec.profile(grid).items()}
        for size, grid in sizes.items()
    }


def is_up_to_date(engine: Path, wanted: Manifest) -> bool:
    """Whether an engine is there, whole, and made as `wanted` says, but for the files."""
    try:
        found = read(engine)
        return replace(found, files={}) == wanted and all(
            EngineFile.of(engine.with_name(name)) == file for name, file in found.files.items()
        )
    except (BadEngine, OSError):
        return False
