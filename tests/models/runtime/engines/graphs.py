"""Graphs on the disk for the tests, made by hand."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto, helper

from filmstrip.runtime.engines.manifest import Builder, EngineFile, EngineTensor, Manifest, write_manifest
from tests.models.runtime.engines.manifests import manifest

_NAMES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def describe(path: Path, **changed: Any) -> Manifest:
    """Write the manifest of an ONNX file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    data = path.with_name(f"{path.name}.data")
    one = manifest(
        **{
            "graph": path.stem,
            "builder": Builder.ONNX_RUNTIME,
            "builder_version": onnxruntime.__version__,
            "precision": "fp32",
            "target": "cpu",
            "profiles": {},
            "inputs": tuple(map(_tensor, session.get_inputs())),
            "outputs": tuple(map(_tensor, session.get_outputs())),
            "loras": (),
            "files": {file.name: EngineFile.of(file) for file in (path, data) if file.exists()},
            **changed,
        }
    )
    write_manifest(path, one)
    return one


def sums(path: Path, dtype: int = TensorProto.FLOAT) -> Manifest:
    """A graph that joins `past` [n, 4] and `x` [m, 4] to `joined`, and adds `x` and `y` to `sum`."""
    shapes = {"past": ("n", 4), "x": ("m", 4), "y": ("m", 4), "joined": ("n + m", 4), "sum": ("m", 4)}
    values = {name: helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["joined"], axis=0),
        helper.make_node("Add", ["x", "y"], ["sum"]),
    ]
    inputs, outputs = [values[name] for name in ("past", "x", "y")], [values[name] for name in ("joined", "sum")]
    graph = helper.make_graph(nodes, "sums", inputs, outputs)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    return describe(path)


def _tensor(node: Any) -> EngineTensor:
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    return EngineTensor(node.name, _NAMES[node.type], dims)
