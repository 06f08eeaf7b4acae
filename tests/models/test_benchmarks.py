"""The benchmark of longlive-small: that it works, not how fast anything is."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from benchmarks import longlive, previews
from benchmarks.report import Options

CHUNK = "chunk of 12 x 64 x 64, "


@pytest.mark.timeout(600)  # it may be the first test that waits for the export
def test_the_small_model_is_measured_in_triton_and_without_it(small_repository: Path, tmp_path: Path):
    model = longlive.shipped(small_repository)
    measured = longlive.measure_model(Options(tmp_path, 1, quick=True, large=False), model)
    rows = {row.what.removeprefix(CHUNK): row for row in measured}
    assert len(rows) == len(measured)

    by_http = rows["by HTTP, from event to event"]
    assert by_http.holds is not None
    assert value(by_http.ratio) > 0.5  # the engines are a part of it, but were not measured at the same time
    assert value(rows["by HTTP: frames a second"].value) == pytest.approx(12_000 / value(by_http.value), rel=0.05)
    in_triton = value(rows["in Triton, called by gRPC"].value)
    assert 0.1 < in_triton / value(by_http.value) < 10  # the same work and unit; not measured at the same time
    assert value(rows["PyTorch eager in place of the engines"].value) > 0

    stages = {name.partition(" ")[2]: value(row.value) for name, row in rows.items() if name.startswith("stage ")}
    assert stages.keys() >= {"denoise", "cache", "decode"}
    assert "denoise_step" not in stages  # it would count twice
    assert sum(stages.values()) == pytest.approx(value(rows["all stages"].value), abs=0.2)
    assert value(rows["all stages"].ratio) < 1.05

    # The same work in both places: the clocks are those of the right processes.
    process = rows["CPU of the model's process"]
    assert process.holds is not None
    assert 0.5 < value(process.value) / value(rows["CPU of the engines in-process"].value) < 2
    assert 0 < value(rows["CPU in-process outside the engines"].value) < 100
    others = value(rows["CPU of tritonserver and the frontend"].value)
    assert 0 < others < value(process.value)
    whole = value(rows["CPU of the model's process, tritonserver and the frontend"].value)
    assert whole == pytest.approx(value(process.value) + others, abs=0.2)

    lengths = ("1 chunk", "6 chunks", "12 chunks")
    took = [value(rows[f"generation of {length}, from the POST to the last event"].value) for length in lengths]
    assert took == sorted(took)
    assert rows["the last 4 of 12 chunks, from event to event"].baseline.startswith("chunks 5 to 8 ")
    growth = rows["growth of the model's process from chunk 6 to chunk 12"]
    assert growth.holds
    assert value(rows["memory of the model's process, the most"].value) >= value(growth.baseline.rpartition(", ")[2])


@pytest.mark.timeout(600)
def test_previews_of_the_small_model_are_measured(small_repository: Path, tmp_path: Path):
    model = longlive.shipped(small_repository)
    chunk, cpu, made = previews.measure_model(Options(tmp_path, 1, quick=True, large=False), model)
    assert value(chunk.value) > 0
    assert value(cpu.baseline.removeprefix("in its process ")) > 0  # the clock is that of the right process
    assert made.value.endswith(" of 4")


def value(text: str) -> float:
    """The number that a cell begins with."""
    return float(text.split(maxsplit=1)[0].rstrip("%"))
