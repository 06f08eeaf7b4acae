"""The generic verifier: compares every output of every engine with its module, at the lengths where graphs go wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from export.errors import ToleranceExceeded
from export.spec import GraphSpec, Grid, InputSpec, OutputSpec, Precision, Size

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Runs an engine: inputs by name to outputs by name."""
_NUM_SHOWN = 5


class ModuleEngine:
    """A graph's PyTorch module as an `Engine` of the runtime, without an export.

    Args:
        spec: of the graph.
    """

    device = torch.device("cpu")

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        tensors: list[InputSpec | OutputSpec] = [*spec.inputs, *spec.outputs]
        self._dtypes = {tensor.name: tensor.dtype or Precision.FP32.dtype for tensor in tensors}

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output."""
        return self._dtypes[name]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs; the inputs are not checked."""
        outputs = self._spec.module(**{one.name: inputs[one.name] for one in self._spec.inputs})
        return {one.name: output for one, output in zip(self._spec.outputs, outputs, strict=True)}


@dataclass(frozen=True)
class Comparison:
    """How far one output of a graph is from the module's.

    Attributes:
        graph: name of the graph.
        runner: what ran it.
        size: of the video, None if the graph does not depend on it.
        point: values of the axes, in the units of their ranges.
        output: name of the output.
        error: the largest difference, as a share of the module's largest value.
        tolerance: the largest error that is allowed.
    """

    graph: str
    runner: str
    size: Size | None
    point: Mapping[str, int]
    output: str
    error: float
    tolerance: float

    @property
    def is_close(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        point = ", ".join(f"{axis} {value}" for axis, value in self.point.items())
        where = " ".join(text for text in (str(self.size or ""), point) if text)
        return f"{self.graph}.{self.output}{where and f' at {where}'}: {self.error:.1e}, allowed {self.tolerance:.1e}"


def compare(
    spec: GraphSpec, sizes: Mapping[Size, Grid], precision: Precision, runner: str, run: Run
) -> Iterator[Comparison]:
    """Run the module in float32 and an engine on the same random inputs.

    Args:
        spec: the graph; its module is the reference.
        sizes: to compare at; a graph that does not depend on the size is compared once.
        precision: of the engine; inputs that only go from engine to engine are rounded to it on both sides.
        runner: what runs the engine, for the table.
        run: runs the engine.
    """
    for size, grid in list(sizes.items())[: None if spec.depends_on_size else 1]:
        for seed, point in enumerate(spec.test_points):
            inputs = _rounded(spec, spec.sample(grid, point, seed), precision)
            with torch.no_grad():
                expected = spec.module(**{name: _to_float32(value) for name, value in inputs.items()})
            outputs = run(inputs)
            for output, reference in zip(spec.outputs, expected, strict=True):
                yield Comparison(
                    spec.name,
                    runner,
                    size if spec.depends_on_size else None,
                    point,
                    output.name,
                    relative_error(outputs[output.name], reference),
                    spec.tolerances[precision],
                )


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """The largest difference as a share of the reference's largest value; infinite if the shapes differ."""
    if actual.shape != reference.shape:
        return float("inf")
    if reference.numel() == 0:
        return 0.0
    largest = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((actual.to(reference) - reference).abs().max() / largest)


def require_close(comparisons: Sequence[Comparison]) -> None:
    """Check that engines are as close to their modules as their specs require.

    Raises:
        ToleranceExceeded: names the outputs that differ.
    """
    far = [str(one) for one in comparisons if not one.is_close]
    if far:
        more = f" and {len(far) - _NUM_SHOWN} more" if len(far) > _NUM_SHOWN else ""
        raise ToleranceExceeded(f"the engines differ from the modules: {'; '.join(far[:_NUM_SHOWN])}{more}")


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """The worst comparison for each graph and runner."""
    table = Table(title="Engines against modules")
    for heading in ("graph", "runner", "worst output", "where", "error", "tolerance"):
        table.add_column(heading, no_wrap=heading != "where")
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault((one.graph, one.runner), []).append(one)
    for (graph, runner), group in groups.items():
        worst = max(group, key=lambda one: (not one.is_close, one.error))
        where = " ".join([str(worst.size or ""), *(f"{axis}={value}" for axis, value in worst.point.items())])
        colour = "green" if worst.is_close else "red"
        error = f"[{colour}]{worst.error:.1e}[/]"
        table.add_row(graph, runner, worst.output, where.strip(), error, f"{worst.tolerance:.0e}")
    return table


def _rounded(spec: GraphSpec, inputs: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Inputs in the types that the engine takes."""
    return {tensor.name: inputs[tensor.name].to(tensor.dtype or precision.dtype) for tensor in spec.inputs}


def _to_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
