"""A model's folder of engines: all of them checked and opened, or none."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
pytest.importorskip("onnx", reason="onnx is not installed: see docs/export.md")

from filmstrip.runtime.engines.engine import Engine, installed_version, load_engine, load_engines
from filmstrip.runtime.engines.manifest import (
    BadEngine,
    BadManifest,
    Builder,
    DamagedEngine,
    ForeignEngine,
    MixedEngines,
    manifest_path,
)
from tests.models.runtime.engines.graphs import describe, sums
from tests.models.runtime.engines.manifests import put

CPU = torch.device("cpu")
X = torch.ones(2, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "longlive" / "1" / "engines"
    folder.mkdir(parents=True)
    for name in ("text_kv", "transformer"):
        sums(folder / f"{name}.onnx")
    (folder / "README.txt").write_text("not an engine")
    return folder


def load(folder: Path, *graphs: str) -> dict[str, Engine]:
    return load_engines(folder, device=CPU, num_threads=1, graphs=graphs)


def test_every_engine_of_a_folder_runs(folder: Path):
    engines = load(folder, "transformer")
    assert engines.keys() == {"text_kv", "transformer"}
    for graph in engines:
        assert torch.equal(engines[graph].run({"past": X, "x": X, "y": X})["sum"], X + X)
        assert (engines[graph].device, engines[graph].dtype("sum")) == (CPU, torch.float32)


def test_one_engine_is_loaded_by_its_path(folder: Path):
    engine = load_engine(folder / "text_kv.onnx", device=CPU, num_threads=1)
    assert engine.run({"past": X, "x": X, "y": X})["joined"].shape == (4, 4)


def test_one_bad_engine_fails_the_folder(folder: Path):
    with (folder / "transformer.onnx").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DamagedEngine, match=r"transformer\.onnx has \d+ bytes, should have \d+\. .*--id longlive "):
        load(folder)


def test_an_engine_without_manifest_and_a_manifest_without_engine_are_refused(folder: Path):
    manifest_path(folder / "text_kv.onnx").rename(folder / "kept")
    with pytest.raises(BadManifest, match=r"text_kv\.onnx\.json is missing"):
        load(folder)
    (folder / "kept").rename(manifest_path(folder / "text_kv.onnx"))
    (folder / "text_kv.onnx").unlink()
    with pytest.raises(DamagedEngine, match=r"text_kv\.onnx is missing"):
        load(folder)


def test_engines_are_held_against_each_other_and_the_pipeline(folder: Path):
    with pytest.raises(MixedEngines, match="has no engine for vace, vae_decoder_first"):
        load(folder, "transformer", "vae_decoder_first", "vace")
    describe(folder / "text_kv.onnx", checkpoint={"longlive_base.pt": "other"})
    with pytest.raises(MixedEngines, match=r"another longlive_base\.pt"):
        load(folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_engines_is_refused(tmp_path: Path, there: bool):
    if there:
        (tmp_path / "engines").mkdir()
    with pytest.raises(BadEngine, match=r"holds no engines\. Export it again"):
        load(tmp_path / "engines")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_engines_are_refused(tmp_path: Path):
    put(tmp_path / "transformer.engine")
    with pytest.raises(ForeignEngine, match="PyTorch sees none: check nvidia-smi"):
        load_engines(tmp_path, device=torch.device("cuda"), num_threads=1, graphs=())
    with pytest.raises(ForeignEngine, match=r"was built for a GPU of compute capability 8\.9, this is the CPU"):
        load(tmp_path)


def test_installed_versions_are_found(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime  # noqa: PLC0415

    assert installed_version(Builder.ONNX_RUNTIME) == onnxruntime.__version__
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as where it isn't installed
    assert installed_version(Builder.TENSORRT) is None
