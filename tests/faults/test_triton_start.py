"""The embedded Triton starts whatever folders are called, whatever a model does, and without its log."""

import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from frontend.embedded.supervisor import _environment
from tests.support import http
from tests.support.processes import error_code, is_running, model_processes, relay_processes
from tests.support.recovery import PROBE, assert_recovers, assert_serves, eventually
from tests.support.server import ROOT, Frames, Frontend, frontend_on

ODD = 'it\'s "my" (1) & $HOME; `x` #* ü\n\\n {a,b} [c] ~ |< >'
NO_PROXY_HELPS = {  # which proxies gRPC takes from the environment, and what would keep it from them
    "http_proxy=http://127.0.0.1:9": "no_proxy=localhost,.local",
    "grpc_proxy=http://127.0.0.1:9": "no_proxy=",
    "https_proxy=http://127.0.0.1:9": "no_grpc_proxy=example.org",
}


def states(frontend: Frontend) -> dict[str, bool]:
    answer = http.get(f"{frontend.url}/api/v1/pipelines").json()
    return {pipeline["id"]: pipeline["loaded"] for pipeline in answer["pipelines"]}


# -- Names of folders, and proxies ------------------------------------------------------------------------------


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


def test_data_checkout_and_models_in_folders_with_odd_names(
    start_frontend: Callable[..., Frontend], odd_folder: Path, clip: Frames
) -> None:
    """The virtual environment, with Triton and its backend, is part of the checkout."""
    checkout = odd_folder / "filmstrip"
    for package in ("frontend", "filmstrip", "model_repository/gray"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / ".venv").symlink_to(sys.prefix)
    models = odd_folder / "more models"
    shutil.copytree(ROOT / "model_repository" / "passthrough", models / "passthrough")
    python = checkout / ".venv" / "bin" / Path(sys.executable).name
    run = 'shift; cd "$0" && PYTHONPATH="$0" exec "$0/.venv/bin/${python##*/}" "$@"'
    frontend = start_frontend(
        "--embedded",
        folder=odd_folder,
        launcher=("env", f"python={python}", "sh", "-c", run, str(checkout)),
        model_repository=f"{checkout / 'model_repository'}:{models}",
    )
    frontend.wait_healthy()
    assert states(frontend) == {"gray": True, "passthrough": True}
    path = frontend.upload(clip)
    made = frontend.generate_frames(
        pipeline_id="passthrough", pre_processor_id="gray", prompt="", input_path=path, num_frames=30
    )
    assert np.array_equal(made[..., 0], made[..., 1])
    command = psutil.Process(frontend.triton_pid).cmdline()
    assert not any(str(odd_folder) in word for word in command[1:])
    (models / "late").symlink_to(models / "passthrough")  # what is added later is in the linked repository, too
    assert states(frontend) == {"gray": True, "passthrough": True, "late": False}
    with frontend.triton_client() as client:
        assert "late" in [model.name for model in client.get_model_repository_index().models]
    folder = Path(frontend.triton_url.removeprefix("unix:")).parent
    assert folder.is_dir()
    assert frontend.stop() == 0
    assert not folder.exists()


def test_a_folder_that_path_cannot_hold_is_refused_in_a_sentence(
    start_frontend: Callable[..., Frontend], tmp_path: Path
) -> None:
    (tmp_path / "a:b").symlink_to(sys.prefix)
    run = 'shift; exec "$0" "$@"'
    python = tmp_path / "a:b" / "bin" / Path(sys.executable).name
    with pytest.raises(AssertionError, match=r"Error: Python's folder, .*a:b/bin, has a colon in its name"):
        start_frontend("--embedded", launcher=("sh", "-c", run, str(python)))


def with_proxy(proxy: str) -> tuple[str, ...]:
    """A launcher that sets web proxies which refuse connections."""
    return ("env", proxy, NO_PROXY_HELPS[proxy], "HTTP_PROXY=http://127.0.0.1:9", "ALL_PROXY=http://127.0.0.1:9")


@pytest.mark.parametrize("proxy", NO_PROXY_HELPS)
def test_the_frontend_and_its_relay_use_no_web_proxy(server: Frontend, tmp_path: Path, proxy: str) -> None:
    with frontend_on(server, tmp_path, launcher=with_proxy(proxy), shared_memory=False) as frontend:
        assert_serves(frontend)
        assert relay_processes(frontend)


def test_the_embedded_triton_is_reached_without_a_web_proxy(
    start_frontend: Callable[..., Frontend], two_models: Path
) -> None:
    launcher = with_proxy("http_proxy=http://127.0.0.1:9")
    frontend = start_frontend("--embedded", launcher=launcher, model_repository=two_models)
    frontend.wait_healthy()
    assert_serves(frontend)


def test_models_get_no_setting_and_no_key_in_any_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FILMSTRIP_API_KEYS", "filmstrip_api_keys", "Filmstrip_Triton_Secret", "FILMSTRIP_TOKEN"):
        monkeypatch.setenv(name, "only-the-tests-know")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    environment = _environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert "only-the-tests-know" not in environment.values()


# -- Models that cannot start -----------------------------------------------------------------------------------

DIES = {
    "dies-at-import": "import os\nos._exit(3)\n",
    "dies-at-start": "import os\nclass TritonPythonModel:\n    def initialize(self, args):\n        os._exit(3)\n",
    "raises": "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('broken')\n",
}


def add_model(repository: Path, name: str, source: str) -> Path:
    folder = repository / name
    shutil.copytree(ROOT / "model_repository" / "gray", folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace('"gray"', f'"{name}"'))
    (folder / "1" / "model.py").write_text(source)
    return folder / "1" / "model.py"


