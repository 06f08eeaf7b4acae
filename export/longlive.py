"""From a checkpoint's folder to a model's: each graph is translated, built and verified, then moved into place."""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from export.checkpoint import attach_loras, load_checkpoint
from export.checkpoint_files import Checkpoint, find_tokenizer, open_checkpoint
from export.errors import BadConfig
from export.graph_specs import graph_specs, grid_of
from export.model_folder import check_pipeline_id, runtime_config, write_model_folder
from export.onnx_files import write_onnx
from export.preset_checkpoint import download_parts, find_parts, open_preset, sources_of
from export.presets import Preset
from export.record import ExportRecord
from export.spec import Component, GraphSpec, Grid, Precision, Size, did_you_mean, dynamic_shape
from export.tensor_files import Notes, WeightChoice
from export.tensorrt import BuildOptions, build_engine
from export.verify import Comparison, compare, require_close
from filmstrip.runtime.engines.engine import installed_version, load_engine, machine_of
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
    profile_name,
    read_manifest,
    write_manifest,
)
from filmstrip.runtime.longlive_config import LongLiveConfig


@dataclass(frozen=True)
class ExportConfig:
    """What to export.

    Attributes:
        checkpoint: its folder; None with a preset.
        id: of the pipeline.
        sizes: of the video; the first is the pipeline's own.
        repository: Triton's model repository, in which the folder `id` is written.
        loras: files by name, in the order of the scales.
        tensorrt: how TensorRT builds the engines; None for ONNX Runtime, on the CPU and in float32.
        text_encoder_on_cpu: run the text encoder on the CPU, wherever the other graphs run.
        verify: compare the engines with the modules before they are moved into place.
        fresh: build engines again even if they are up to date.
        num_threads: of ONNX Runtime, while engines are compared.
        weights: which weights to use where a file has both trained ones and their average.
        preset: a released model; None with a checkpoint's folder.
        sources: folders, files and hub ids that a preset's files come from; empty for its own repositories.
        vace: whether a preset has a VACE branch; None if a folder among the sources has its weights.
    """

    checkpoint: Path | None
    id: str
    sizes: tuple[Size, ...]
    repository: Path
    loras: Mapping[str, Path] = field(default_factory=dict)
    tensorrt: BuildOptions | None = None
    text_encoder_on_cpu: bool = False
    verify: bool = True
    fresh: bool = False
    num_threads: int = 1
    weights: WeightChoice = field(default_factory=WeightChoice)
    preset: Preset | None = None
    sources: tuple[str, ...] = ()
    vace: bool | None = None

    @property
    def origin(self) -> tuple[str, ...]:
        """Where the checkpoint's files come from, for the record."""
        if self.checkpoint is not None:
            return (str(self.checkpoint.absolute()),)
        return tuple(str(Path(name).absolute()) if Path(name).exists() else name for name in self.sources)


def open_config(config: "ExportConfig", notes: Notes) -> Checkpoint:
    """Open the checkpoint that a configuration names, its preset's files downloaded where necessary.

    Raises:
        BadConfig: a config.json is missing or wrong.
        BadCheckpoint: a file is missing or can't be read or downloaded.
    """
    if config.checkpoint is not None:
        return open_checkpoint(config.checkpoint, config.weights, notes)
    assert config.preset is not None
    sources = sources_of(config.preset, config.sources, vace=bool(config.vace))
    files = download_parts(find_parts(config.preset, sources, vace=config.vace))
    return open_preset(config.preset, files, config.weights, notes)


