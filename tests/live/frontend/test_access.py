"""Keys, what they separate, and web pages of other origins."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from filmstrip.client import Client, Complete
from filmstrip.errors import InUse, StorageFull, Unauthorized, UnknownPath
from tests.support import http
from tests.support.raw_client import raw_request, send_raw
from tests.support.recovery import PROBE, noise
from tests.support.refusals import check_refusal, refusal_of
from tests.support.server import ROOT, Frames, Frontend, frontend_on

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
    with frontend_on(server, tmp_path_factory.mktemp("locked"), **settings) as frontend:
        yield frontend


def client(frontend: Frontend, key: str) -> Client:
    return Client(frontend.url, token=key)


def upload(frontend: Frontend, key: str, video: Frames) -> str:
    with client(frontend, key) as http:
        return http.upload(video).input_path


def make(frontend: Frontend, key: str, input_path: str) -> str:
    request = {"pipeline_id": "passthrough", "prompt": "", "input_path": input_path, "num_frames": 12}
    with client(frontend, key) as http, http.generate(**request) as events:
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
    ("POST", "/api/v1/batch"),
    ("POST", "/api/v1/batch/cancel"),
    ("POST", "/api/v1/batch/upload"),
    ("POST", "/api/v1/batch/upload-data"),
    ("GET", "/api/v1/batch/download?path=output-00"),
    ("GET", "/api/v1/pipelines"),
    ("POST", "/api/v1/pipeline/load"),
    ("DELETE", "/api/v1/files/blob-00"),
    ("GET", "/api/v1/pipeline/status"),
    ("GET", "/metrics"),
    ("GET", "/nothing/is/here"),
]
WRONG = [
    "Bearer",
    "Bearer wrong",
    f"Basic {ALICE}",
    ALICE,
    f"Bearer {ALICE}x",
    "Bearer alice",
    "Bearer \xff",
]


def test_without_a_key_every_endpoint_refuses(locked: Frontend, subtests: pytest.Subtests) -> None:
    stored = locked.stored()
    cases = [(method, path, "") for method, path in ENDPOINTS] + [(*ENDPOINTS[0], wrong) for wrong in WRONG]
    for method, path, wrong in cases:
        with subtests.test(f"{method} {path} {wrong!a}"):
            headers = {"Authorization": wrong.encode("latin-1")} if wrong else {}
            content = b"{}" if method == "POST" else None
            answer = http.request(method, locked.url + path, content=content, headers=headers)
            refused(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.stored() == stored


def test_monitors_and_browsers_need_no_key(locked: Frontend) -> None:
    paths = ("/health", "/health/live", "/health/ready", "/docs", "/openapi.json", "/docs/swagger-ui.css")
    for path in (*paths, "/", "/page/app.js", "/favicon.ico"):
        assert http.get(locked.url + path).status_code == 200, path


def test_a_refused_upload_is_not_stored_and_its_client_reads_the_answer(locked: Frontend) -> None:
    answer = http.post(f"{locked.url}/api/v1/generate/upload-data", content=bytes(10_000_000))
    refused(answer, 401, "unauthorized")
    assert locked.stored("partial", "blobs") == []


def test_a_key_opens_everything(locked: Frontend) -> None:
    for key in (ALICE, BOB, LONE):
        video = noise(12)
        with client(locked, key) as caller:
            path = caller.upload(video).input_path
            output = make(locked, key, path)
            assert np.array_equal(caller.download(output), video)
    lower = http.get(f"{locked.url}/api/v1/pipelines", headers={"Authorization": f"bearer {ALICE}"})
    assert lower.status_code == 200


def test_a_wrong_token_is_an_error_of_the_client(locked: Frontend) -> None:
    with pytest.raises(Unauthorized), client(locked, "wrong") as http:
        http.pipelines()


# -- What keys separate ---------------------------------------------------------------------------------------


def test_nobody_reaches_the_files_of_another(locked: Frontend, clip: Frames) -> None:
    with client(locked, ALICE) as alice:
        video = alice.upload(clip[:12]).input_path
        blob = alice.upload_data(bytes(1000)).data_blob_path
        asset = alice.upload_asset((ROOT / "tests" / "support" / "pixel.png").read_bytes())
    output = make(locked, ALICE, video)

    def status(key: str, **fields: object) -> int:
        raw_request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 9, **fields}
        with http.stream("POST", f"{locked.url}/api/v1/generate", json=raw_request, headers=as_(key)) as answer:
            answer.read()
            return answer.status_code

    for key, expected in ((BOB, 404), (LONE, 404), ("alice-key-2", 200)):
        assert status(key, input_path=video) == expected
        assert status(key, data_blob_path=blob) == expected
        assert status(key, chunk_specs=[{"chunk": 0, "first_frame_image": asset}]) == expected
        download = f"{locked.url}/api/v1/generate/download"
        assert http.get(download, params={"path": output}, headers=as_(key)).status_code == expected


def test_a_file_of_another_looks_like_none(locked: Frontend, clip: Frames) -> None:
    video = upload(locked, ALICE, clip[:1])

    def refusal_text(name: str) -> str:
        body = {"pipeline_id": "passthrough", "prompt": "", "input_path": name}
        answer = http.post(f"{locked.url}/api/v1/generate", json=body, headers=as_(BOB))
        return refused(answer, 404, "unknown_path").replace(name, "NAME")

    assert refusal_text(video) == refusal_text("video-" + "0" * 32)


def test_clients_delete_their_own_files_when_nothing_uses_them(locked: Frontend, clip: Frames) -> None:
    with client(locked, ALICE) as alice, client(locked, BOB) as bob:
        video = alice.upload(clip[:12]).input_path
        blob = alice.upload_data(bytes(10)).data_blob_path
        asset = alice.upload_asset((ROOT / "tests" / "support" / "pixel.png").read_bytes())
        unused = alice.upload_data(b"x").data_blob_path
        output = make(locked, ALICE, video)
        others = [(video, "input_path"), (blob, "data_blob_path"), (asset, "asset"), (output, "output_path")]
        for name, _ in others:
            with pytest.raises(UnknownPath):
                bob.delete(name)
        images = [{"chunk": 0, "first_frame_image": asset}, {"chunk": 1, "text": "!sleep 1"}]
        uses = {"pipeline_id": "probe", "prompt": "!sleep 0.5", "num_frames": 24, "chunk_specs": images}
        with alice.generate(**uses, input_path=video, data_blob_path=blob) as events:
            for name in (video, blob, asset):
                with pytest.raises(InUse):
                    alice.delete(name)
            alice.delete(unused)
            assert isinstance([*events][-1], Complete)
        for name in (video, blob, asset, output):
            alice.delete(name)
            with pytest.raises(UnknownPath):
                alice.delete(name)
    answer = http.delete(f"{locked.url}/api/v1/files/..%2Flock", headers=as_(ALICE))
    assert answer.status_code == 404
    page = http.delete(f"{locked.url}/api/v1/files/{video}", headers=as_(ALICE) | {"Origin": "https://evil.example"})
    refused(page, 403, "forbidden_origin")


def test_a_client_cannot_fill_the_store_for_others(server: Frontend, tmp_path: Path) -> None:
    with (
        frontend_on(server, tmp_path, api_keys=KEYS, store_files=6) as frontend,
        client(frontend, ALICE) as alice,
        client(frontend, BOB) as bob,
    ):
        names = [alice.upload_data(b"x").data_blob_path for _ in range(3)]
        with pytest.raises(StorageFull):
            alice.upload_data(b"x")
        bob.upload_data(b"x")
        alice.delete(names[0])
        alice.upload_data(b"x")


def test_nobody_cancels_the_generation_of_another(locked: Frontend) -> None:
    slow = {"pipeline_id": "probe", "prompt": "!sleep 1", "num_frames": 33}
    with http.stream("POST", f"{locked.url}/api/v1/generate", json=slow, headers=as_(ALICE), timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "id: 1"
        cancel = f"{locked.url}/api/v1/generate/cancel"
        assert http.post(cancel, headers=as_(BOB)).json() == {"status": "idle"}
        busy = http.post(f"{locked.url}/api/v1/generate", json=PROBE, headers=as_(BOB))
        refused(busy, 409, "busy")
        assert http.post(cancel, headers=as_("alice-key-2")).json() == {"status": "cancelling"}
        assert "event: cancelled" in list(lines)


def test_nobody_reads_what_another_asked_to_load(locked: Frontend) -> None:
    body = {"pipeline_ids": ["probe"], "load_params": {"of": "alice"}}
    assert http.post(f"{locked.url}/api/v1/pipeline/load", json=body, headers=as_(ALICE)).status_code == 200
    status = f"{locked.url}/api/v1/pipeline/status"
    assert http.get(status, headers=as_(ALICE)).json()["load_params"] == {"of": "alice"}
    assert http.get(status, headers=as_(BOB)).json()["status"] == "not_loaded"


def test_files_keep_their_owners_over_a_restart_and_when_keys_change(server: Frontend, tmp_path: Path) -> None:
    def status(frontend: Frontend, key: str | None, name: str) -> int:
        headers = as_(key) if key else {}
        url = f"{frontend.url}/api/v1/generate/download"
        return http.get(url, params={"path": name}, headers=headers).status_code

    with frontend_on(server, tmp_path, api_keys=KEYS) as frontend:
        output = make(frontend, ALICE, upload(frontend, ALICE, noise(12)))
        unnamed = make(frontend, LONE, upload(frontend, LONE, noise(12)))
    with frontend_on(server, tmp_path, api_keys=f"bob:{BOB},alice:another-key,{LONE}") as frontend:
        assert status(frontend, "another-key", output) == 200
        assert status(frontend, BOB, output) == 404
        assert status(frontend, ALICE, output) == 401
        assert status(frontend, LONE, unnamed) == 200
    with frontend_on(server, tmp_path) as frontend:  # without keys nobody is alice
        assert status(frontend, None, output) == 404
        assert frontend.upload(noise(1))


def test_keys_in_shared_memory_too(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, api_keys=KEYS, uploads_in_shm=True) as frontend:
        with client(frontend, ALICE) as alice:
            video = noise(12)
            path = alice.upload(video).input_path
            assert np.array_equal(alice.download(make(frontend, ALICE, path)), video)
        raw_request = {"pipeline_id": "passthrough", "prompt": "", "input_path": path}
        refused(http.post(f"{frontend.url}/api/v1/generate", json=raw_request, headers=as_(BOB)), 404, "unknown_path")


def test_keys_are_neither_logged_nor_passed_to_models(locked: Frontend) -> None:
    assert not any(key in locked.log() for key in (ALICE, BOB, LONE))


# -- Pages of other origins -----------------------------------------------------------------------------------


def test_a_page_elsewhere_cannot_post(server: Frontend) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        for path in ("/api/v1/generate", "/api/v1/generate/cancel", "/api/v1/generate/upload-data"):
            answer = http.post(server.url + path, content=b"{}", headers={"Origin": origin})
            refused(answer, 403, "forbidden_origin")
    answer = http.get(f"{server.url}/api/v1/pipelines", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_servers_own_page_can_post(server: Frontend) -> None:
    """Also behind a proxy that speaks TLS to the browser, and passes the host on."""
    answer = http.post(f"{server.url}/api/v1/generate/cancel", headers={"Origin": server.url})
    assert answer.json() == {"status": "idle"}
    for origin, host in (
        ("https://film.localhost", "film.localhost"),
        ("https://film.localhost", "film.localhost:443"),
        ("http://film.localhost:80", "film.localhost"),
        ("HTTP://LOCALHOST:8000", "localhost:8000"),
    ):
        answer = http.post(f"{server.url}/api/v1/generate/cancel", headers={"Origin": origin, "Host": host})
        assert answer.json() == {"status": "idle"}, (origin, host)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_no_other_origin_changes_anything(server: Frontend, method: str) -> None:
    """By no method, whatever the scheme, and not by a second header or by a target that names another host."""
    host = urlsplit(server.url).netloc
    for sent in (
        *([f"Origin: {scheme}://{host}"] for scheme in ("chrome-extension", "file", "moz-extension", "ws", "ftp")),
        ["Origin: null"],
        ["Origin: file://"],
        ["Origin:"],
        [f"Origin: http://{host}/"],
        [f"Origin: http://user@{host}"],
        [f"Origin: https://{host.partition(':')[0]}"],
        [f"Origin: http://{host}", "Origin: http://evil.example"],
        [f"Origin: http://{host}, http://evil.example"],
    ):
        answer = send_raw(server.url, raw_request(f"{method} /api/v1/generate/cancel", *sent, host=host))
        assert check_refusal(server, answer)["code"] == "forbidden_origin", sent
    answer = send_raw(
        server.url,
        raw_request(f"{method} http://localhost:1/api/v1/generate/cancel", f"Origin: {server.url}", host=host),
    )
    assert check_refusal(server, answer)["code"] == "forbidden_origin"


# -- Host names -----------------------------------------------------------------------------------------------

FOREIGN = ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "[fe80::1]", "user@localhost", ""]


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/metrics", "/api/v1/pipelines", "/nothing"])
def test_a_name_that_was_made_to_point_here_reaches_nothing(server: Frontend, path: str) -> None:
    """DNS rebinding: the page's own name leads to this machine, so its requests are of the same origin."""
    for host in FOREIGN:
        error = refusal_of(server, f"GET {path}", host=host)
        assert error["code"] == "forbidden_host"
        assert "FILMSTRIP_ALLOWED_HOSTS" in error["message"]
    target = f"http://evil.example{path}"
    assert refusal_of(server, f"GET {target}")["code"] == "forbidden_host"
    assert refusal_of(server, f"GET http://localhost@evil.example{path}")["code"] == "forbidden_host"
    assert refusal_of(server, f"GET {path}", "Host: evil.example")["code"] == "bad_request"


