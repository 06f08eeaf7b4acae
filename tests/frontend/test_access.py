"""Keys, what they separate, and web pages of other origins."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from filmstrip.client import Client
from filmstrip.errors import Unauthorized
from tests.conftest import beside
from tests.faults.aftermath import PROBE, noise
from tests.server import Frames, Frontend

ALICE, BOB, LONE = "alice-key-1", "bob-key-1", "a-key-without-a-name"
KEYS = f"alice:{ALICE}, alice:alice-key-2, bob:{BOB}, {LONE}"
PAGE = "https://tools.example"

Calls = Callable[[httpx.Client], httpx.Response]


def as_(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that wants keys."""
    settings = {"api_keys": KEYS, "cors_origins": PAGE}
    with beside(server, tmp_path_factory.mktemp("locked"), **settings) as frontend:
        yield frontend


def client(frontend: Frontend, key: str) -> Client:
    return Client(frontend.url, token=key)


def upload(frontend: Frontend, key: str, video: Frames) -> str:
    with client(frontend, key) as http:
        return http.upload(video).input_path


def make(frontend: Frontend, key: str, input_path: str) -> str:
    wanted = {"pipeline_id": "passthrough", "prompt": "", "input_path": input_path, "num_frames": 12}
    with client(frontend, key) as http, http.generate(**wanted) as events:
        *_, last = events
    return str(last.output_path)  # type: ignore[union-attr]


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    return answer.text


# -- Keys -----------------------------------------------------------------------------------------------------

ENDPOINTS = [
    ("POST", "/api/v1/generate"),
    ("POST", "/api/v1/generate/cancel"),
    ("POST", "/api/v1/generate/upload"),
    ("POST", "/api/v1/generate/upload-data"),
    ("POST", "/api/v1/assets"),
    ("GET", "/api/v1/generate/download?path=output-00"),
    ("GET", "/api/v1/pipelines"),
    ("POST", "/api/v1/pipeline/load"),
    ("GET", "/api/v1/pipeline/status"),
    ("GET", "/metrics"),
    ("GET", "/nothing/is/here"),
]
WRONG = [
    "",
    "Bearer",
    "Bearer wrong",
    f"Basic {ALICE}",
    ALICE,
    f"Bearer {ALICE}x",
    "Bearer alice",
    "Bearer \xff",
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_without_a_key_nothing_is_told_or_done(locked: Frontend, method: str, path: str, wrong: str) -> None:
    stored = locked.stored()
    headers = {"Authorization": wrong.encode("latin-1")} if wrong else {}
    answer = httpx.request(method, locked.url + path, content=b"{}" if method == "POST" else None, headers=headers)
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.stored() == stored


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/docs/swagger-ui.css"])
def test_what_monitors_and_browsers_ask_first_is_open(locked: Frontend, path: str) -> None:
    assert httpx.get(locked.url + path).status_code == 200


def test_a_refused_upload_is_not_stored_and_its_client_reads_the_answer(locked: Frontend) -> None:
    answer = httpx.post(f"{locked.url}/api/v1/generate/upload-data", content=bytes(10_000_000))
    refused(answer, 401, "unauthorized")
    assert locked.stored("partial", "blobs") == []


def test_a_key_opens_everything(locked: Frontend) -> None:
    for key in (ALICE, BOB, LONE):
        video = noise(12)
        with client(locked, key) as http:
            path = http.upload(video).input_path
            output = make(locked, key, path)
            assert np.array_equal(http.download(output), video)
    lower = httpx.get(f"{locked.url}/api/v1/pipelines", headers={"Authorization": f"bearer {ALICE}"})
    assert lower.status_code == 200


def test_a_wrong_token_is_an_error_of_the_client(locked: Frontend) -> None:
    with pytest.raises(Unauthorized), client(locked, "wrong") as http:
        http.pipelines()


# -- What keys separate ---------------------------------------------------------------------------------------


def test_nobody_reaches_the_files_of_another(locked: Frontend, clip: Frames) -> None:
    with client(locked, ALICE) as alice:
        video = alice.upload(clip[:12]).input_path
        blob = alice.upload_data(bytes(1000)).data_blob_path
        asset = alice.upload_asset((Path(__file__).parent / "pixel.png").read_bytes())
    output = make(locked, ALICE, video)

    def status(key: str, **fields: object) -> int:
        request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 9, **fields}
        with httpx.stream("POST", f"{locked.url}/api/v1/generate", json=request, headers=as_(key)) as answer:
            answer.read()
            return answer.status_code

    for key, expected in ((BOB, 404), (LONE, 404), ("alice-key-2", 200)):
        assert status(key, input_path=video) == expected
        assert status(key, data_blob_path=blob) == expected
        assert status(key, chunk_specs=[{"chunk": 0, "first_frame_image": asset}]) == expected
        download = f"{locked.url}/api/v1/generate/download"
        assert httpx.get(download, params={"path": output}, headers=as_(key)).status_code == expected