class ExportObserver(Protocol):
    """Follows an export as it runs."""

    def on_graphs(self, names: Sequence[str]) -> None:
        """The export begins; these are its graphs."""

    def on_step(self, graph: str, step: str) -> None:
        """A step of a graph begins."""

    def on_progress(self, phase: str, share: float) -> None:
        """A long step has come this far, 0 to 1."""

    def on_verified(self, comparisons: Sequence[Comparison]) -> None:
        """A graph has been compared with its module."""

    def on_graph_done(self) -> None:
        """A graph's engine is in place."""


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes:
        folder: of the model.
        built: graphs whose engines are new.
        kept: graphs whose engines were up to date.
        ran_engines: whether the engines could run on this machine; if not, only their graphs were verified.
        notes: what was chosen and what was left out of the files.
    """

    folder: Path
    built: tuple[str, ...]
    kept: tuple[str, ...]
    ran_engines: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """SHA-256 of a checkpoint's files, by their path in its folder, and of the LoRAs' files, by their name."""

    files: Mapping[Component, Mapping[str, str]]
    loras: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Checkpoint, loras: Mapping[str, Path]) -> "Provenance":
        """Hash all files that a checkpoint's engines are built from."""
        files = {
            component: {
                checkpoint.name_of(path): file_sha256(path) for path in checkpoint.files.of_component(component)
            }
            for component in Component
        }
        if not checkpoint.files.configs:  # a preset's configuration is in no file
            for of_component in files.values():
                of_component["--preset"] = hashlib.sha256(checkpoint.config.model_dump_json().encode()).hexdigest()
        if checkpoint.choice.weights is not None:
            files[Component.TRANSFORMER]["--weights"] = checkpoint.choice.weights.value
        return cls(files, {name: file_sha256(path) for name, path in loras.items()})


@dataclass(frozen=True)
class EngineConfig:
    """How engines are built.

    Attributes:
        builder: the library that builds them.
        builder_version: of that library.
        precision: what they compute in.
        target: "cpu", or a compute capability such as sm89.
        sizes: of the video; the first is the pipeline's own.
    """

    builder: Builder
    builder_version: str
    precision: Precision
    target: str
    sizes: Mapping[Size, Grid]


def export_longlive(config: ExportConfig, observer: ExportObserver) -> ExportResult:
    """Export a checkpoint of the LongLive family; engines that are up to date are kept, so a stopped export continues.

    Raises:
        ExportError: the checkpoint, the configuration or an engine is wrong. Existing engines stay as they were.
    """
    check_pipeline_id(config.id)
    if not config.sizes:
        raise BadConfig("no size: give at least one, WIDTHxHEIGHT in pixels")
    folder = config.repository / config.id
    _refuse_turned_sizes(config, folder / "1")

    notes = Notes()
    checkpoint = open_config(config, notes)
    networks = load_checkpoint(checkpoint, notes)
    attach_loras(networks, config.loras, notes)
    grids = {size: grid_of(networks.config, size) for size in config.sizes}
    tokenizer = checkpoint.files.tokenizer
    if checkpoint.text_encoder is not None and tokenizer is None:
        tokenizer = find_tokenizer(checkpoint.root)  # says where to get it

    version = folder / "1"
    (version / "engines").mkdir(parents=True, exist_ok=True)
    exporter = _Exporter(config, checkpoint, version / "engines", grids, observer)
    built, kept = exporter.export(graph_specs(networks, len(config.loras)))

    if networks.text_encoder is not None and tokenizer is not None:
        shutil.copyfile(tokenizer, version / "tokenizer.json")
    pipeline = runtime_config(networks.config, config.sizes, tuple(config.loras))
    loras = {name: str(path.absolute()) for name, path in config.loras.items()}
    preset = None if config.preset is None else config.preset.name
    ExportRecord(config=networks.config, checkpoint=config.origin, preset=preset, loras=loras).write(version)
    write_model_folder(folder, pipeline, on_gpu=config.tensorrt is not None)
    return ExportResult(folder, built, kept, exporter.can_run_engines, tuple(notes.lines))


def _refuse_turned_sizes(config: ExportConfig, version: Path) -> None:
    """Refuse a size that an earlier export of this pipeline has with width and height swapped, except with `fresh`.

    Until 0.1.0 `--size` took HEIGHTxWIDTH: a command from then would replace a wide pipeline with a tall one.
    """
    try:
        known = {Size(*size) for size in LongLiveConfig.read(version).sizes}
    except (OSError, ValueError):
        return  # never exported, or by another version
    for size in config.sizes:
        if not config.fresh and size not in known and size.turned in known - set(config.sizes):
            raise BadConfig(
                f"{config.id} was exported for {size.turned}, not {size}: {did_you_mean(size)} "
                f"(--fresh exports it for {size} instead)"
            )


