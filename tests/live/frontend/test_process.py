"""The frontend as a process: starting, stopping, and loading."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from tests.support import http
from tests.support.processes import descendants, is_running
from tests.support.recovery import PROBE, eventually
from tests.support.server import MODELS, ROOT, Frontend


def test_sigterm_ends_everything_within_ten_seconds_with_a_generation_under_way(tmp_path: Path) -> None:
    frontend = Frontend(tmp_path, "--embedded", model_repository=MODELS)
    frontend.wait_healthy()
    started = descendants(frontend)
    assert any("tritonserver" in process.name() for process in started)
    ends: list[tuple[str, dict[str, object]]] = []
    generating = threading.Thread(
        target=lambda: ends.extend(frontend.generate(pipeline_id="probe", prompt="!sleep 30", num_frames=9))
    )
    generating.start()
    eventually(frontend.probe_entries)
    began = time.monotonic()
    assert frontend.stop() == 0
    assert time.monotonic() - began < 10
    generating.join()
    assert [(name, data["code"]) for name, data in ends] == [("error", "shutting_down")]
    assert [process for process in started if is_running(process)] == []
    assert frontend.stored() == []
    assert frontend.in_shm() == []


def test_flags_win_over_settings(tmp_path: Path, server: Frontend) -> None:
    frontend = Frontend(tmp_path, "--triton-url", server.triton_url, triton_url="127.0.0.1:1", port="1", host="::1")
    try:
        frontend.wait_healthy()
        assert (tmp_path / "data" / "uploads").exists() is False
        assert (tmp_path / "data" / "videos").is_dir()
    finally:
        frontend.stop()


def test_bad_settings_and_addresses_are_one_line(tmp_path: Path) -> None:
    def run(*flags: str, **environment: str) -> str:
        command = [sys.executable, "-m", "frontend", "--data-dir", str(tmp_path), *flags]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "FILMSTRIP_STORE_FILES" in run(FILMSTRIP_STORE_FILES="0")
    assert "model repository nowhere does not exist" in run("--embedded", FILMSTRIP_MODEL_REPOSITORY="nowhere")
    assert "port" in run("--port", "99999").lower()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen on" in run("--port", str(taken.getsockname()[1]))


def test_a_data_directory_serves_one_frontend(server: Frontend, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "frontend", "--port", "0", "--data-dir", str(server.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "another server uses" in done.stderr
    assert "Traceback" not in done.stderr


def test_hypercorn_can_serve_the_app_too(server: Frontend, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "FILMSTRIP_DATA_DIR": str(tmp_path / "data"),
        "FILMSTRIP_TRITON_URL": server.triton_url,
    }
    hypercorn = subprocess.Popen(
        [str(Path(sys.executable).parent / "hypercorn"), "frontend.app:create_app()", "--bind", f"127.0.0.1:{port}"],
        env=os.environ | environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:

        def healthy() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return http.get(f"http://127.0.0.1:{port}/health").status_code == 200
            return False

        eventually(healthy)
        answer = http.post(f"http://127.0.0.1:{port}/api/v1/generate", json=PROBE)
        assert answer.text.rstrip().splitlines()[-2] == "event: complete"
    finally:
        hypercorn.terminate()
        assert hypercorn.wait(10) == 0


def test_where_the_wheel_is_missing_embedded_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pytriton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'pytriton' else find(name, *a)\n"
        f"sys.argv = ['frontend', '--embedded', '--port', '0', '--data-dir', {str(tmp_path)!r}]\n"
        "import runpy; runpy.run_module('frontend', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "only for Linux on x86-64" in done.stderr
    assert "FILMSTRIP_TRITON_URL" in done.stderr
    assert "Traceback" not in done.stderr


# -- An embedded Triton -----------------------------------------------------------------------------------------


def test_log_lines_carry_the_generation(victim: Frontend) -> None:
    with victim.stream(**PROBE) as events:
        generation = events.response.headers["x-generation-id"]
        list(events)
    lines = [line for line in victim.log().splitlines() if generation in line]
    assert any('"event": "ended: complete"' in line for line in lines)
    assert all(f'"generation": "{generation}"' in line for line in lines)


def test_an_unloaded_pipeline_is_loaded_by_the_request(victim: Frontend) -> None:
    def shown() -> dict[str, bool]:
        answer = http.get(f"{victim.url}/api/v1/pipelines").json()
        return {pipeline["id"]: pipeline["loaded"] for pipeline in answer["pipelines"]}

    deaths = victim.log().count("the process of probe has died")
    with victim.triton_client() as client:
        client.unload_model("probe")
        eventually(lambda: not shown()["probe"])
        assert victim.generate(**PROBE)[-1][0] == "complete"
        client.unload_model("probe")
        eventually(lambda: not shown()["probe"])
    body = {"pipeline_ids": ["probe"], "load_params": {"height": 320, "anything": [1]}}
    loading = {"status": "loading", "ignored": ["anything"]}
    assert http.post(f"{victim.url}/api/v1/pipeline/load", json=body).json() == loading
    eventually(lambda: http.get(f"{victim.url}/api/v1/pipeline/status").json()["status"] == "loaded")
    assert http.get(f"{victim.url}/api/v1/pipeline/status").json() == {
        "status": "loaded",
        "pipeline_id": "probe",
        "load_params": {"height": 320, "anything": [1]},
        "loaded_lora_adapters": [{"path": "ink", "scale": 0}, {"path": "neon", "scale": 0}],
        "error": None,
    }
    assert http.post(f"{victim.url}/api/v1/pipeline/load", json=body).json() == loading | {"status": "loaded"}
    http.post(f"{victim.url}/api/v1/pipeline/load", json={"pipeline_ids": ["probe"]})
    unknown = http.post(f"{victim.url}/api/v1/pipeline/load", json={"pipeline_ids": ["nope"]})
    assert unknown.status_code == 404
    assert victim.log().count("the process of probe has died") == deaths  # to unload is not to die