def test_a_file_of_another_looks_like_none(locked: Frontend, clip: Frames) -> None:
    video = upload(locked, ALICE, clip[:1])

    def told(name: str) -> str:
        body = {"pipeline_id": "passthrough", "prompt": "", "input_path": name}
        answer = httpx.post(f"{locked.url}/api/v1/generate", json=body, headers=as_(BOB))
        return refused(answer, 404, "unknown_path").replace(name, "NAME")

    assert told(video) == told("video-" + "0" * 32)


def test_nobody_cancels_the_generation_of_another(locked: Frontend) -> None:
    slow = {"pipeline_id": "probe", "prompt": "!sleep 1", "num_frames": 33}
    with httpx.stream("POST", f"{locked.url}/api/v1/generate", json=slow, headers=as_(ALICE), timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "id: 1"
        cancel = f"{locked.url}/api/v1/generate/cancel"
        assert httpx.post(cancel, headers=as_(BOB)).json() == {"status": "idle"}
        busy = httpx.post(f"{locked.url}/api/v1/generate", json=PROBE, headers=as_(BOB))
        refused(busy, 409, "busy")
        assert httpx.post(cancel, headers=as_("alice-key-2")).json() == {"status": "cancelling"}
        assert "event: cancelled" in list(lines)


def test_nobody_reads_what_another_asked_to_load(locked: Frontend) -> None:
    body = {"pipeline_ids": ["probe"], "load_params": {"of": "alice"}}
    assert httpx.post(f"{locked.url}/api/v1/pipeline/load", json=body, headers=as_(ALICE)).status_code == 200
    status = f"{locked.url}/api/v1/pipeline/status"
    assert httpx.get(status, headers=as_(ALICE)).json()["load_params"] == {"of": "alice"}
    assert httpx.get(status, headers=as_(BOB)).json()["status"] == "not_loaded"


def test_files_keep_their_owners_over_a_restart_and_when_keys_change(server: Frontend, tmp_path: Path) -> None:
    def status(frontend: Frontend, key: str | None, name: str) -> int:
        headers = as_(key) if key else {}
        url = f"{frontend.url}/api/v1/generate/download"
        return httpx.get(url, params={"path": name}, headers=headers).status_code

    with beside(server, tmp_path, api_keys=KEYS) as frontend:
        output = make(frontend, ALICE, upload(frontend, ALICE, noise(12)))
        unnamed = make(frontend, LONE, upload(frontend, LONE, noise(12)))
    with beside(server, tmp_path, api_keys=f"bob:{BOB},alice:another-key,{LONE}") as frontend:
        assert status(frontend, "another-key", output) == 200
        assert status(frontend, BOB, output) == 404
        assert status(frontend, ALICE, output) == 401
        assert status(frontend, LONE, unnamed) == 200
    with beside(server, tmp_path) as frontend:  # without keys nobody is alice
        assert status(frontend, None, output) == 404
        assert frontend.upload(noise(1))


def test_keys_in_shared_memory_too(server: Frontend, tmp_path: Path) -> None:
    with beside(server, tmp_path, api_keys=KEYS, uploads_in_shm=True) as frontend:
        with client(frontend, ALICE) as alice:
            video = noise(12)
            path = alice.upload(video).input_path
            assert np.array_equal(alice.download(make(frontend, ALICE, path)), video)
        request = {"pipeline_id": "passthrough", "prompt": "", "input_path": path}
        refused(httpx.post(f"{frontend.url}/api/v1/generate", json=request, headers=as_(BOB)), 404, "unknown_path")


def test_keys_are_neither_logged_nor_told_to_the_models(locked: Frontend) -> None:
    assert not any(key in locked.log() for key in (ALICE, BOB, LONE))


# -- Pages of other origins -----------------------------------------------------------------------------------


def test_a_page_elsewhere_cannot_post(server: Frontend) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        for path in ("/api/v1/generate", "/api/v1/generate/cancel", "/api/v1/generate/upload-data"):
            answer = httpx.post(server.url + path, content=b"{}", headers={"Origin": origin})
            refused(answer, 403, "forbidden_origin")
    answer = httpx.get(f"{server.url}/api/v1/pipelines", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_servers_own_page_can_post(server: Frontend) -> None:
    answer = httpx.post(f"{server.url}/api/v1/generate/cancel", headers={"Origin": server.url})
    assert answer.json() == {"status": "idle"}


def test_a_page_that_is_allowed_can_do_everything(locked: Frontend) -> None:
    preflight = httpx.options(
        f"{locked.url}/api/v1/generate",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    answer = httpx.post(f"{locked.url}/api/v1/generate/cancel", headers=as_(ALICE) | {"Origin": PAGE})
    assert answer.json() == {"status": "idle"}
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "X-Video-Frames" in answer.headers["access-control-expose-headers"]
    without = httpx.post(f"{locked.url}/api/v1/generate/cancel", headers={"Origin": PAGE})
    refused(without, 401, "unauthorized")
    assert without.headers["access-control-allow-origin"] == PAGE  # so that the page can read why


def test_other_pages_stay_out(locked: Frontend) -> None:
    headers = as_(ALICE) | {"Origin": "https://evil.example"}
    answer = httpx.post(f"{locked.url}/api/v1/generate/cancel", headers=headers)
    refused(answer, 403, "forbidden_origin")
    assert "access-control-allow-origin" not in answer.headers
