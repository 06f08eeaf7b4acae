"""Every model of the repository is listed with its state; one that fails says why and does not keep others back."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from frontend.reasons import DIED_AT_START
from frontend.settings import Settings
from tests.faults.aftermath import eventually
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
    edit_config(add_model(repository, "bad-parameter"), "'12'", "'twelve'")
    (add_model(repository, "unparsable") / "config.pbtxt").write_text('name: "unparsable"\nmax_batch_size {')
    edit_config(add_model(repository, "other-name"), 'name: "other-name"', 'name: "gray"')
    (add_model(repository, "no-config") / "config.pbtxt").unlink()
    shutil.rmtree(add_model(repository, "no-version") / "1")
    (add_model(repository, "no-code") / "1" / "model.py").unlink()
    (add_model(repository, "dies") / "1" / "model.py").write_text("import os\nos._exit(3)\n")
    (add_model(repository, "import-error") / "1" / "model.py").write_text("import a_module_that_is_not_there\n")
    (add_model(repository, "raises") / "1" / "model.py").write_text(RAISES)
    (repository / "empty").mkdir()
    return {
        "bad-parameter": "parameter 'chunk_size' must be JSON, got 'twelve'",
        "unparsable": "config.pbtxt cannot be parsed: line 2",
        "other-name": "config.pbtxt names the model 'gray', but its folder is 'other-name'",
        "no-config": "its folder has no config.pbtxt",
        "no-version": "has no version folder",
        "no-code": "its version folder 1 has no model.py",
        "dies": DIED_AT_START,
        "import-error": "No module named 'a_module_that_is_not_there'",
        "raises": "transformer.onnx is damaged: export it again",
        "empty": "its folder has no config.pbtxt",
    }


def listed(server: Frontend) -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"{server.url}/api/v1/pipelines")
    assert answer.status_code == 200, answer.text
    return {pipeline["id"]: pipeline for pipeline in answer.json()["pipelines"]}


def grays(server: Frontend, clip: Frames, pipeline: str) -> Frames:
    return server.make(pipeline_id=pipeline, prompt="", num_frames=12, input_path=server.upload(clip))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of the test's own."""
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def reasons(repository: Path) -> dict[str, str]:
    """Broken models in the repository, and what must be said of each."""
    return break_models(repository)


@pytest.fixture(scope="module")
def broken_server(
    repository: Path, reasons: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Frontend]:
    """A server with one model that works, and broken ones."""
    assert reasons
    add_model(repository, "good")
    server = Frontend(tmp_path_factory.mktemp("broken"), "--embedded", model_repository=repository)
    try:
        server.wait_healthy()
        yield server
    finally:
        assert server.stop() == 0


def test_broken_models_are_named_in_the_log_before_anybody_asks(
    broken_server: Frontend, reasons: dict[str, str]
) -> None:
    for name, reason in reasons.items():
        lines = re.compile(rf"{name} is not served: (.*)")
        eventually(lambda lines=lines: lines.search(broken_server.log()))  # type: ignore[misc]
        assert all(reason in said for said in lines.findall(broken_server.log()))


def test_broken_models_are_listed_with_the_reason_and_the_others_served(
    broken_server: Frontend, reasons: dict[str, str], repository: Path, clip: Frames
) -> None:
    server = broken_server
    pipelines = listed(server)
    assert set(pipelines) == {"good", *reasons}
    assert (pipelines["good"]["state"], pipelines["good"]["reason"]) == ("ready", None)
    for name, reason in reasons.items():
        found = pipelines[name]
        assert (found["state"], found["loaded"]) == ("failed", False), found
        assert reason in found["reason"]
        assert "/" not in found["reason"]
        refused = server.post(pipeline_id=name, prompt="", num_frames=12)
        assert refused.json()["error"]["code"] == "load_failed", refused.text
        assert reason in refused.json()["error"]["message"]
        assert str(repository) not in refused.text
    assert pipelines["unparsable"]["chunk_size"] is None
    assert pipelines["unparsable"]["features"] is None
    gray = grays(server, clip, "good").astype(int)
    assert np.ptp(gray, axis=-1).max() == 0


def test_health_names_the_broken_models_and_stays_healthy(broken_server: Frontend, reasons: dict[str, str]) -> None:
    for path in ("/health", "/health/ready"):
        answer = httpx.get(f"{broken_server.url}{path}")
        assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
        assert set(reasons) <= set(answer.json()["degraded"])
        assert "good" not in answer.json()["degraded"]
    assert httpx.get(f"{broken_server.url}/health/live").json() == {"status": "live"}


def test_models_that_come_and_go_while_the_server_runs(broken_server: Frontend, repository: Path, clip: Frames) -> None:
    server = broken_server
    added = add_model(repository, "added")
    found = listed(server)["added"]
    assert (found["state"], found["reason"], found["chunk_size"]) == ("unloaded", None, 12)
    grays(server, clip, "added")
    assert listed(server)["added"]["state"] == "ready"

    add_model(repository, "loaded")
    answer = httpx.post(f"{server.url}/api/v1/pipeline/load", json={"pipeline_ids": ["loaded"]})
    assert answer.json() == {"status": "loading", "ignored": []}
    eventually(lambda: httpx.get(f"{server.url}/api/v1/pipeline/status").json()["status"] == "loaded")
    assert listed(server)["loaded"]["state"] == "ready"

    shutil.rmtree(added)
    assert "added" not in listed(server)
    assert server.post(pipeline_id="added", prompt="", num_frames=12).json()["error"]["code"] == "unknown_pipeline"

    shutil.rmtree(repository / "raises")  # and repaired under the same name
    add_model(repository, "raises")
    found = listed(server)["raises"]
    assert (found["state"], found["reason"]) == ("unloaded", None)
    assert "raises" not in httpx.get(f"{server.url}/health").json()["degraded"]
    grays(server, clip, "raises")
    assert listed(server)["raises"]["state"] == "ready"


def test_health_is_503_only_where_no_pipeline_can_generate(tmp_path: Path) -> None:
    reasons = break_models(tmp_path / "models")
    server = Frontend(tmp_path, "--embedded", model_repository=tmp_path / "models")
    try:
        eventually(lambda: httpx.get(f"{server.url}/health").json()["degraded"] == sorted(reasons))
        answer = httpx.get(f"{server.url}/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        add_model(tmp_path / "models", "good")
        assert httpx.get(f"{server.url}/health").json()["status"] == "healthy"
    finally:
        server.stop()


def test_models_of_one_name_in_two_repositories_are_refused_at_start(tmp_path: Path) -> None:
    folders = [add_model(tmp_path / name, "twice") for name in ("a:b", "c d")]
    chosen = [f"--model-repository={folder.parent}" for folder in folders]
    command = [sys.executable, "-m", "frontend", "--embedded", "--port=0", f"--data-dir={tmp_path / 'data'}", *chosen]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert started.returncode == 1
    assert f"'twice': {folders[0]} and {folders[1]}; delete {folders[1]}" in started.stderr


def test_the_default_repositories_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FILMSTRIP_MODEL_REPOSITORY", raising=False)
    assert Settings().model_repository == (ROOT / "model_repository", ROOT / "models")
    twice = f"{tmp_path}:{ROOT / 'models'}:{tmp_path / 'x' / '..'}"
    assert Settings(model_repository=twice).model_repository == (tmp_path, ROOT / "models")