def test_models_that_cannot_start_do_not_affect_the_others(
    start_frontend: Callable[..., Frontend], two_models: Path, tmp_path: Path, clip: Frames
) -> None:
    repository = tmp_path / "models"
    files = {name: add_model(repository, name, source) for name, source in DIES.items()}
    working = (ROOT / "model_repository" / "gray" / "1" / "model.py").read_text()
    files["odd $(name)"] = add_model(repository, "odd $(name)", working)
    frontend = start_frontend("--embedded", model_repository=f"{two_models}:{repository}")
    frontend.wait_healthy()  # long before the start's timeout
    triton = frontend.triton_pid
    shown = states(frontend)
    assert {name for name, is_loaded in shown.items() if not is_loaded} == set(files)
    path = frontend.upload(clip)
    for name in files:
        refused = frontend.post(pipeline_id=name, prompt="", input_path=path, num_frames=12)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "load_failed")
    assert frontend.log().count("is not served: its process ended while it started") >= 2
    assert "the name of its folder may only have" in frontend.log()
    assert_serves(frontend)
    assert frontend.triton_pid == triton
    # Who asks for it once it is repaired gets it, also where Triton itself still waits for the dead process.
    for name in ("dies-at-start", "dies-at-import"):
        files[name].write_text(working)
        http.post(f"{frontend.url}/api/v1/pipeline/load", json={"pipeline_ids": [name]})
        eventually(
            lambda: http.get(f"{frontend.url}/api/v1/pipeline/status").json()["status"] in ("loaded", "error"), 60
        )
        made = frontend.generate_frames(pipeline_id=name, prompt="", input_path=path, num_frames=12)
        assert np.array_equal(made[..., 0], made[..., 1])


@pytest.mark.parametrize("chunks", [False, True])
def test_a_model_that_dies_twice_in_a_minute_is_left_unloaded(
    start_frontend: Callable[..., Frontend], two_models: Path, *, chunks: bool
) -> None:
    frontend = start_frontend("--embedded", model_repository=two_models)
    frontend.wait_healthy()

    def die() -> None:
        if chunks:
            assert error_code(frontend.generate(**PROBE | {"prompt": "!die"})) == "model_died"
        else:
            (stub,) = model_processes(frontend, "probe")
            stub.kill()

    before = frontend.triton_pid
    with assert_recovers(frontend):
        die()
        eventually(lambda: frontend.triton_pid != before)
    die()
    eventually(lambda: "died again within 60 s" in frontend.log())
    eventually(lambda: not model_processes(frontend, "probe"))
    frontend.wait_healthy()
    refused = frontend.post(**PROBE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "load_failed")
    eventually(lambda: [name for name, is_loaded in states(frontend).items() if not is_loaded] == ["probe"])
    path = frontend.upload(np.zeros((12, 64, 96, 3), np.uint8))
    frames = frontend.generate_frames(pipeline_id="passthrough", prompt="", input_path=path, num_frames=12)
    assert frames.shape == (12, 64, 96, 3)
    http.post(f"{frontend.url}/api/v1/pipeline/load", json={"pipeline_ids": ["probe"]})
    eventually(lambda: http.get(f"{frontend.url}/api/v1/pipeline/status").json()["status"] == "loaded", 60)
    assert_serves(frontend)


def test_the_next_generation_after_a_death_waits_for_the_restart(victim: Frontend) -> None:
    """Asked for at once, by a client that knows nothing of it."""
    with assert_recovers(victim, outputs=2):
        for _ in range(2):
            assert error_code(victim.generate(**PROBE | {"prompt": "!die"})) == "model_died"
            assert victim.generate(**PROBE)[-1][0] == "complete"


# -- Supervision that cannot see --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["its folder", "its folder, for a file"])
def test_triton_comes_back_without_its_log(victim: Frontend, loss: str) -> None:
    folder = victim.data_dir / "triton"
    before = victim.triton_pid
    with assert_recovers(victim):
        try:
            shutil.rmtree(folder)
            if loss.endswith("file"):
                folder.touch()
            os.kill(before, 9)
            eventually(lambda: victim.triton_pid != before)
            victim.wait_healthy()
        finally:
            if folder.is_file():
                folder.unlink()
    assert "Triton's output is lost" in victim.log() or not loss.endswith("file")


def test_without_descriptors_a_healthy_triton_lives_on_and_a_dead_one_comes_back(
    start_frontend: Callable[..., Frontend], two_models: Path
) -> None:
    frontend = start_frontend("--embedded", model_repository=two_models)
    frontend.wait_healthy()
    triton = frontend.triton_pid
    process = psutil.Process(frontend.process.pid)
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    with assert_recovers(frontend):
        process.rlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no other can be opened
        try:
            eventually(lambda: frontend.log().count("cannot inspect the models' processes: ") > 0)
            assert is_running(psutil.Process(triton))
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, limits)
    assert frontend.triton_pid == triton
    with assert_recovers(frontend):
        process.rlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            os.kill(triton, 9)
            eventually(lambda: "cannot start the embedded Triton: " in frontend.log())
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, limits)
        eventually(lambda: frontend.triton_pid != triton)


def test_a_triton_that_cannot_be_reached_is_distinguished_from_one_that_ended(two_models: Path, tmp_path: Path) -> None:
    frontend = Frontend(tmp_path, "--embedded", model_repository=two_models, triton_start_timeout_s=3)
    triton = psutil.Process(frontend.triton_pid)
    triton.suspend()  # before it answers: the log names it as soon as it was started
    try:
        assert frontend.process.wait(60) == 1
    finally:
        frontend.stop()
    assert f"tritonserver is running (pid {triton.pid}) but could not be reached on unix:/" in frontend.log()
    assert "within 3 s (StatusCode." in frontend.log()
    assert "the end of its log:" in frontend.log()
