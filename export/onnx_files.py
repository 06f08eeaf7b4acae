"""From a graph's spec to an ONNX file."""

import copy
import functools
import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from onnxscript import rewriter
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.errors import UnusedInput
from export.spec import Axis, GraphSpec, Grid, Precision

OPSET = 23
"""The first with an Attention operator, which both ONNX Runtime and TensorRT run as a single kernel."""
_TRACED = Grid(2, 3)
_LONGEST = 65536
_translations = functools.cache(ONNXRegistry.from_torchlib)


class _Positional(nn.Module):
    """A graph with positional inputs, as in ONNX."""

    def __init__(self, named: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.named = named
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs for inputs in the order of `names`."""
        return self.named(**dict(zip(self.names, tensors, strict=True)))


def to_program(spec: GraphSpec, precision: Precision) -> torch.onnx.ONNXProgram:
    """Trace and translate a graph, with the weights of the spec's module in the given precision.

    Weights on the meta device get no values and take no memory: see `export.compile_full`.
    """
    module = _expand_meta_weights(copy.deepcopy(spec.module).to(precision.dtype))
    graph = _Positional(module, [tensor.name for tensor in spec.inputs]).eval()
    # The tracer treats lengths of 0 and 1 as constants.
    point = {name: max(2, axis.opt) for name, axis in spec.axes.items()}
    lengths = spec.axis_lengths(_TRACED, point)
    dims = {name: Dim(name, min=_min_length(spec, name), max=_LONGEST) for name in lengths}
    inputs = [
        torch.zeros(tensor.resolve(lengths), dtype=precision.dtype if tensor.dtype is None else tensor.dtype)
        for tensor in spec.inputs
    ]
    shapes = tuple(
        {place: _dim(dims, length) for place, length in enumerate(tensor.shape) if isinstance(length, Axis)}
        for tensor in spec.inputs
    )
    # With symbolic sizes, torch's cache of fake tensors costs more than it saves.
    without_cache = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    # Torch would read its library of translations for each graph.
    with_shared_translations = patch.object(ONNXRegistry, "from_torchlib", staticmethod(_translations))
    with (
        torch.no_grad(),
        without_cache,
        with_shared_translations,
        _quiet(),
        _without_slow_rule(),
        _without_garbage_collection(),
    ):
        program = torch.onnx.export(
            graph,
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[output.name for output in spec.outputs],
            opset_version=OPSET,
            external_data=True,
            verbose=False,
        )
    assert program is not None
    return program


def _expand_meta_weights(module: nn.Module) -> nn.Module:
    """Replace weights on the meta device by zeros that take no memory: tracing only looks at shapes."""
    for part in module.modules():
        for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if value.is_meta:
                zeros = torch.zeros((), dtype=value.dtype).expand(value.shape)
                is_parameter = isinstance(value, nn.Parameter)
                setattr(part, name, nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter on deprecations, missing torchvision and axes of equal length."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*The axis name.*", category=UserWarning)
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _without_slow_rule() -> Iterator[None]:
    """Skip the one rule of the optimiser that scans the whole graph at each node.

    It would turn two Slices into a Split, and takes minutes for a transformer of 30 layers.
    """
    before = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in before if rule.name != "SlicesSplit")
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = before


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Put off garbage collection, which would search torch's objects again and again: a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _min_length(spec: GraphSpec, name: str) -> int:
    return spec.axes[name].min if name in spec.axes else 1


def _dim(dims: Mapping[str, Any], length: Axis) -> Any:
    dim = dims[length.name]
    return dim if length.factor == 1 else length.factor * dim


def write_onnx(spec: GraphSpec, precision: Precision, path: Path) -> list[Path]:
    """Translate a graph to an ONNX file, with its weights in a second file; returns both.

    Raises:
        UnusedInput: the graph ignores an input: the translation has lost part of the network.
    """
    program = to_program(spec, precision)
    program.save(path, external_data=True)
    check_inputs(path, spec)
    return sorted(path.parent.glob(f"{path.name}*"))


def check_inputs(path: Path, spec: GraphSpec) -> None:
    """Check that an ONNX file has and uses all inputs of its spec.

    Raises:
        UnusedInput: an input is missing, or nothing in the graph reads it.
    """
    graph = onnx.load(path, load_external_data=False).graph
    used = {name for node in graph.node for name in node.input}
    present = {one.name for one in graph.input}
    unused = [tensor.name for tensor in spec.inputs if tensor.name not in present & used]
    if unused:
        raise UnusedInput(f"{spec.name} ignores {', '.join(unused)}: see export/PITFALLS.md")
