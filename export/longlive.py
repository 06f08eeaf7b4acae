"""From a checkpoint's folder to a model's: each graph translated, built, verified, and only then put in its place."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from export.checkpoint import Networks, find_tokenizer, load_networks, read_weights, weight_files
from export.errors import BadConfig
from export.graph_specs import graph_specs, grid_of
from export.lora import attach, read_adapter
from export.model_folder import check_pipeline_id, pipeline_config, write_model_folder
from export.modules.layers import Linear
from export.onnx_files import write_onnx
from export.spec import Component, GraphSpec, Grid, Precision, Size, dynamic_shape
from export.tensorrt import BuildOptions, build_engine
from export.verify import Comparison, check, compare
from filmstrip.runtime.engines.load import installed_version, load_engine, machine_of
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
    manifest_path,
    read,
    write,
)


@dataclass(frozen=True)
class Provenance:
    """SHA-256 of a checkpoint's files, by their path in its folder, and of the LoRAs' files, by their name."""

    files: Mapping[Component, Mapping[str, str]]
    loras: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Path, loras: Mapping[str, Path]) -> "Provenance":
        """Hash all files that a checkpoint's engines are made of."""
        files = {
            part: {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in paths}
            for part, paths in weight_files(checkpoint).items()
        }
        return cls(files, {name: file_sha256(path) for name, path in loras.items()})


@dataclass(frozen=True)
class EngineConfig:
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


def manifest_of(
    spec: GraphSpec, make: EngineConfig, provenance: Provenance, files: Mapping[str, EngineFile]
) -> Manifest:
    """What is to be written beside an engine; without `files`, what would be but for them."""
    takes_loras = any(tensor.name == "lora_scales" for tensor in spec.inputs)
    loras = provenance.loras if takes_loras else {}
    return Manifest(
        graph=spec.name,
        spec_version=SPEC_VERSION,
        builder=make.builder,
        builder_version=make.builder_version,
        precision=make.precision.value,
        target=make.target,
        profiles=_profiles(spec, make.sizes),
        inputs=tuple(_tensor(tensor.name, tensor.dtype, dynamic_shape(tensor.shape), make) for tensor in spec.inputs),
        outputs=tuple(_tensor(output.name, output.dtype, output.shape, make) for output in spec.outputs),
        checkpoint={**provenance.files[spec.component], **{f"--lora {name}": sha256 for name, sha256 in loras.items()}},
        loras=tuple(loras),
        files=files,
    )


def _tensor(name: str, dtype: torch.dtype | None, dims: tuple[int, ...], make: EngineConfig) -> EngineTensor:
    return EngineTensor(name, str(dtype or make.precision.dtype).removeprefix("torch."), dims)


def _profiles(spec: GraphSpec, sizes: Mapping[Size, Grid]) -> dict[str, Profile]:
    if not spec.depends_on_size:
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


@dataclass(frozen=True)
class ExportConfig:
    """What is to be exported.

    Attributes:
        checkpoint: its folder.
        id: of the pipeline.
        sizes: of the video, the first of them the pipeline's own.
        repository: Triton's model repository, in which the folder `id` is written.
        loras: files by name, in the order of the scales.
        tensorrt: how TensorRT builds the engines; None for ONNX Runtime, on the CPU and in float32.
        text_encoder_on_cpu: the text encoder runs on the CPU, whatever the others do.
        verify: compare the engines with the modules before they are put in place.
        fresh: make engines again that are there and up to date.
        num_threads: of ONNX Runtime, while engines are compared.
    """

    checkpoint: Path
    id: str
    sizes: tuple[Size, ...]
    repository: Path
    loras: Mapping[str, Path] = field(default_factory=dict)
    tensorrt: BuildOptions | None = None
    text_encoder_on_cpu: bool = False
    verify: bool = True
    fresh: bool = False
    num_threads: int = 1


class ExportObserver(Protocol):
    """Is told how an export goes on."""

    def graphs(self, names: Sequence[str]) -> None:
        """The graphs that there are to make."""

    def begin(self, graph: str, step: str) -> None:
        """A step of a graph has begun."""

    def progress(self, phase: str, share: float) -> None:
        """How far a long step is, 0 to 1."""

    def compared(self, comparisons: Sequence[Comparison]) -> None:
        """A graph was compared with its module."""

    def done(self) -> None:
        """A graph's engine is in its place."""


