"""ComfyUI played by strict doubles: modules with the functions that the nodes use, and no others."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui.pipeline_names import PIPELINE_NAMES, PipelineNames
from tests.support.comfyui.host import Comfy

DOUBLES = Path(__file__).parent / "doubles"
NAMES = ("comfy", "comfy_api", "folder_paths", "server")


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Comfy]:
    """A ComfyUI of this test's own; real torch where it is installed."""
    monkeypatch.syspath_prepend(DOUBLES)
    names = NAMES
    if importlib.util.find_spec("torch") is None:
        monkeypatch.syspath_prepend(DOUBLES / "without_torch")
        names = (*names, "torch")
    forget(*names)
    output = tmp_path / "output"
    output.mkdir()
    yield Comfy(output)
    forget(*names)


def forget(*packages: str) -> None:
    for module in list(sys.modules):
        if module.partition(".")[0] in packages:
            del sys.modules[module]


@pytest.fixture(autouse=True)
def names_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dropdown remembers nothing of the test before, and looks for no server unless the test says where."""
    for name, value in vars(PipelineNames()).items():
        monkeypatch.setattr(PIPELINE_NAMES, name, value)
    monkeypatch.setenv("FILMSTRIP_SERVER", "http://127.0.0.1:9")  # discard: nothing listens there
    monkeypatch.delenv("FILMSTRIP_TOKEN", raising=False)
