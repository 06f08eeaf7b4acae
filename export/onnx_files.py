"""From a graph's spec to ONNX."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import Dim

from export.graphs import Positional
from export.spec import Axis, GraphSpec, Grid, Precision

OPSET = 23
"""The first with an Attention operator, which both ONNX Runtime and TensorRT run as one."""
_TRACED = Grid(2, 3)
_LONGEST = 65536


def to_program(spec: GraphSpec, precision: Precision) -> torch.onnx.ONNXProgram:
    """Trace a graph and translate it; its weights are those of the spec's module, in the given precision."""
    graph = Positional(copy.deepcopy(spec.module).to(precision.dtype), [port.name for port in spec.inputs]).eval()
    # Lengths of 0 and 1 would be taken for constants.
    point = {name: max(2, reach.usual) for name, reach in spec.axes.items()}
    values = spec.values(_TRACED, point)
    dims = {name: Dim(name, min=_least(spec, name), max=_LONGEST) for name in values}
    inputs = [
        torch.zeros(port.at(values), dtype=precision.dtype if port.dtype is None else port.dtype)
        for port in spec.inputs
    ]
    shapes = tuple(
        {place: _dim(dims, length) for place, length in enumerate(port.shape) if isinstance(length, Axis)}
        for port in spec.inputs
    )
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[port.name for port in spec.inputs],
            output_names=[output.name for output in spec.outputs],
            opset_version=OPSET,
            external_data=True,
            verbose=False,
        )
    assert program is not None
    return program


def _least(spec: GraphSpec, name: str) -> int:
    return spec.axes[name].minimum if name in spec.axes else 1


def _dim(dims: Mapping[str, Any], length: Axis) -> Any:
    dim = dims[length.name]
    return dim if length.factor == 1 else length.factor * dim