@dataclass(frozen=True)
class ExportResult:
    """What an export has made.

    Attributes:
        folder: of the model.
        made: graphs whose engines are new.
        kept: graphs whose engines were there and up to date.
        not_run: whether the engines are for a device that this machine does not have: only their graphs were verified.
    """

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    not_run: bool


def export_longlive(order: ExportConfig, observer: ExportObserver) -> ExportResult:
    """Export a checkpoint of the LongLive family; what is up to date is kept, so that it can go on after a stop.

    Raises:
        ExportError: the checkpoint, the order or an engine is wrong. An engine that was there is as it was then.
    """
    check_pipeline_id(order.id)
    if not order.sizes:
        raise BadConfig("no size is given: HEIGHTxWIDTH in pixels")
    networks = load_networks(order.checkpoint)
    attach_loras(networks, order.loras)
    grids = {size: grid_of(networks.config, size) for size in order.sizes}
    tokenizer = None if networks.text_encoder is None else find_tokenizer(order.checkpoint)

    version = order.repository / order.id / "1"
    (version / "engines").mkdir(parents=True, exist_ok=True)
    exporter = _Exporter(order, version / "engines", grids, observer)
    made, kept = exporter.export(graph_specs(networks, len(order.loras)))

    if tokenizer is not None:
        shutil.copyfile(tokenizer, version / "tokenizer.json")
    config = pipeline_config(networks.config, order.sizes, tuple(order.loras))
    write_model_folder(version.parent, config, on_gpu=order.tensorrt is not None)
    return ExportResult(version.parent, made, kept, not exporter.runs_here)


def attach_loras(networks: Networks, loras: Mapping[str, Path]) -> None:
    """Put LoRAs beside the weights of all networks that they change.

    Raises:
        BadCheckpoint: a file can't be read or fits no network.
    """
    parts: list[nn.Module] = [
        part
        for part in (networks.transformer, networks.text_kv, networks.vace, networks.vace_text_kv)
        if part is not None
    ]
    layers = [name for part in parts for name, layer in part.named_modules() if isinstance(layer, Linear)]
    attach([read_adapter(name, read_weights(path), layers) for name, path in loras.items()], *parts)