def test_a_foreign_name_changes_nothing(server: Frontend) -> None:
    stored = server.stored()
    for origin in ((), ("Origin: http://evil.example",)):
        sent = raw_request("POST /api/v1/generate/upload-data", *origin, host="evil.example", body=bytes(10))
        assert check_refusal(server, send_raw(server.url, sent))["code"] == "forbidden_host"
    assert server.stored() == stored


def test_this_machine_by_its_own_names(server: Frontend) -> None:
    for host in ("localhost", "LOCALHOST.:8000", "film.localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8000"):
        assert send_raw(server.url, raw_request("GET /api/v1/pipelines", host=host)).status == 200, host
        assert (
            send_raw(server.url, raw_request(f"GET http://{host}/api/v1/pipelines", host="localhost")).status == 200
        ), host
    old = b"GET /api/v1/pipelines HTTP/1.0\r\n\r\n"  # no browser leaves the host out
    assert send_raw(server.url, old).status == 200


def test_monitors_may_use_any_name(server: Frontend) -> None:
    assert send_raw(server.url, raw_request("GET /health", host="evil.example")).status == 200


def test_names_that_are_allowed(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, allowed_hosts="film.example, [fe80::1], other.example:8000") as frontend:
        for host in ("film.example", "FILM.EXAMPLE:99", "[fe80::1]", "other.example:8000", "localhost"):
            assert send_raw(frontend.url, raw_request("GET /api/v1/pipelines", host=host)).status == 200, host
        for host in ("evil.example", "film.example.evil.example", "other.example:8001", "other.example"):
            assert refusal_of(frontend, "GET /docs", host=host)["code"] == "forbidden_host"
        sent = raw_request("POST /api/v1/generate/cancel", "Origin: https://film.example", host="film.example")
        assert send_raw(frontend.url, sent).status == 200


