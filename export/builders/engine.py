"""An engine from an ONNX file: parsed, compared with its spec, built for every size at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.builders.configuration import configure, keep_timings
from export.builders.library import Log, listen, load_library, monitor
from export.builders.options import BuildOptions
from export.builders.progress import BuildProgress, Progress
from export.errors import BuildFailed, UnusedInput
from export.spec import GraphSpec, Grid, Part, Precision


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, not yet in a file.

    Attributes:
        plan: its bytes.
        grids: of its profiles, in their order; none where no shape depends on the size of the video.
        activation_bytes: GPU memory that tensors and scratch space take beside the weights, for each profile.
        builder_version: of the library, which is also the version that must run it.
        seconds: parsing and building took.
    """

    plan: memoryview
    grids: tuple[Grid, ...]
    activation_bytes: tuple[int, ...]
    builder_version: str
    seconds: float

    def write(self, path: Path) -> None:
        """Put it into a file, whole or not at all."""
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(self.plan)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def build_engine(
    onnx: Path,
    spec: GraphSpec,
    grids: Sequence[Grid],
    options: BuildOptions,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build a graph's engine with one profile a size.

    Args:
        onnx: the graph's file, its weights beside it.
        spec: what the graph was made from.
        grids: rows and columns of tokens at each size.
        options: the library and what it builds for.
        progress: is told how far the build is.

    Raises:
        BuilderMissing: the library is not installed.
        BuildFailed: it can't read the file or build the engine, or the file is not that of the spec.
        UnusedInput: an input of the graph has no effect.
    """
    began = time.monotonic()
    library = load_library(options.builder)
    log = Log()
    logger = listen(library, log)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, network, logger, onnx, log)
    _check_ports(library, network, spec, options.precision)
    if spec.part is not Part.TRANSFORMER or options.precision is Precision.FP32:
        # No kernel computes in float32, or has room for the VAE's one head of 384 numbers. The transformer's attention
        # must have a kernel: the scores of all its tokens would fill the memory.
        _let_decompose(library, network)

    config = builder.create_builder_config()
    configure(library, config, options)
    build_progress = BuildProgress(progress or (lambda _phase, _share: None))
    progress_monitor = monitor(library, build_progress)  # a name of its own: it must live as long as `config`
    config.progress_monitor = progress_monitor
    sizes = tuple(grids) if spec.has_size else ()
    for grid in sizes or grids[:1]:
        _add_profile(builder, config, spec, grid)

    plan = builder.build_serialized_network(network, config)
    if unused := log.unused():  # first: it may be the reason of a failure
        raise UnusedInput(f"{spec.name}: the engine would ignore an input: {'; '.join(unused)}")
    if plan is None:
        raise BuildFailed(f"{spec.name} was not built: {log.errors()}")
    if options.timing_cache is not None:
        keep_timings(config, options.timing_cache)
    build_progress.complete()
    return BuiltEngine(
        memoryview(plan), sizes, tuple(log.activation_bytes), library.__version__, time.monotonic() - began
    )


def _parse(library: Any, network: Any, logger: Any, onnx: Path, log: Log) -> None:
    parser = library.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    where = [f"node {e.node_name() or e.node()} ({e.node_operator()}): {e.desc()}" for e in errors]
    raise BuildFailed(f"{onnx.name} can't be parsed: {'; '.join(where) or log.errors()}")


def _check_ports(library: Any, network: Any, spec: GraphSpec, precision: Precision) -> None:
    """Names and types must be the spec's: who runs the engine knows nothing else of it."""
    found = {
        "inputs": [network.get_input(index) for index in range(network.num_inputs)],
        "outputs": [network.get_output(index) for index in range(network.num_outputs)],
    }
    for kind, ports in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        expected = {port.name: _type_of(library, port.dtype or precision.dtype) for port in ports}
        have = {tensor.name: tensor.dtype for tensor in found[kind]}
        if have != expected:
            differ = sorted(name for name in have.keys() | expected if have.get(name) != expected.get(name))
            raise BuildFailed(
                f"{spec.name}: {kind} differ from the spec's at {', '.join(differ)}: "
                f"the file has {_types(have, differ)}, the spec {_types(expected, differ)}"
            )


def _type_of(library: Any, dtype: torch.dtype) -> Any:
    types = library.DataType
    return {
        torch.float32: types.FLOAT,
        torch.bfloat16: types.BF16,
        torch.float16: types.HALF,
        torch.int64: types.INT64,
    }[dtype]


def _types(have: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(str(have[name].name) if name in have else "none" for name in names)


def _let_decompose(library: Any, network: Any) -> None:
    """Let attention run as separate operations where the library has no kernel that does it at once."""
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == library.LayerType.ATTENTION_INPUT:
            layer.__class__ = library.IAttentionInputLayer  # `get_layer` gives all layers as the same class
            layer.attention.decomposable = True


def _add_profile(builder: Any, config: Any, spec: GraphSpec, grid: Grid) -> None:
    profile = builder.create_optimization_profile()
    for name, (shortest, usual, longest) in spec.profile(grid).items():
        profile.set_shape(name, shortest, usual, longest)
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailed(f"{spec.name}: the profile of {grid.rows}x{grid.cols} tokens is refused")
