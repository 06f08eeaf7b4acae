"""Health, pipelines, metrics and errors of the real server."""

import re
import threading

import httpx
import numpy as np
import pytest

from tests.support import http
from tests.support.server import MODEL_NAMES, Frames, Frontend

HEALTHY = {"status": "healthy", "degraded": []}


def metric(server: Frontend, name: str) -> float:
    """The sum of a metric over its labels."""
    text = http.get(f"{server.url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def test_health(server: Frontend) -> None:
    slot = {"name": "0"}
    assert http.get(f"{server.url}/health").json() == HEALTHY | {
        "generating": False,
        "slots": [slot | {"state": "ready"}],
    }
    with server.stream(pipeline_id="probe", prompt="!sleep 0.5", num_frames=9) as events:
        busy = {"generating": True, "slots": [slot | {"state": "generating"}]}
        assert http.get(f"{server.url}/health").json() == HEALTHY | busy
        list(events)


def test_pipelines_say_what_they_are(server: Frontend) -> None:
    answer = http.get(f"{server.url}/api/v1/pipelines").json()
    found = {pipeline.pop("id"): pipeline for pipeline in answer["pipelines"]}
    assert list(found) == MODEL_NAMES
    nothing = dict.fromkeys(("seed", "prompts", "noise", "cache", "denoising_steps", "vace"), False)
    assert found["gray"] == {
        "modes": ["video"],
        "chunk_size": 12,
        "first_chunk_size": 12,
        "granularity": 1,
        "height": None,
        "width": None,
        "sizes": [],
        "max_references": None,
        "features": {"frame_processor": True, **nothing, "loras": []},
        "defaults": {},
        "loaded": True,
        "state": "ready",
        "reason": None,
    }
    probe = found["probe"]
    assert (probe["chunk_size"], probe["first_chunk_size"], probe["height"], probe["width"]) == (12, 9, 64, 96)
    assert probe["features"]["loras"] == ["ink", "neon"]
    assert probe["modes"] == ["text", "video"]


def test_metrics_count(server: Frontend, clip: Frames) -> None:
    names = ("filmstrip_frames_total", "filmstrip_chunk_seconds_count", "filmstrip_generations_total")
    stages = 'filmstrip_stage_seconds_count{model="passthrough",stage="process"}'
    before = [metric(server, name) for name in names]
    uploaded, downloaded = (metric(server, f"filmstrip_{way}_bytes_total") for way in ("uploaded", "downloaded"))
    made = server.generate_frames(pipeline_id="passthrough", prompt="", num_frames=30, input_path=server.upload(clip))
    assert [metric(server, name) - was for name, was in zip(names, before, strict=True)] == [30, 3, 1]
    assert metric(server, "filmstrip_uploaded_bytes_total") - uploaded == 20 + clip.nbytes
    assert metric(server, "filmstrip_downloaded_bytes_total") - downloaded == 20 + made.nbytes
    assert stages in http.get(f"{server.url}/metrics").text


def test_the_slot_is_in_the_metrics(server: Frontend) -> None:
    assert metric(server, "filmstrip_slot_in_use") == 0
    with server.stream(pipeline_id="probe", prompt="!sleep 0.3", num_frames=9) as events:
        assert metric(server, "filmstrip_slot_in_use") == 1
        list(events)
    assert metric(server, "filmstrip_slot_in_use") == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1/generate", 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
        ("GET", "/" + "x" * 3000, 404, "not_found"),
        ("GET", "/docs/../../etc/passwd", 404, "not_found"),
        ("GET", "/docs/%2e%2e/LICENSE", 404, "not_found"),
    ],
)
def test_other_addresses(server: Frontend, method: str, path: str, status: int, code: str) -> None:
    answer = http.request(method, server.url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert len(answer.content) < 1000
    if status == 405:
        assert answer.headers["allow"]


def test_no_answer_tells_what_serves_it(server: Frontend) -> None:
    for path in ("/health", "/nothing"):
        headers = http.get(server.url + path).headers
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_the_loop_stays_free_while_large_chunks_pass(server: Frontend, grpc_server: Frontend) -> None:
    """While 12-frame chunks of 1024 x 720 (26 MB each way) pass, small requests are answered all the time."""
    video = np.zeros((12, 720, 1024, 3), np.uint8)
    for frontend in (server, grpc_server):
        path = frontend.upload(video)
        generating = threading.Thread(
            target=frontend.generate,
            kwargs={"pipeline_id": "passthrough", "prompt": "", "num_frames": 60, "input_path": path},
        )
        generating.start()
        answers = 0
        with httpx.Client() as client:
            while generating.is_alive():
                assert client.get(f"{frontend.url}/health", timeout=2).status_code == 200
                answers += 1
        generating.join()
        assert answers > 5
