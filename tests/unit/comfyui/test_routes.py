"""What the page's extension may ask, and the saved address and key."""

import json
import stat
import threading
from pathlib import Path

import pytest

from comfyui import routes, settings
from tests.support.comfyui.host import Comfy
from tests.support.fake_server import Reply, fake_server

PIPELINE = {
    "id": "new", "state": "ready", "modes": ["text", "video"], "chunk_size": 12, "first_chunk_size": 9, "height": 64,
    "width": 96, "features": {"vace": True, "loras": ["ink"]},
}  # fmt: skip


def listing(*pipelines: dict[str, object], status: int = 200, **headers: str) -> Reply:
    body = json.dumps({"pipelines": list(pipelines)}).encode()
    return Reply(status, body, {"Content-Type": "application/json", **headers})


def test_the_page_gets_the_pipelines_of_an_allowed_address(comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    with fake_server(listing(PIPELINE)) as (url, requests):
        assert routes.list_pipelines(url) == {"error": routes.NOT_ALLOWED}
        assert requests == []
        monkeypatch.setenv("FILMSTRIP_ALLOWED_SERVERS", f"http://other.test, {url}/")
        (found,) = routes.list_pipelines(url)["pipelines"]
    assert requests == ["GET /api/v1/pipelines"]
    assert (found["id"], found["state"], found["loras"]) == ("new", "ready", ["ink"])
    assert found["summary"] == (
        "96x64; 12 frames per chunk (the first 9); text to video and video to video; control frames, masks and"
        " references; LoRAs: ink"
    )


@pytest.mark.parametrize(
    "reply",
    [
        Reply(302, b"", {"Location": "http://127.0.0.1:9/"}),
        Reply(401, b"secret"),
        Reply(200, b"secret"),
        listing({"id": "x"}),
        Reply(200, json.dumps({"pipelines": [PIPELINE], "pad": "x" * 2**20}).encode()),
    ],
)
def test_everything_else_is_one_fixed_sentence(reply: Reply, comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    with fake_server(reply) as (url, requests):
        monkeypatch.setenv("FILMSTRIP_ALLOWED_SERVERS", url)
        assert routes.list_pipelines(url) == {"error": routes.NO_ANSWER}
    assert len(requests) == 1, "no redirect is followed"


def test_a_server_that_says_nothing_is_given_up(comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    import socket  # noqa: PLC0415

    monkeypatch.setattr(routes, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("FILMSTRIP_ALLOWED_SERVERS", url)
        assert routes.list_pipelines(url) == {"error": routes.NO_ANSWER}
    for thread in threading.enumerate():
        if thread.name.startswith("filmstrip"):
            thread.join(10)


def test_what_is_no_address_is_not_asked(comfy: Comfy, subtests: pytest.Subtests):
    for address in (None, 7, "ftp://x", "file:///etc/passwd", "http://u:p@x", ""):
        with subtests.test(address=address):
            assert set(routes.list_pipelines(address)) == {"error"}


def test_only_the_own_page_may_ask():
    own = {"Host": "127.0.0.1:8188", "Origin": "http://127.0.0.1:8188"}
    assert routes.is_own_origin(own)
    assert routes.is_own_origin({**own, "Origin": "https://127.0.0.1:8188"}), "TLS may end at a proxy"
    for origin in ("http://evil.test", "null", "", "http://127.0.0.1:8189", "http://127.0.0.1:8188.evil.test"):
        assert not routes.is_own_origin({**own, "Origin": origin})
    assert not routes.is_own_origin({"Host": "127.0.0.1:8188"})
    assert not routes.is_own_origin({})


def saved_file(comfy: Comfy) -> Path:
    return Path(comfy.folder_paths.get_user_directory(), "filmstrip.json")


def test_a_key_goes_to_its_address_only_and_never_comes_back(comfy: Comfy):
    answer = routes.change_settings({"address": "http://studio.test:8000", "token": " the-key "})
    assert answer == {"address": "http://studio.test:8000", "has_key": True}
    assert "the-key" not in json.dumps(routes.change_settings({}))
    assert stat.S_IMODE(saved_file(comfy).stat().st_mode) == 0o600
    assert settings.token_for("http://STUDIO.test:8000/") == "the-key"
    assert settings.token_for("http://studio.test") == settings.token_for("https://studio.test:8000") == ""
    assert settings.default_url() == "http://studio.test:8000"
    routes.change_settings({"address": "http://studio.test:8000"})
    assert settings.token_for("http://studio.test:8000") == "the-key", "another change keeps it"
    routes.change_settings({"address": "http://elsewhere.test"})
    assert settings.token_for("http://elsewhere.test") == "", "another address does not get it"
    assert settings.token_for("http://studio.test:8000") == ""
    assert list(saved_file(comfy).parent.iterdir()) == [saved_file(comfy)]


def test_bad_settings_are_refused(comfy: Comfy, subtests: pytest.Subtests):
    for body in ({"address": "nothing"}, {"address": 7}, {"address": "http://x", "token": "a\nb"}, {"token": 7}):
        with subtests.test(body=body):
            assert set(routes.change_settings(body)) == {"error"}
    assert not saved_file(comfy).exists()


def test_a_damaged_file_is_no_settings(comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    saved_file(comfy).parent.mkdir()
    for text in ("{", "[]", '{"address": 7}'):
        saved_file(comfy).write_text(text)
        assert not settings.has_token()
        monkeypatch.delenv("FILMSTRIP_SERVER", raising=False)
        assert settings.default_url() == settings.DEFAULT_URL
