"""What of TensorRT needs no GPU: choosing a profile, files that are no engines, names of the calls."""

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.runtime.engines import tensorrt
from filmstrip.runtime.engines.manifest import BadEngine, ForeignEngine, ShapeRange
from filmstrip.runtime.engines.tensorrt import TensorRtEngine, load_plan, pick_profile
from tests.models.runtime.engines.manifests import MANIFEST

PROFILES = tuple(MANIFEST.profiles.values())


@pytest.fixture
def trt() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: see docs/export.md")


@pytest.mark.parametrize(
    ("latents", "current", "expected"),
    [
        ((1, 16, 3, 40, 72), 0, 0),
        ((1, 16, 3, 40, 72), 1, 0),
        ((1, 16, 1, 60, 104), 0, 1),
        ((1, 16, 12, 60, 104), 1, 1),
    ],
)
def test_shapes_choose_the_profile_of_their_size(latents: tuple[int, ...], current: int, expected: int):
    assert pick_profile(PROFILES, {"latents": latents}, current, "transformer") == expected


@pytest.mark.parametrize("latents", [(1, 16, 13, 40, 72), (1, 16, 3, 40, 104), (1, 16, 3, 40)])
def test_shapes_of_no_size_are_refused(latents: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"not built for a size that fits these shapes: latents \[1, 16"):
        pick_profile(PROFILES, {"latents": latents}, 0, "transformer")


def test_an_engine_without_sizes_has_one_profile():
    assert pick_profile((), {"embeddings": (1, 512, 4096)}, 0, "text_kv") == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1), st.integers(0, 4), st.integers(0, 9))
def test_a_profile_is_kept_while_it_fits(reaches: list[tuple[int, int]], length: int, current: int):
    profiles = [{"x": ShapeRange((low,), (low,), (high,))} for low, high in reaches]
    current %= len(profiles)
    fitting = [index for index, (low, high) in enumerate(reaches) if low <= length <= high]
    if not fitting:
        with pytest.raises(ValueError, match="not built for a size"):
            pick_profile(profiles, {"x": (length,)}, current, "any")
    else:
        picked = pick_profile(profiles, {"x": (length,)}, current, "any")
        assert picked == (current if current in fitting else fitting[0])


def test_a_file_that_is_not_an_engine_is_refused(trt: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = tmp_path / "transformer.engine"
    path.write_bytes(b"no engine at all" * 256)
    with pytest.raises(BadEngine, match=r"tensorrt-rtx cannot load .*transformer\.engine; its log says why\. Export"):
        load_plan(trt, path, MANIFEST)
    capfd.readouterr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_no_engine_can_be_loaded(tmp_path: Path):
    with pytest.raises(ForeignEngine, match="needs an NVIDIA GPU, and PyTorch sees none"):
        TensorRtEngine(tmp_path / "transformer.engine", MANIFEST, torch.device("cuda"))


def test_tensorrt_has_what_is_called(trt: ModuleType):
    classes = {
        "context": trt.IExecutionContext,
        "engine": trt.ICudaEngine,
        "runtime": trt.Runtime,
        "config": trt.IRuntimeConfig,
        "trt": trt,
    }
    used = {
        (owner, node.attr)
        for node in ast.walk(ast.parse(inspect.getsource(tensorrt)))
        if isinstance(node, ast.Attribute) and (owner := _name(node.value)) in classes
    }
    assert len(used) > 12
    assert not [f"{owner}.{name}" for owner, name in used if not hasattr(classes[owner], name)]


def _name(node: ast.expr) -> str:
    """`context` of both `context` and `self._context`."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.lstrip("_")