class _Exporter:
    def __init__(
        self,
        config: ExportConfig,
        checkpoint: Checkpoint,
        engines: Path,
        grids: Mapping[Size, Grid],
        observer: ExportObserver,
    ) -> None:
        self.config = config
        self.engines = engines
        self.observer = observer
        cpu = Builder.ONNX_RUNTIME
        self.cpu_config = EngineConfig(cpu, _installed_version(cpu), Precision.FP32, "cpu", grids)
        self.engine_config = self.cpu_config
        if config.tensorrt is not None:
            options = config.tensorrt
            target = ",".join(options.targets) or machine_of(torch.device("cuda")).target
            version = _installed_version(options.builder)
            self.engine_config = EngineConfig(options.builder, version, options.precision, target, grids)
        self.provenance = Provenance.of(checkpoint, config.loras)

    @property
    def can_run_engines(self) -> bool:
        """Whether this machine can run the engines."""
        return self.config.tensorrt is None or torch.cuda.is_available()

    def export(self, specs: Sequence[GraphSpec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Build the engines that are missing or outdated; returns the names of those built and of those kept."""
        self.observer.on_graphs([spec.name for spec in specs])
        built, kept = [], []
        for spec in specs:
            engine_config = self._config_for(spec)
            engine = self.engines / _file_name(spec, engine_config)
            expected = manifest_of(spec, engine_config, self.provenance, {})
            if not self.config.fresh and _is_up_to_date(engine, expected):
                kept.append(spec.name)
            else:
                with tempfile.TemporaryDirectory(prefix=".building-", dir=self.engines) as scratch:
                    self._move_into_place(self._build(spec, engine_config, Path(scratch)), engine)
                built.append(spec.name)
            self.observer.on_graph_done()
        self._remove_others({_file_name(spec, self._config_for(spec)) for spec in specs})
        return tuple(built), tuple(kept)

    def _config_for(self, spec: GraphSpec) -> EngineConfig:
        """How one graph's engine is built."""
        if spec.component is not Component.TEXT_ENCODER:
            return self.engine_config
        if self.config.text_encoder_on_cpu:
            return self.cpu_config
        if self.engine_config.precision is Precision.FP16:
            return replace(self.engine_config, precision=Precision.BF16)  # its numbers are too large for float16
        return self.engine_config

    def _build(self, spec: GraphSpec, engine_config: EngineConfig, folder: Path) -> Path:
        """Build and verify a graph's engine in an empty folder; returns its path."""
        if self.config.tensorrt is None or engine_config is self.cpu_config:
            engine = self._build_onnx(spec, folder, engine_config)
            self._verify(spec, engine, engine_config)
            return engine
        if self.config.verify:
            # In float32 on the CPU, which shows that the graph is right, whatever runs it later.
            with tempfile.TemporaryDirectory(dir=folder) as for_cpu:
                self._verify(spec, self._build_onnx(spec, Path(for_cpu), self.cpu_config), self.cpu_config)
        options = replace(self.config.tensorrt, precision=engine_config.precision)
        engine = self._build_tensorrt(spec, engine_config, folder, options)
        if self.can_run_engines:
            self._verify(spec, engine, engine_config)
        return engine

    def _build_onnx(self, spec: GraphSpec, folder: Path, engine_config: EngineConfig) -> Path:
        """Write a graph as an ONNX file with its manifest."""
        self.observer.on_step(spec.name, f"translating to ONNX, {engine_config.precision}")
        path = folder / f"{spec.name}.onnx"
        self._write_manifest(spec, engine_config, path, write_onnx(spec, engine_config.precision, path))
        return path

    def _build_tensorrt(
        self, spec: GraphSpec, engine_config: EngineConfig, folder: Path, options: BuildOptions
    ) -> Path:
        """Write a graph as a TensorRT engine with its manifest."""
        with tempfile.TemporaryDirectory(dir=folder) as for_parser:
            self.observer.on_step(spec.name, f"translating to ONNX, {engine_config.precision}")
            onnx = Path(for_parser) / f"{spec.name}.onnx"
            write_onnx(spec, engine_config.precision, onnx)
            self.observer.on_step(spec.name, f"building for {engine_config.target}")
            grids = list(engine_config.sizes.values())
            built = build_engine(onnx, spec, grids, options, self.observer.on_progress)
        path = folder / f"{spec.name}.engine"
        built.write(path)
        self._write_manifest(spec, engine_config, path, [path])
        return path

    def _write_manifest(
        self, spec: GraphSpec, engine_config: EngineConfig, engine: Path, files: Sequence[Path]
    ) -> None:
        hashed = {path.name: EngineFile.of(path) for path in files}
        write_manifest(engine, manifest_of(spec, engine_config, self.provenance, hashed))

    def _verify(self, spec: GraphSpec, engine: Path, engine_config: EngineConfig) -> None:
        """Compare an engine with its module, loaded as the runtime loads it.

        Raises:
            ToleranceExceeded: an output is too far off.
        """
        if not self.config.verify:
            return
        device = torch.device("cpu" if engine_config.target == "cpu" else "cuda")
        self.observer.on_step(spec.name, f"verifying on {device.type}")
        loaded = load_engine(engine, device=device, num_threads=self.config.num_threads)

        def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            outputs = loaded.run({name: value.to(device) for name, value in inputs.items()})
            return {name: value.cpu() for name, value in outputs.items()}

        runner = engine_config.builder.value
        comparisons = list(compare(spec, engine_config.sizes, engine_config.precision, runner, run))
        self.observer.on_verified(comparisons)
        require_close(comparisons)

    def _move_into_place(self, built: Path, engine: Path) -> None:
        """Move an engine and its files; the manifest goes last, because an engine without one is ignored."""
        old, new = manifest_path(engine), manifest_path(built)
        old.unlink(missing_ok=True)
        for path in built.parent.iterdir():
            if path.is_file() and path != new:
                path.replace(engine.parent / path.name)
        new.replace(old)

    def _remove_others(self, names: set[str]) -> None:
        """Remove engines of other exports: the runtime would refuse to load them with these."""
        for path in self.engines.iterdir():
            if not any(path.name == name or path.name.startswith(f"{name}.") for name in names):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def manifest_of(
    spec: GraphSpec, engine_config: EngineConfig, provenance: Provenance, files: Mapping[str, EngineFile]
) -> Manifest:
    """The manifest of an engine; with empty `files`, what it must say for the engine to be up to date."""
    takes_loras = any(tensor.name == "lora_scales" for tensor in spec.inputs)
    loras = provenance.loras if takes_loras else {}
    profiles: dict[str, Profile] = {}
    if spec.depends_on_size:
        for size, grid in engine_config.sizes.items():
            shapes = {name: ShapeRange(*lengths) for name, lengths in spec.profile(grid).items()}
            profiles[profile_name(size.height, size.width)] = shapes

    def tensor(name: str, dtype: torch.dtype | None, dims: tuple[int, ...]) -> EngineTensor:
        return EngineTensor(name, str(dtype or engine_config.precision.dtype).removeprefix("torch."), dims)

    return Manifest(
        graph=spec.name,
        spec_version=SPEC_VERSION,
        builder=engine_config.builder,
        builder_version=engine_config.builder_version,
        precision=engine_config.precision.value,
        target=engine_config.target,
        profiles=profiles,
        inputs=tuple(tensor(one.name, one.dtype, dynamic_shape(one.shape)) for one in spec.inputs),
        outputs=tuple(tensor(one.name, one.dtype, one.shape) for one in spec.outputs),
        checkpoint={**provenance.files[spec.component], **{f"--lora {name}": sha256 for name, sha256 in loras.items()}},
        loras=tuple(loras),
        files=files,
    )


def _is_up_to_date(engine: Path, expected: Manifest) -> bool:
    """Whether an engine is there, whole, and built as expected."""
    try:
        found = read_manifest(engine)
        return replace(found, files={}) == expected and all(
            EngineFile.of(engine.with_name(name)) == file for name, file in found.files.items()
        )
    except (BadEngine, OSError):
        return False


def _file_name(spec: GraphSpec, engine_config: EngineConfig) -> str:
    return f"{spec.name}.{'onnx' if engine_config.builder is Builder.ONNX_RUNTIME else 'engine'}"


def _installed_version(builder: Builder) -> str:
    """The version of a builder's library.

    Raises:
        BadConfig: it is not installed.
    """
    version = installed_version(builder)
    if version is None:
        raise BadConfig(f"{builder} is not installed: pip install {builder}")
    return version
