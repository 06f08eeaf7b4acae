"""ONNX Runtime behind the seam: what the graph says, without copies, the same bytes each time."""

import gc
import os
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
pytest.importorskip("onnx", reason="onnx is not installed: see docs/export.md")

from onnx import TensorProto
from torch import Tensor

from export.checkpoint import attach_loras, load_networks
from export.graph_specs import graph_specs
from export.spec import GraphSpec, Grid
from filmstrip.runtime.engines.manifest import BadEngine, read_manifest
from filmstrip.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from tests.models.export.exported import LORAS
from tests.models.export.networks import normal
from tests.models.runtime.engines.graphs import sums
from tests.models.runtime.engines.manifests import manifest

GRID = Grid(2, 3)
TINY_SUMS = {"past": normal(2, 4), "x": normal(3, 4, seed=1), "y": normal(3, 4, seed=2)}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def specs(tiny_repository: Path) -> dict[str, GraphSpec]:
    networks = load_networks(tiny_repository.parent / "checkpoint")
    attach_loras(networks, {name: tiny_repository.parent / f"{name}.pt" for name in LORAS})
    return {spec.name: spec for spec in graph_specs(networks, len(LORAS))}


def exported(tiny_repository: Path, name: str, num_threads: int) -> OnnxRuntimeEngine:
    path = tiny_repository / "tiny" / "1" / "engines" / f"{name}.onnx"
    return OnnxRuntimeEngine(path, read_manifest(path), num_threads=num_threads)


@pytest.fixture(scope="module")
def transformer(tiny_repository: Path) -> OnnxRuntimeEngine:
    return exported(tiny_repository, "transformer", num_threads=2)


@pytest.fixture(scope="module")
def decoder(tiny_repository: Path) -> OnnxRuntimeEngine:
    return exported(tiny_repository, "vae_decoder_next", num_threads=1)


@pytest.fixture
def adder(tmp_path: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(tmp_path / "sums.onnx", sums(tmp_path / "sums.onnx"), num_threads=1)


@pytest.mark.parametrize("past", [0, 9])
def test_the_transformer_is_its_module(past: int, specs: dict[str, GraphSpec], transformer: OnnxRuntimeEngine):
    spec = specs["transformer"]
    given = spec.sample(GRID, {"frames": 3, "past": past})
    made = transformer.run(given)
    for output, expected in zip(spec.outputs, spec.module(**given), strict=True):
        torch.testing.assert_close(made[output.name], expected, atol=1e-5, rtol=0)


def test_the_same_input_gives_the_same_bytes(specs: dict[str, GraphSpec], transformer: OnnxRuntimeEngine):
    given = specs["transformer"].sample(GRID, {"frames": 3, "past": 9})
    first = transformer.run(given)
    others = specs["transformer"].sample(GRID, {"frames": 4, "past": 3}, seed=1)
    transformer.run(others)
    again = transformer.run(given)
    assert all(torch.equal(again[name], made) for name, made in first.items())


def test_feature_caches_are_handed_on(specs: dict[str, GraphSpec], decoder: OnnxRuntimeEngine):
    network = specs["vae_decoder_next"].module.network
    latents = normal(4, 1, 4, 3, 2 * GRID.rows, 2 * GRID.cols)
    _, caches = network(latents[0])
    ours = {f"cache_{index}": cache for index, cache in enumerate(caches)}
    for chunk in latents[1:]:
        expected, caches = network(chunk, caches)
        made = decoder.run({"latents": chunk, **ours})
        torch.testing.assert_close(made.pop("pixels"), expected, atol=1e-5, rtol=0)
        ours = {name.removeprefix("new_"): cache for name, cache in made.items()}
        for index, cache in enumerate(caches):
            torch.testing.assert_close(ours[f"cache_{index}"], cache, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("past", [0, 2])
def test_outputs_are_what_the_graph_says(adder: OnnxRuntimeEngine, past: int):
    given = {**TINY_SUMS, "past": TINY_SUMS["past"][:past]}
    made = adder.run(given)
    assert list(made) == ["joined", "sum"]
    assert torch.equal(made["joined"], torch.cat([given["past"], given["x"]]))
    assert torch.equal(made["sum"], given["x"] + given["y"])


def test_an_output_outlives_later_runs_and_the_engine(tmp_path: Path):
    manifest = sums(tmp_path / "sums.onnx")
    engine = OnnxRuntimeEngine(tmp_path / "sums.onnx", manifest, num_threads=1)
    kept = engine.run(TINY_SUMS)["sum"]
    engine.run({name: tensor + 1 for name, tensor in TINY_SUMS.items()})
    del engine
    gc.collect()
    assert torch.equal(kept, TINY_SUMS["x"] + TINY_SUMS["y"])


def test_inputs_need_not_be_contiguous(adder: OnnxRuntimeEngine):
    turned = TINY_SUMS["x"].T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(adder.run({**TINY_SUMS, "x": turned})["sum"], TINY_SUMS["x"] + TINY_SUMS["y"])


def test_half_precision_is_run_too(tmp_path: Path):
    path = tmp_path / "sums.onnx"
    engine = OnnxRuntimeEngine(path, sums(path, TensorProto.FLOAT16), num_threads=1)
    given = {name: tensor.half() for name, tensor in TINY_SUMS.items()}
    assert engine.dtype("sum") is torch.float16
    assert torch.equal(engine.run(given)["sum"], given["x"] + given["y"])


LONG = normal(6, 4)
BAD_CALLS: dict[str, dict[str, Tensor]] = {
    "sums takes past, x, y; missing or unknown: y": {"past": LONG, "x": LONG},
    "sums takes past, x, y; missing or unknown: z": {**TINY_SUMS, "z": LONG},
    "sums: x is torch.float64, must be torch.float32": {**TINY_SUMS, "x": LONG.double()},
    r"sums: x has shape \[3\], must be \[-1, 4\]": {**TINY_SUMS, "x": torch.ones(3)},
    r"sums: x has shape \[3, 5\], must be \[-1, 4\]": {**TINY_SUMS, "x": torch.ones(3, 5)},
    "sums: x is on meta, must be on cpu": {**TINY_SUMS, "x": LONG.to("meta")},
}


@pytest.mark.parametrize("sentence", BAD_CALLS)
def test_what_cannot_be_run_is_refused(adder: OnnxRuntimeEngine, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        adder.run(BAD_CALLS[sentence])


def test_inputs_may_share_memory(adder: OnnxRuntimeEngine):
    memory = LONG[:3]
    assert torch.equal(adder.run({"past": memory[:0], "x": memory, "y": memory})["sum"], memory * 2)


def test_threads_are_as_many_as_asked_for_and_wait_without_spinning(tmp_path: Path):
    path = tmp_path / "sums.onnx"
    one = sums(path)
    before = len(os.listdir("/proc/self/task"))
    engine = OnnxRuntimeEngine(path, one, num_threads=3)
    assert len(os.listdir("/proc/self/task")) == before + 2  # the caller's works too
    rows = torch.ones(2**18, 4)
    engine.run({"past": rows, "x": rows, "y": rows})
    began = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - began < 0.05


def test_an_invalid_graph_is_refused(tmp_path: Path):
    path = tmp_path / "vace.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BadEngine, match=r"ONNX Runtime cannot load .*vace\.onnx: .*Export it again: python -m export"):
        OnnxRuntimeEngine(path, manifest(), num_threads=1)
