"""Module against engine: every output of every graph, at the lengths where graphs go wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from export.errors import ToleranceExceeded
from export.spec import GraphSpec, Grid, InputSpec, OutputSpec, Precision, Size


class ModuleEngine:
    """A graph's own module as the `Engine` of the runtime: no export, no files.

    Args:
        spec: of the graph.
    """

    device = torch.device("cpu")

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        ports: list[InputSpec | OutputSpec] = [*spec.inputs, *spec.outputs]
        self._dtypes = {one.name: one.dtype or Precision.FP32.dtype for one in ports}

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output."""
        return self._dtypes[name]

    def run(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All outputs; those that memory was given for are copied there. Nothing is checked."""
        made = self._spec.module(**{tensor.name: inputs[tensor.name] for tensor in self._spec.inputs})
        outputs = {tensor.name: output for tensor, output in zip(self._spec.outputs, made, strict=True)}
        return outputs | {name: memory.copy_(outputs[name]) for name, memory in (into or {}).items()}


Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Runs an engine: inputs by name to outputs by name."""
_SHOWN = 5


@dataclass(frozen=True)
class Comparison:
    """How far one output of a graph is from the module's.

    Attributes:
        graph: name of the graph.
        runner: what ran it.
        size: of the video, None where it does not matter.
        point: values of the axes, in the units of the spec's ranges.
        output: name of the output.
        error: largest difference, as a share of the module's largest value.
        tolerance: largest that is allowed.
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
        """Whether the error is a number within the tolerance."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        at = ", ".join(f"{axis} {value}" for axis, value in self.point.items())
        where = f" at {self.size or ''}{' ' if self.size and at else ''}{at}" if self.size or at else ""
        return f"{self.graph}.{self.output}{where}: {self.error:.1e}, allowed {self.tolerance:.1e}"


def compare(
    spec: GraphSpec, sizes: Mapping[Size, Grid], precision: Precision, runner: str, run: Run
) -> Iterator[Comparison]:
    """Run the module in float32 and an engine on the same random inputs.

    Args:
        spec: the graph, whose module is the reference.
        sizes: at which it is compared; a graph that does not depend on it is compared once.
        precision: of the engine; inputs that stay within the engines are rounded to it on both sides.
        runner: what runs the engine, for the table.
        run: the engine.
    """
    for size, grid in list(sizes.items())[: None if spec.depends_on_size else 1]:
        for seed, point in enumerate(spec.test_points):
            inputs = _rounded(spec, spec.sample(grid, point, seed), precision)
            with torch.no_grad():
                expected = spec.module(**{name: _exact(value) for name, value in inputs.items()})
            got = run(inputs)
            for output, reference in zip(spec.outputs, expected, strict=True):
                error = relative_error(got[output.name], reference)
                at = size if spec.depends_on_size else None
                yield Comparison(spec.name, runner, at, point, output.name, error, spec.tolerances[precision])


def relative_error(got: Tensor, reference: Tensor) -> float:
    """Largest difference as a share of the reference's largest value; infinite where the shapes differ."""
    if got.shape != reference.shape:
        return float("inf")
    if reference.numel() == 0:
        return 0.0
    largest = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((got.to(reference) - reference).abs().max() / largest)


def check(comparisons: Sequence[Comparison]) -> None:
    """Refuse engines that are not close to their modules.

    Raises:
        ToleranceExceeded: names the outputs that are not.
    """
    far = [str(one) for one in comparisons if not one.is_close]
    if far:
        more = f" and {len(far) - _SHOWN} more" if len(far) > _SHOWN else ""
        raise ToleranceExceeded(f"the engines differ from the modules: {'; '.join(far[:_SHOWN])}{more}")


def table(comparisons: Sequence[Comparison]) -> Table:
    """The worst comparison of each graph and runner."""
    shown = Table(title="Engines against modules")
    for heading in ("graph", "runner", "worst output", "where", "error", "tolerance"):
        shown.add_column(heading, no_wrap=heading != "where")
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault((one.graph, one.runner), []).append(one)
    for (graph, runner), group in groups.items():
        worst = max(group, key=lambda one: (not one.is_close, one.error))
        where = " ".join([str(worst.size or ""), *(f"{axis}={value}" for axis, value in worst.point.items())])
        colour = "green" if worst.is_close else "red"
        error = f"[{colour}]{worst.error:.1e}[/]"
        shown.add_row(graph, runner, worst.output, where.strip(), error, f"{worst.tolerance:.0e}")
    return shown


def _rounded(spec: GraphSpec, inputs: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Inputs in the types that the engine takes."""
    return {tensor.name: inputs[tensor.name].to(tensor.dtype or precision.dtype) for tensor in spec.inputs}


def _exact(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
