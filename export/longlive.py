"""From a checkpoint's folder to a model's: each graph traced, built, verified, and only then put in its place."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from export.checkpoint import read_weights
from export.checkpoint_folder import Networks, find_tokenizer, load_networks
from export.graph_specs import graph_specs, grid_of
from export.lora_files import read_adapter
from export.model_folder import check_name, pipeline_config, write_model_folder
from export.modules.layers import Linear
from export.modules.lora import attach
from export.onnx_files import write_onnx
from export.origin import Make, Origin, sidecar_of
from export.spec import GraphSpec, Precision, Size
from export.verify import Comparison, check, compare
from filmstrip.runtime.engines.sidecar import Builder, EngineFile, read, sidecar_path, write


@dataclass(frozen=True)
class Order:
    """What is to be exported.

    Attributes:
        checkpoint: its folder.
        id: of the pipeline.
        sizes: of the video, the first of them the pipeline's own.
        repository: Triton's model repository, in which the folder `id` is written.
        builder: what makes the engines.
        precision: what they compute in.
        target: cpu, or the compute capability of the GPU, such as sm89.
        loras: files by name, in the order of the scales.
        build: options of TensorRT's builders.
        verify: compare the engines with the modules before they are put in place.
        fresh: make engines again that are there and up to date.
    """

    checkpoint: Path
    id: str
    sizes: tuple[Size, ...]
    repository: Path
    builder: Builder = Builder.ONNX_RUNTIME
    precision: Precision = Precision.FP32
    target: str = "cpu"
    loras: Mapping[str, Path] = field(default_factory=dict)
    build: BuildOptions = BuildOptions()
    verify: bool = True
    fresh: bool = False


class Watcher(Protocol):
    """Is told how an export goes on."""

    def graphs(self, names: Sequence[str]) -> None:
        """The graphs that there are to make."""

    def step(self, graph: str, doing: str) -> None:
        """Something has begun with a graph."""

    def progress(self, doing: str, done: int, total: int) -> None:
        """How far a long step is."""

    def compared(self, comparisons: Sequence[Comparison]) -> None:
        """A graph was compared with its module."""


@dataclass(frozen=True)
class Exported:
    """What an export has made.

    Attributes:
        folder: of the model.
        made: graphs whose engines are new.
        kept: graphs whose engines were there and up to date.
        unverified: graphs whose engines could not be run here, only their ONNX graphs.
    """

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    unverified: tuple[str, ...]


def export_longlive(order: Order, watcher: Watcher) -> Exported:
    """Export a checkpoint of the LongLive family; what is up to date is kept, so that it can go on after a stop.

    Raises:
        ExportError: the checkpoint, the order or an engine is wrong; nothing that was there is lost then.
    """
    check_name(order.id)
    networks = load_networks(order.checkpoint)
    attach_loras(networks, order.loras)
    tokenizer = None if networks.text_encoder is None else find_tokenizer(order.checkpoint)
    grids = {size: grid_of(networks.config, size) for size in order.sizes}
    make = Make(order.builder, builder_version(order.builder), order.precision, order.target, grids)
    origin = Origin.of(order.checkpoint, order.loras)
    specs = graph_specs(networks, len(order.loras))

    folder = order.repository / order.id
    engines = folder / "1" / "engines"
    engines.mkdir(parents=True, exist_ok=True)
    watcher.graphs([spec.name for spec in specs])
    made, kept, unverified = [], [], []
    for spec in specs:
        wanted = sidecar_of(spec, make, origin, {})
        engine = engines / engine_name(spec, make)
        if not order.fresh and is_up_to_date(engine, wanted):
            watcher.step(spec.name, "kept: it is up to date")
            kept.append(spec.name)
            continue
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as stage:
            ...
    return Exported(folder, tuple(made), tuple(kept), tuple(unverified))
