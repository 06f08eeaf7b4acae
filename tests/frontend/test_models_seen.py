"""Every model of the repository is listed with its state; one that fails says why and does not keep others back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.server import ROOT, Frames, Frontend

RAISES = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("/srv/engines/transformer.onnx is damaged: export it again")
"""


def add_model(repository: Path, name: str) -> Path:
    """A copy of the model `gray` by another name; its folder."""
    folder = repository / name
    shutil.copytree(ROOT / "model_repository" / "gray", folder, ignore=shutil.ignore_patterns("__pycache__"))
    edit_config(folder, 'name: "gray"', f'name: "{name}"')
    return folder


def edit_config(folder: Path, old: str, new: str) -> None:
    config = folder / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def break_models(repository: Path) -> dict[str, str]:
    """Add a model for each way to be broken; what the reason of each must say."""
    edit_config(add_model(repository, "bad-parameters"), "'12'", "'twelve'")
    (add_model(repository, "import-error") / "1" / "model.py").write_text("import a_module_that_is_not_there\n")
    (add_model(repository, "raises") / "1" / "model.py").write_text(RAISES)
    return {
        "bad-parameters": "config.pbtxt",
        "import-error": "No module named 'a_module_that_is_not_there'",
        "raises": "transformer.onnx is damaged: export it again",
    }


def listed(server: Frontend) -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"{server.url}/api/v1/pipelines")
    assert answer.status_code == 200, answer.text
    return {pipeline["id"]: pipeline for pipeline in answer.json()["pipelines"]}


def grays(server: Frontend, clip: Frames, pipeline: str) -> Frames:
    return server.make(pipeline_id=pipeline, prompt="", num_frames=12, input_path=server.upload(clip))


def test_broken_models_are_seen_and_the_others_served(
    start_frontend: Callable[..., Frontend], tmp_path: Path, clip: Frames
) -> None:
    repository = tmp_path / "models"
    add_model(repository, "good")
    reasons = break_models(repository)
    server = start_frontend("--embedded", model_repository=repository)
    server.wait_healthy()
    pipelines = listed(server)
    assert set(pipelines) == {"good", *reasons}
    assert (pipelines["good"]["state"], pipelines["good"]["reason"]) == ("ready", None)
    for name, reason in reasons.items():
        found = pipelines[name]
        assert (found["state"], found["loaded"], found["chunk_size"]) == ("failed", False, None), found
        assert reason in found["reason"]
        assert "/" not in found["reason"]
        assert f"{name} is not served: {found['reason']}" in server.log()
        refused = server.post(pipeline_id=name, prompt="", num_frames=12)
        assert refused.json()["error"]["code"] == "load_failed", refused.text
        assert reason in refused.json()["error"]["message"]
        assert str(tmp_path) not in refused.text
    assert np.ptp(grays(server, clip, "good").astype(int), axis=-1).max() == 0