class _Exporter:
    def __init__(
        self, order: ExportConfig, engines: Path, grids: Mapping[Size, Grid], observer: ExportObserver
    ) -> None:
        self.order = order
        self.engines = engines
        self.observer = observer
        on_cpu = Builder.ONNX_RUNTIME
        self.make_for_cpu = EngineConfig(on_cpu, _version(on_cpu), Precision.FP32, "cpu", grids)
        self.make = self.make_for_cpu
        if order.tensorrt is not None:
            options = order.tensorrt
            target = ",".join(options.targets) or machine_of(torch.device("cuda")).target
            self.make = EngineConfig(options.builder, _version(options.builder), options.precision, target, grids)
        self.provenance = Provenance.of(order.checkpoint, order.loras)

    @property
    def runs_here(self) -> bool:
        """Whether this machine can run the engines."""
        return self.order.tensorrt is None or torch.cuda.is_available()

    def export(self, specs: Sequence[GraphSpec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """EngineConfig what is not there; the names of what was made and of what was kept."""
        self.observer.graphs([spec.name for spec in specs])
        made, kept = [], []
        for spec in specs:
            make = self._make_of(spec)
            engine = self.engines / _file_name(spec, make)
            if not self.order.fresh and is_up_to_date(engine, manifest_of(spec, make, self.provenance, {})):
                kept.append(spec.name)
            else:
                with tempfile.TemporaryDirectory(prefix=".making-", dir=self.engines) as folder:
                    self._put_in_place(self._made(spec, make, Path(folder)), engine)
                made.append(spec.name)
            self.observer.done()
        self._remove_others({_file_name(spec, self._make_of(spec)) for spec in specs})
        return tuple(made), tuple(kept)

    def _make_of(self, spec: GraphSpec) -> EngineConfig:
        """How one graph's engine is made."""
        if spec.component is not Component.TEXT_ENCODER:
            return self.make
        if self.order.text_encoder_on_cpu:
            return self.make_for_cpu
        # Its numbers are too large for float16.
        is_half = self.make.precision is Precision.FP16
        return replace(self.make, precision=Precision.BF16) if is_half else self.make

    def _made(self, spec: GraphSpec, make: EngineConfig, folder: Path) -> Path:
        """A graph's engine, new in a folder of its own, and verified."""
        if self.order.tensorrt is None or make is self.make_for_cpu:
            engine = self._onnx(spec, folder, make)
            self._verify(spec, engine, make)
            return engine
        if self.order.verify:
            # The graph in float32, on the CPU: whatever runs it later, it is the right one.
            with tempfile.TemporaryDirectory(dir=folder) as for_cpu:
                self._verify(spec, self._onnx(spec, Path(for_cpu), self.make_for_cpu), self.make_for_cpu)
        engine = self._tensorrt(spec, make, folder, replace(self.order.tensorrt, precision=make.precision))
        if self.runs_here:
            self._verify(spec, engine, make)
        return engine

    def _onnx(self, spec: GraphSpec, folder: Path, make: EngineConfig) -> Path:
        """A graph as an ONNX file with its manifest."""
        self.observer.begin(spec.name, f"translating to ONNX, {make.precision}")
        path = folder / f"{spec.name}.onnx"
        self._write_manifest(spec, make, path, write_onnx(spec, make.precision, path))
        return path

    def _tensorrt(self, spec: GraphSpec, make: EngineConfig, folder: Path, options: BuildOptions) -> Path:
        """A graph as a TensorRT engine with its manifest."""
        with tempfile.TemporaryDirectory(dir=folder) as for_parser:
            self.observer.begin(spec.name, f"translating to ONNX, {make.precision}")
            onnx = Path(for_parser) / f"{spec.name}.onnx"
            write_onnx(spec, make.precision, onnx)
            self.observer.begin(spec.name, f"building for {make.target}")
            built = build_engine(onnx, spec, list(make.sizes.values()), options, self.observer.progress)
        path = folder / f"{spec.name}.engine"
        built.write(path)
        self._write_manifest(spec, make, path, [path])
        return path

    def _write_manifest(self, spec: GraphSpec, make: EngineConfig, engine: Path, files: Sequence[Path]) -> None:
        hashed = {path.name: EngineFile.of(path) for path in files}
        write(engine, manifest_of(spec, make, self.provenance, hashed))

    def _verify(self, spec: GraphSpec, engine: Path, make: EngineConfig) -> None:
        """Compare an engine with its module, as the runtime will load it.

        Raises:
            ToleranceExceeded: an output is too far off.
        """
        if not self.order.verify:
            return
        device = torch.device("cpu" if make.target == "cpu" else "cuda")
        self.observer.begin(spec.name, f"verifying on {device.type}")
        loaded = load_engine(engine, device=device, num_threads=self.order.num_threads)

        def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            outputs = loaded.run({name: value.to(device) for name, value in inputs.items()})
            return {name: value.cpu() for name, value in outputs.items()}

        comparisons = list(compare(spec, make.sizes, make.precision, make.builder.value, run))
        self.observer.compared(comparisons)
        check(comparisons)

    def _put_in_place(self, made: Path, engine: Path) -> None:
        """Move an engine and all that belongs to it; its manifest last, without which it counts for nothing."""
        old, new = manifest_path(engine), manifest_path(made)
        old.unlink(missing_ok=True)
        for path in made.parent.iterdir():
            if path.is_file() and path != new:
                path.replace(engine.parent / path.name)
        new.replace(old)

    def _remove_others(self, names: set[str]) -> None:
        """Remove engines of another export, which the runtime would refuse beside these."""
        for path in self.engines.iterdir():
            if not any(path.name == name or path.name.startswith(f"{name}.") for name in names):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _file_name(spec: GraphSpec, make: EngineConfig) -> str:
    return f"{spec.name}.{'onnx' if make.builder is Builder.ONNX_RUNTIME else 'engine'}"


def _version(builder: Builder) -> str:
    """The version of a builder's library.

    Raises:
        BadConfig: it is not installed.
    """
    version = installed_version(builder)
    if version is None:
        raise BadConfig(f"{builder} is not installed: pip install {builder}")
    return version
