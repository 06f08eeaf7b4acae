"""The benchmark of LongLive, on the pipeline `tiny`: that it works, not how fast anything is."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from benchmarks import longlive, small_longlive
from benchmarks.options import Options
from benchmarks.small_longlive import Model
from export.checkpoint_folder import load_networks
from export.graph_specs import grid_of
from export.spec import Size

SIZES = ((64, 64), (64, 96))


@pytest.mark.timeout(600)  # it may be the first test that waits for the export
def test_longlive_is_measured_in_triton_and_beside_it(tiny_repository: Path, tmp_path: Path):
    model = Model("tiny", tiny_repository.parent / "checkpoint", tiny_repository, SIZES)
    rows = {row.what: row for row in longlive.measure_model(Options(tmp_path, 1, quick=True, large=False), model)}
    for height, width in SIZES:
        chunk = f"chunk of 12 x {height} x {width}"
        in_triton, in_process, outside, others, by_http = (
            rows.pop(f"{chunk}, {what}")
            for what in (
                "in Triton: CPU of the model's process",
                "engines in-process: CPU",
                "engines in-process: CPU outside the engines",
                "in Triton: CPU of tritonserver and the frontend",
                "by HTTP, from event to event",
            )
        )
        # The same work in both places: the clocks are those of the right processes.
        assert 0.5 < value(in_triton.value) / value(in_process.value) < 2
        assert 0 < value(outside.value) < 100
        assert 0 < value(others.value) < value(by_http.value)
        assert value(by_http.ratio) > 0.95  # the model's stages are a part of it
        assert in_triton.holds is not None
        assert outside.holds is not None
    (growth,) = rows.values()
    assert growth.what == "growth of the model's process from chunk 4 to chunk 12 of 64 x 64"
    assert growth.holds


def value(text: str) -> float:
    """The number that a cell begins with."""
    return float(text.split(maxsplit=1)[0].rstrip("%"))


def test_the_checkpoint_that_is_measured_is_whole_and_has_the_sizes(tmp_path: Path):
    small_longlive.write(tmp_path)
    config = load_networks(tmp_path).config
    assert (config.dim, config.num_layers, config.window, config.sink) == (256, 6, 12, 3)
    assert (config.latent_frames_per_chunk, len(config.text_steps), config.vae.type) == (3, 4, "tae")
    for size in small_longlive.SIZES:
        grid_of(config, Size(*size))
