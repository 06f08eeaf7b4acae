"""Every model of the repository is listed with its state; one that fails says why and does not keep others back."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.settings import Settings
from frontend.triton import DIED_AT_START
from tests.support import http
from tests.support.processes import model_processes
from tests.support.recovery import eventually
from tests.support.server import ROOT, Frames, Frontend

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
    (repository / "nowhere").symlink_to(repository / "not-there")
    (repository / "loop").symlink_to("loop")
    (repository / os.fsdecode(b"caf\xe9")).mkdir()
    add_model(repository, "café")
    edit_config(add_model(repository, "deep"), "'12'", "'" + "[" * 3000 + "'")
    edit_config(add_model(repository, "huge"), "'12'", "'9999999999'")
    for name, value in (("defaults-list", "[]"), ("defaults-text", '"x"'), ("defaults-null", "null")):
        config = add_model(repository, name) / "config.pbtxt"
        config.write_text(
            f"{config.read_text()}\nparameters {{ key: 'defaults' value {{ string_value: '{value}' }} }}\n"
        )
    (add_model(repository, "deep-text") / "config.pbtxt").write_text("a {" * 3000)
    config = add_model(repository, "fifo") / "config.pbtxt"
    config.unlink()
    os.mkfifo(config)
    (add_model(repository, "no-text") / "config.pbtxt").write_text("\n")
    config = add_model(repository, "version-7") / "config.pbtxt"
    config.write_text(f"{config.read_text()}\nversion_policy {{ specific {{ versions: [7] }} }}\n")
    folder = add_model(repository, "version-0")
    (folder / "1").rename(folder / "0")
    for name in ("lost+found", ".git/1", "__pycache__/1"):  # no models
        (repository / name).mkdir(parents=True)
    return {
        "nowhere": "its folder is a link that leads nowhere",
        "loop": "its folder is a link that leads nowhere",
        "caf\\xe9": "the name of its folder may only have the letters A-Z and a-z",
        "café": "the name of its folder may only have the letters A-Z and a-z",
        "deep": "parameter 'chunk_size' must be JSON",
        "huge": "parameter chunk_size: Input should be less than or equal to 1048576, got '9999999999'",
        "defaults-list": "parameter defaults: Input should be a valid dictionary, got '[]'",
        "defaults-text": "parameter defaults: Input should be a valid dictionary, got 'x'",
        "defaults-null": "parameter defaults: Input should be a valid dictionary, got 'None'",
        "deep-text": "config.pbtxt cannot be parsed: it is nested too deeply",
        "fifo": "config.pbtxt is not a regular file",
        "no-text": "config.pbtxt is empty",
        "version-7": "the version_policy in config.pbtxt asks for version 7, which its folder does not have",
        "version-0": "has no version folder",
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
    answer = http.get(f"{server.url}/api/v1/pipelines")
    assert answer.status_code == 200, answer.text
    return {pipeline["id"]: pipeline for pipeline in answer.json()["pipelines"]}


def grays(server: Frontend, clip: Frames, pipeline: str) -> Frames:
    return server.generate_frames(pipeline_id=pipeline, prompt="", num_frames=12, input_path=server.upload(clip))


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
        lines = re.compile(rf"{re.escape(name)} is not served: (.*)")
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
        answer = http.get(f"{broken_server.url}{path}")
        assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
        assert set(reasons) <= set(answer.json()["degraded"])
        assert "good" not in answer.json()["degraded"]
    assert http.get(f"{broken_server.url}/health/live").json() == {"status": "live"}


def test_models_that_come_and_go_while_the_server_runs(broken_server: Frontend, repository: Path, clip: Frames) -> None:
    server = broken_server
    added = add_model(repository, "added")
    found = listed(server)["added"]
    assert (found["state"], found["reason"], found["chunk_size"]) == ("unloaded", None, 12)
    grays(server, clip, "added")
    assert listed(server)["added"]["state"] == "ready"

    add_model(repository, "loaded")
    answer = http.post(f"{server.url}/api/v1/pipeline/load", json={"pipeline_ids": ["loaded"]})
    assert answer.json() == {"status": "loading", "ignored": []}
    eventually(lambda: http.get(f"{server.url}/api/v1/pipeline/status").json()["status"] == "loaded")
    assert listed(server)["loaded"]["state"] == "ready"

    shutil.rmtree(added)
    assert "added" not in listed(server)
    assert server.post(pipeline_id="added", prompt="", num_frames=12).json()["error"]["code"] == "unknown_pipeline"

    broken = [repository / name for name in ("late-link", os.fsdecode(b"late-\xe9"), "late-defaults")]
    broken[0].symlink_to("late-link")
    broken[1].mkdir()
    config = add_model(repository, "late-defaults") / "config.pbtxt"
    config.write_text(f"{config.read_text()}\nparameters {{ key: 'defaults' value {{ string_value: '[]' }} }}\n")
    found = listed(server)
    assert [found[name]["state"] for name in ("late-link", "late-\\xe9", "late-defaults")] == ["failed"] * 3
    assert http.get(f"{server.url}/health").status_code == 200
    repository.rename(away := repository.with_name("away"))  # for a moment
    listed(server)
    away.rename(repository)
    assert http.get(f"{server.url}/health").status_code == 200
    grays(server, clip, "good")
    for folder in broken:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)

    shutil.rmtree(repository / "raises")  # and repaired under the same name
    add_model(repository, "raises")
    found = listed(server)["raises"]
    assert (found["state"], found["reason"]) == ("unloaded", None)
    assert "raises" not in http.get(f"{server.url}/health").json()["degraded"]
    grays(server, clip, "raises")
    assert listed(server)["raises"]["state"] == "ready"


SLOW = """
import os, time
with open({starts!r}, "a") as starts:
    starts.write("started\\n")
