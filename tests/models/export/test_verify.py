"""How a graph's outputs are held against its module's."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor, nn

from export.errors import ToleranceExceeded
from export.spec import (
    Axis,
    AxisRange,
    Component,
    GraphSpec,
    Grid,
    InputSpec,
    OutputSpec,
    Precision,
    Size,
    dynamic_shape,
)
from export.verify import Comparison, compare, comparison_table, relative_error, require_close

SIZES = {Size(32, 48): Grid(2, 3), Size(64, 64): Grid(4, 4)}


class Double(nn.Module):
    def forward(self, *, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, kept


def spec(*shape: int | Axis) -> GraphSpec:
    return GraphSpec(
        "double",
        Component.TRANSFORMER,
        Double(),
        (InputSpec("x", shape), InputSpec("kept", shape, None)),
        (OutputSpec("twice", dynamic_shape(shape)), OutputSpec("kept", dynamic_shape(shape), None)),
        axes={"past": AxisRange(0, 2, 4, per_frame=True)},
        test_points=({"past": 0}, {"past": 4}),
        tolerances={Precision.FP32: 1e-5, Precision.BF16: 1e-2},
    )


def comparisons(graph: GraphSpec, precision: Precision, run) -> list[Comparison]:
    return list(compare(graph, SIZES, precision, "a double", run))


def test_each_output_is_compared_at_each_size_and_point_on_the_shapes_of_the_spec():
    shapes = []

    def run(inputs):
        shapes.append(tuple(inputs["x"].shape))
        return {"twice": 2 * inputs["x"], "kept": inputs["kept"]}

    made = comparisons(spec(Axis("past"), Axis("rows", 2), 7), Precision.FP32, run)
    assert shapes == [(0, 4, 7), (24, 4, 7), (0, 8, 7), (64, 8, 7)]
    assert [(one.size, one.point["past"], one.output) for one in made] == [
        (size, past, output) for size in SIZES for past in (0, 4) for output in ("twice", "kept")
    ]
    assert {one.error for one in made} == {0.0}
    require_close(made)


def test_a_graph_that_no_size_changes_is_compared_at_one():
    graph = spec(3)
    made = comparisons(
        graph, Precision.FP32, lambda given: dict(zip(("twice", "kept"), graph.module(**given), strict=True))
    )
    assert {one.size for one in made} == {None}


def test_what_stays_within_the_engines_is_rounded_on_both_sides():
    def run(inputs):
        assert (inputs["x"].dtype, inputs["kept"].dtype) == (torch.float32, torch.bfloat16)
        return {"twice": 2 * inputs["x"], "kept": inputs["kept"]}

    assert {one.error for one in comparisons(spec(Axis("past", 1), 5), Precision.BF16, run)} == {0.0}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda x: x * 1.001, r"1\.0e-03"),
        (lambda x: x[..., :-1], "inf"),
        (lambda x: x * math.nan, "nan"),
    ],
)
def test_an_output_that_is_off_is_refused_and_named(wrong, error):
    made = comparisons(
        spec(Axis("past"), 7), Precision.FP32, lambda given: {"twice": wrong(2 * given["x"]), "kept": given["kept"]}
    )
    with pytest.raises(ToleranceExceeded, match=rf"double\.twice at 48x32 past 4: {error}, allowed 1\.0e-05"):
        require_close(made)


def test_the_table_has_the_worst_of_each_graph():
    def one(graph: str, error: float) -> Comparison:
        return Comparison(graph, "ONNX Runtime", Size(32, 48), {"past": 4}, "velocity", error, 1e-5)

    shown = comparison_table([one("vace", 2e-7), one("transformer", 1e-6), one("transformer", math.nan)])
    assert shown.row_count == 2
    assert list(shown.columns[0].cells) == ["vace", "transformer"]
    assert "nan" in str(list(shown.columns[4].cells)[1])


@pytest.mark.parametrize(("got", "error"), [([1.0, 2.0], 0.0), ([1.0, 1.0], 0.5), ([3.0, 2.0], 1.0)])
def test_errors_are_shares_of_the_largest_value(got, error):
    assert relative_error(torch.tensor(got), torch.tensor([1.0, 2.0])) == error


def test_nothing_differs_from_nothing():
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
