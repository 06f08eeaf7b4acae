"""The engine of a graph that was never exported: its own module, run by PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from export.spec import GraphSpec, Output, Port, Precision


class ModuleEngine:
    """A graph's own module as the `Engine` of the runtime: no export, no files.

    Args:
        spec: of the graph.
    """

    device = torch.device("cpu")

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        ports: list[Port | Output] = [*spec.inputs, *spec.outputs]
        self._dtypes = {one.name: one.dtype or Precision.FP32.dtype for one in ports}

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output."""
        return self._dtypes[name]

    def run(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All outputs; those that memory was given for are copied there. Nothing is checked."""
        made = self._spec.module(**{port.name: inputs[port.name] for port in self._spec.inputs})
        outputs = {port.name: output for port, output in zip(self._spec.outputs, made, strict=True)}
        return outputs | {name: memory.copy_(outputs[name]) for name, memory in (into or {}).items()}
