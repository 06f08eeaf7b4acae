"""The share of a build that is done, out of phases within phases."""

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from hypothesis import given
from hypothesis import strategies as st

from export.tensorrt import BuildProgress

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
