"""Options and progress of a TensorRT build, which need neither library."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from hypothesis import given
from hypothesis import strategies as st

from export.errors import BadOptions
from export.spec import Precision
from export.tensorrt import RTX_TARGETS, BuildOptions, BuildProgress
from filmstrip.runtime.engines.manifest import Builder

RTX, TENSORRT = Builder.TENSORRT_RTX, Builder.TENSORRT
BF16, FP16 = Precision.BF16, Precision.FP16


@pytest.mark.parametrize(
    ("builder", "precision", "given"),
    [
        (RTX, BF16, {"targets": ("sm80", "sm86", "sm89", "sm120")}),
        (RTX, FP16, {"targets": tuple(RTX_TARGETS)}),
        (TENSORRT, BF16, {"timing_cache": Path("timings"), "workspace_gib": 4.0, "optimization_level": 5}),
    ],
)
def test_these_can_be_built(builder: Builder, precision: Precision, given: dict[str, Any]):
    assert BuildOptions(builder, precision, **given).precision is precision


@pytest.mark.parametrize(
    ("builder", "precision", "given", "message"),
    [
        (RTX, BF16, {}, "needs a target: one or more of sm75, sm80"),
        (RTX, BF16, {"targets": ("sm70",)}, "sm70 must be one of sm75, sm80, sm86, sm89, sm120"),
        (RTX, BF16, {"targets": ("SM89",)}, "SM89 must be one of"),
        (RTX, BF16, {"targets": ("sm89", "sm90")}, r"sm90.*--builder tensorrt\b"),
        (RTX, FP16, {"targets": ("sm100",)}, r"sm100.*--builder tensorrt\b"),
        (RTX, BF16, {"targets": ("sm75", "sm86")}, "has no bf16: use fp16"),
        (RTX, BF16, {"targets": ("sm86", "sm86")}, "named twice"),
        (RTX, BF16, {"targets": ("sm86",), "timing_cache": Path("timings")}, "no timing cache"),
        (TENSORRT, BF16, {"targets": ("sm90",)}, "the GPU that it runs on"),
        (TENSORRT, BF16, {"workspace_gib": 0.0}, "more than 0"),
        (TENSORRT, BF16, {"optimization_level": 6}, "0 to 5"),
    ],
)
def test_these_can_not(builder: Builder, precision: Precision, given: dict[str, Any], message: str):
    with pytest.raises(BadOptions, match=message):
        BuildOptions(builder, precision, **given)


# A phase is the list of its steps, a step the list of the phases within it.
PHASES = st.recursive(st.just([[]]), lambda inner: st.lists(st.lists(inner, max_size=3), min_size=1, max_size=4))


def run(progress: BuildProgress, steps: list[Any], name: str, parent: str | None) -> None:
    progress.start(name, parent, len(steps))
    for index, phases in enumerate(steps):
        for number, inner in enumerate(phases):
            run(progress, inner, f"{name}.{number}", name)
        progress.step(name, index)
    progress.finish(name)


@given(PHASES)
def test_it_never_falls_and_ends_at_one(steps: list[Any]):
    shares: list[float] = []
    run(BuildProgress(lambda _name, share: shares.append(share)), steps, "build", None)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)


def test_a_phase_fills_the_step_of_its_parent():
    told: list[tuple[str, float]] = []
    progress = BuildProgress(lambda name, share: told.append((name, round(share, 3))))
    progress.start("build", None, 2)
    progress.step("build", 0)
    progress.start("optimise", "build", 5)
    progress.step("optimise", 0)
    progress.step("optimise", 2)
    progress.finish("optimise")
    progress.step("build", 1)
    assert told == [
        *(("build", 0), ("build", 0.5)),
        *(("optimise", 0.5), ("optimise", 0.6), ("optimise", 0.8)),
        ("build", 1),
    ]
