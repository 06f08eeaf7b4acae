"""Sessions of browsers: a cookie reads the media of its client, and does nothing else."""

import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest

from tests.support import http
from tests.support.server import Frontend, frontend_on

ALICE, BOB = "alice-key-1", "bob-key-1"
KEYS = f"alice:{ALICE}, alice:alice-key-2, bob:{BOB}"
SESSION = "/api/v1/session"
ID = "film"
REQUEST = {"pipeline_id": "probe", "prompt": "x", "num_frames": 12}


def as_(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def cookie(frontend: Frontend, key: str) -> dict[str, str]:
    """The header with the cookie of a new session."""
    answer = http.post(frontend.url + SESSION, headers=as_(key))
    assert answer.status_code == 200, answer.text
    http.client.cookies.clear()  # httpx would send it by itself
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def make(frontend: Frontend, key: str) -> str:
    """Generate a video under `ID`; its output_path."""
    headers = as_(key) | {"Accept": "text/event-stream"}
    answer = http.put(f"{frontend.url}/api/v1/generations/{ID}", json=REQUEST, headers=headers)
    assert "event: complete" in answer.text, answer.text
    return str(http.get(f"{frontend.url}/api/v1/generations/{ID}", headers=as_(key)).json()["output_path"])


@pytest.fixture(scope="module")
def locked(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that wants keys."""
    with frontend_on(server, tmp_path_factory.mktemp("sessions"), api_keys=KEYS) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def output(locked: Frontend) -> str:
    """The output of Alice's generation."""
    return make(locked, ALICE)


def media(output: str) -> list[str]:
    own = f"/api/v1/generations/{ID}"
    names = ("video.mp4", "video.webm", "video.gif", "poster.png", "contact-sheet.png", "frames")
    downloads = [f"/api/v1/{door}/download?path={output}" for door in ("generate", "batch")]
    return [*(f"{own}/{name}" for name in names), *downloads, f"{downloads[0]}&format=mp4"]


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401, answer.text
    assert answer.json()["error"]["code"] == "unauthorized"


def test_a_cookie_reads_the_media_of_its_client(locked: Frontend, output: str, subtests: pytest.Subtests) -> None:
    alice, bob = cookie(locked, ALICE), cookie(locked, BOB)
    for path in media(output):
        with subtests.test(path):
            url = locked.url + path
            answer = http.get(url, headers=alice)
            assert answer.status_code == 200, answer.text
            assert answer.content == http.get(url, headers=as_(ALICE)).content
            assert "private" in answer.headers["cache-control"]
            assert "Cookie" in answer.headers["vary"]
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert http.head(url, headers=alice).status_code == 200
            assert http.get(url, headers=bob).status_code == 404
            refused(http.get(url))
    part = http.get(locked.url + media(output)[0], headers=alice | {"Range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)


def test_a_cookie_opens_nothing_else(locked: Frontend, output: str, subtests: pytest.Subtests) -> None:
    alice = cookie(locked, ALICE)
    own = f"/api/v1/generations/{ID}"
    for method, path in [
        ("GET", "/api/v1/generations"),
        ("GET", own),
        ("GET", f"{own}/events"),
        ("GET", "/api/v1/pipelines"),
        ("GET", "/api/v1/pipeline/status"),
        ("GET", "/metrics"),
        ("GET", "/v1/videos"),
        ("GET", f"/v1/videos/{ID}/content"),
        ("GET", "/nothing"),
        ("PUT", own),
        ("POST", "/api/v1/generations"),
        ("POST", f"{own}/cancel"),
        ("POST", "/api/v1/generate"),
        ("POST", "/api/v1/generate/cancel"),
        ("POST", "/api/v1/generate/upload"),
        ("POST", "/api/v1/generate/upload-data"),
        ("POST", "/api/v1/assets"),
        ("POST", "/api/v1/pipeline/load"),
        ("DELETE", own),
        ("DELETE", f"/api/v1/files/{output}"),
        ("POST", f"{own}/video.mp4"),
        ("DELETE", f"/api/v1/generate/download?path={output}"),
        ("POST", SESSION),
        ("DELETE", SESSION),
    ]:
        with subtests.test(f"{method} {path}"):
            refused(http.request(method, locked.url + path, headers=alice, content=b"{}" if method != "GET" else None))
    assert http.get(f"{locked.url}{own}", headers=as_(ALICE)).status_code == 200


def test_only_a_valid_cookie_counts(locked: Frontend, output: str, subtests: pytest.Subtests) -> None:
    alice, bob = cookie(locked, ALICE), cookie(locked, BOB)
    name, _, token = alice["Cookie"].partition("=")
    url = locked.url + media(output)[0]
    as_bob = token.replace("alice", "bob", 1)
    for text in ("", "alice", ALICE, as_bob, token[:-1], f"{token}x", token.upper(), f'"{token}x"', "\xff"):
        with subtests.test(repr(text)):
            refused(http.get(url, headers={"Cookie": f"{name}={text}".encode("latin-1")}))
    refused(http.get(url, headers={"Cookie": f"other={token}"}))
    # A neighbour on another port may set a cookie of the same name.
    assert http.get(url, headers={"Cookie": f"{name}=nonsense; {alice['Cookie']}"}).status_code == 200
    assert http.get(url, headers={"Cookie": f"{bob['Cookie']}; {alice['Cookie']}"}).status_code == 404


def test_a_key_decides_alone(locked: Frontend, output: str) -> None:
    url, alice = locked.url + media(output)[0], cookie(locked, ALICE)
    for wrong in ("Bearer wrong", "Bearer", f"Basic {ALICE}", ""):
        refused(http.get(url, headers=alice | {"Authorization": wrong}))
    assert http.get(url, headers=alice | as_(BOB)).status_code == 404
    assert http.get(url, headers=cookie(locked, BOB) | as_(ALICE)).status_code == 200


def test_pages_elsewhere_cannot_use_the_cookie(locked: Frontend, output: str) -> None:
    """`SameSite` is the browser's part. It counts other ports of this machine as the same site."""
    url, alice = locked.url + media(output)[0], cookie(locked, ALICE)
    for site in ("same-site", "cross-site", "anything"):
        refused(http.get(url, headers=alice | {"Sec-Fetch-Site": site}))
    for site in ("same-origin", "none"):
        assert http.get(url, headers=alice | {"Sec-Fetch-Site": site}).status_code == 200
    answer = http.post(locked.url + SESSION, headers=as_(ALICE) | {"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_what_the_cookie_looks_like(locked: Frontend, subtests: pytest.Subtests) -> None:
    host = locked.url.removeprefix("http://")
    for headers, is_secure in (
        ({}, False),
        ({"Origin": locked.url}, False),
        ({"Origin": f"https://{host}"}, True),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "http"}, False),
    ):
        with subtests.test(str(headers)):
            answer = http.post(locked.url + SESSION, headers=as_(ALICE) | headers)
            http.client.cookies.clear()
            assert answer.headers["cache-control"] == "no-store"
            (found,) = SimpleCookie(answer.headers["set-cookie"]).values()
            assert found["httponly"] is True
            assert found["samesite"] == "Strict"
            assert bool(found["secure"]) is is_secure
            assert int(found["max-age"]) == 8 * 3600
            assert found["path"] == found["domain"] == ""  # the folder of the endpoint, as the browser sees it
            expires = int(found.value.split(".")[1])
            assert answer.json() == {"expires_at": expires}
            assert ALICE not in str(answer.headers) + answer.text


def test_a_session_ends(locked: Frontend, output: str) -> None:
    url = locked.url + media(output)[0]
    ended, other = cookie(locked, ALICE), cookie(locked, ALICE)
    answer = http.delete(locked.url + SESSION, headers=as_(ALICE) | ended)
    assert answer.status_code == 204
    (removed,) = SimpleCookie(answer.headers["set-cookie"]).values()
    assert (removed.value, removed["max-age"]) == ("", "0")
    refused(http.get(url, headers=ended))
    assert http.get(url, headers=other).status_code == 200
    assert http.delete(locked.url + SESSION, headers=as_(ALICE)).status_code == 204  # without a session


def test_a_browser_keeps_the_cookie_for_media_only(locked: Frontend, output: str) -> None:
    with http.connect(locked.url) as browser:
        browser.post(SESSION, headers=as_(ALICE))
        assert browser.get(media(output)[0]).status_code == 200
        (kept,) = browser.cookies.jar
        assert kept.path == "/api/v1"
        browser.delete(SESSION, headers=as_(ALICE))
        assert not browser.cookies
        refused(browser.get(media(output)[0]))


def test_a_session_lives_as_long_as_its_key_at_every_server(
    server: Frontend, locked: Frontend, output: str, tmp_path: Path
) -> None:
    alice, second = cookie(locked, ALICE), cookie(locked, "alice-key-2")
    path = f"/api/v1/generations/{ID}/video.mp4"
    with frontend_on(server, tmp_path, api_keys=f"bob:{BOB}, alice:{ALICE}") as frontend:
        assert http.get(frontend.url + path, headers=alice).status_code == 404  # it is Alice, who has no video here
        refused(http.get(frontend.url + path, headers=second))
        make(frontend, ALICE)
        assert http.get(frontend.url + path, headers=alice).status_code == 200
        kept = cookie(frontend, ALICE)
    with frontend_on(server, tmp_path, api_keys=f"alice:{ALICE}") as frontend:  # after a restart
        assert http.get(frontend.url + path, headers=kept).status_code == 200
    with frontend_on(server, tmp_path, api_keys=f"alice:{ALICE}", session_secret="s") as frontend:
        refused(http.get(frontend.url + path, headers=kept))
    with frontend_on(server, tmp_path) as frontend:  # without keys, nobody is Alice
        assert http.get(frontend.url + path, headers=kept).status_code == 404


def test_without_keys_there_are_no_sessions(server: Frontend, locked: Frontend) -> None:
    answer = http.post(server.url + SESSION, headers=as_(ALICE))
    assert answer.json() == {"expires_at": None}
    assert "set-cookie" not in answer.headers
    assert http.delete(server.url + SESSION).status_code == 204
    assert http.get(server.url + "/api/v1/generations", headers=cookie(locked, ALICE)).status_code == 200


def test_the_document_says_what_a_session_opens(locked: Frontend, output: str) -> None:
    document = http.get(f"{locked.url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["session"]["in"] == "cookie"
    opened = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if {"session": []} in operation.get("security", [])
    }
    assert opened == {re.sub(r"\?.*", "", path).replace(f"/{ID}/", "/{id}/") for path in media(output)}


def test_sessions_are_not_logged(locked: Frontend) -> None:
    token = cookie(locked, ALICE)["Cookie"].partition("=")[2]
    assert token not in locked.log()
    assert ALICE not in locked.log()