while os.path.exists({flag!r}):
    time.sleep(0.05)
"""


def test_a_slow_model_keeps_only_its_own_requests_waiting_after_a_death(tmp_path: Path, clip: Frames) -> None:
    repository, flag, starts = tmp_path / "models", tmp_path / "flag", tmp_path / "starts"
    for name in ("dies", "good"):
        add_model(repository, name)
    code = add_model(repository, "slow") / "1" / "model.py"
    code.write_text(SLOW.format(flag=str(flag), starts=str(starts)) + code.read_text())
    server = Frontend(tmp_path, "--embedded", model_repository=repository)
    try:
        server.wait_healthy()
        assert starts.read_text() == "started\n"  # and not once more to complete its configuration
        for _ in range(2):  # the second death comes while the slow model is still being loaded
            flag.touch()
            before = server.triton_pid
            (stub,) = model_processes(server, "dies")
            stub.kill()
            eventually(lambda before=before: server.triton_pid != before)  # type: ignore[misc]
            server.wait_healthy()
            grays(server, clip, "good")
            found = listed(server)
            assert (found["slow"]["state"], found["good"]["state"]) == ("loading", "ready")
            eventually(lambda: listed(server)["dies"]["state"] in ("ready", "failed"))
        flag.unlink()
        grays(server, clip, "slow")
    finally:
        flag.unlink(missing_ok=True)
        server.stop()


def test_health_is_503_only_where_no_pipeline_can_generate(tmp_path: Path) -> None:
    reasons = break_models(tmp_path / "models")
    server = Frontend(tmp_path, "--embedded", model_repository=tmp_path / "models")
    try:
        eventually(lambda: http.get(f"{server.url}/health").json()["degraded"] == sorted(reasons))
        answer = http.get(f"{server.url}/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert http.get(f"{server.url}/health/live").status_code == 200
        add_model(tmp_path / "models", "good")
        assert http.get(f"{server.url}/health").json()["status"] == "healthy"
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