def test_keys_or_another_address_need_no_names(server: Frontend, locked: Frontend, tmp_path: Path) -> None:
    sent = raw_request("GET /api/v1/pipelines", f"Authorization: Bearer {ALICE}", host="film.example")
    assert send_raw(locked.url, sent).status == 200
    for name in ("any", "all"):
        (tmp_path / name).mkdir()
    with frontend_on(server, tmp_path / "any", allowed_hosts="*") as frontend:
        assert send_raw(frontend.url, raw_request("GET /api/v1/pipelines", host="film.example")).status == 200
    with frontend_on(server, tmp_path / "all", host="0.0.0.0") as frontend:
        frontend.url = frontend.url.replace("0.0.0.0", "127.0.0.1")
        assert send_raw(frontend.url, raw_request("GET /api/v1/pipelines", host="film.example")).status == 200


def test_a_page_that_is_allowed_can_do_everything(locked: Frontend) -> None:
    preflight = http.options(
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
    answer = http.post(f"{locked.url}/api/v1/generate/cancel", headers=as_(ALICE) | {"Origin": PAGE})
    assert answer.json() == {"status": "idle"}
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "X-Video-Frames" in answer.headers["access-control-expose-headers"]
    without = http.post(f"{locked.url}/api/v1/generate/cancel", headers={"Origin": PAGE})
    refused(without, 401, "unauthorized")
    assert without.headers["access-control-allow-origin"] == PAGE  # so that the page can read why


def test_other_pages_stay_out(locked: Frontend) -> None:
    headers = as_(ALICE) | {"Origin": "https://evil.example"}
    answer = http.post(f"{locked.url}/api/v1/generate/cancel", headers=headers)
    refused(answer, 403, "forbidden_origin")
    assert "access-control-allow-origin" not in answer.headers
