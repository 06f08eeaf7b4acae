"""Answers that do not come from Filmstrip, by a real HTTP server that answers as proxies do."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from comfyui.client import ServerClient as NodesClient
from comfyui.client import server_address
from comfyui.errors import FilmstripError as NodesError
from filmstrip.cli import main
from filmstrip.client import AsyncClient, Client, UnexpectedAnswer, VideoShape
from tests.support.fake_server import Reply, fake_server, nginx_error
from tests.support.server import ROOT

LOGIN = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body><form action='/login'>Sign in</form></body></html>"
FAILED, NOT_REACHED = 1, 3

CASES = [
    (nginx_error(413, "Request Entity Too Large"), "client_max_body_size", FAILED),
    (nginx_error(502, "Bad Gateway"), "cannot reach it", NOT_REACHED),
    (nginx_error(503, "Service Temporarily Unavailable"), "nothing to forward to", NOT_REACHED),
    (nginx_error(504, "Gateway Time-out"), "proxy_read_timeout", NOT_REACHED),
    (nginx_error(401, "Authorization Required", **{"WWW-Authenticate": "Basic"}), "asks for a login", FAILED),
    (nginx_error(403, "Forbidden"), "forbids", FAILED),
    (nginx_error(404, "Not Found"), "no Filmstrip server at this address", FAILED),
    (nginx_error(429, "Too Many Requests"), "try again later", FAILED),
    (nginx_error(400, "The plain HTTP request was sent to HTTPS port"), "write https://", FAILED),
    (nginx_error(418, "I'm a teapot"), "refused", FAILED),
    (
        nginx_error(302, "Found", Location="https://login.example/sign-in?session=s3cret"),
        "https://login.example/sign-in",
        1,
    ),
    (nginx_error(301, "Moved Permanently", Location="//login.example:70000/"), "elsewhere", FAILED),
    (Reply(521, b"<html>s3cret", {"Server": "cloudflare\x1b[31m"}), "failed (521 from cloudflare [31m)", FAILED),
    (Reply(200, LOGIN, {"Content-Type": "text/html"}), "web page", FAILED),
    (Reply(200, LOGIN), "web page", FAILED),
    (Reply(200, b"OK\x1b[2J", {"Content-Type": "text/plain"}), "not Filmstrip's (200 OK): 'OK [2J'", FAILED),
    (Reply(502, b"upstream connect error", {"Server": "envoy"}), "from envoy): 'upstream connect error'", NOT_REACHED),
    (Reply(404, b'{"detail":"Not Found"}'), "no Filmstrip server at this address", FAILED),
    (Reply(503, b""), "nothing to forward to", NOT_REACHED),
    (Reply(400, b'{"error": {"code": ["busy"], "message": "x"}}'), "refused", FAILED),
    (Reply(400, b'{"error": {"code": "busy", "message": null}}'), "refused", FAILED),
]
every_case = pytest.mark.parametrize(
    ("reply", "cause", "exit_code"), CASES, ids=[f"{reply.status}-{cause[:12]}" for reply, cause, _ in CASES]
)


def check(message: str, url: str, reply: Reply, cause: str) -> None:
    assert message.startswith(f"{url}: ")
    assert cause in message
    assert str(reply.status) in message
    assert message.isprintable()
    assert "s3cret" not in message
    assert ("<" in message) is False, "a page of HTML is not for a terminal"


@every_case
async def test_the_python_clients_name_the_likely_cause(reply: Reply, cause: str, exit_code: int):
    video = np.zeros((40, 256, 256, 3), np.uint8)  # more than a socket's buffers hold
    with fake_server(reply) as (url, _), Client(url) as client:
        for call in (
            client.pipelines,
            client.health,
            lambda: client.upload(video, VideoShape(*video.shape)),
            lambda: client.generate(pipeline_id="gray", prompt="").__enter__(),
            lambda: client.download("output"),
        ):
            with pytest.raises(UnexpectedAnswer) as raised:
                call()
            if call is not client.health or reply.headers:
                check(str(raised.value), url, reply, cause)
            assert raised.value.status == reply.status
        async with AsyncClient(url) as asynchronous:
            with pytest.raises(UnexpectedAnswer) as raised:
                await asynchronous.pipelines()
            check(str(raised.value), url, reply, cause)
            with pytest.raises(UnexpectedAnswer) as raised:
                async with asynchronous.generate(pipeline_id="gray", prompt=""):
                    pass
            check(str(raised.value), url, reply, cause)


@every_case
def test_the_command_names_the_likely_cause(reply: Reply, cause: str, exit_code: int):
    with fake_server(reply) as (url, _):
        result = CliRunner().invoke(main, ["pipelines", "--server", url])
    assert result.exit_code == exit_code
    assert result.stderr.count("\n") == 1
    check(result.stderr.removeprefix("Error: ").rstrip("\n"), url, reply, cause)
    if reply.status == 401:
        assert "--token" in result.stderr
        assert "FILMSTRIP_TOKEN" in result.stderr


@every_case
def test_the_nodes_name_the_likely_cause(reply: Reply, cause: str, exit_code: int):
    frames = [bytes(256 * 256 * 3)] * 40
    with fake_server(reply) as (url, _):
        client = NodesClient(server_address(url), lambda: None)
        for call in (
            client.pipelines,
            client.health,
            lambda: client.upload((40, 256, 256, 3), frames),
            lambda: client.dry_run({}),
            lambda: client.follow("a", 0, lambda _: None, lambda: None),
            lambda: client.download("output", lambda _, frames: list(frames)),
        ):
            with pytest.raises(NodesError) as raised:
                call()
            check(str(raised.value), url, reply, cause)
            assert raised.value.code == "not_filmstrip"


def test_the_nodes_say_that_a_server_is_too_old():
    with fake_server(Reply(200, b"{}")) as (url, _):
        client = NodesClient(server_address(url), lambda: None)
        with pytest.raises(NodesError, match="is older than these nodes; update it"):
            client.submit("a", {})


def test_a_redirect_to_https_says_what_to_write():
    with fake_server(Reply(301, b"", {"Location": "https://127.0.0.1:8443/api/v1/pipelines"})) as (url, _):
        result = CliRunner().invoke(main, ["pipelines", "--server", url])
    assert "redirects to https://127.0.0.1:8443; write that in the URL (301 Moved Permanently)" in result.stderr


def test_the_nodes_have_the_same_words():
    ours, theirs = (Path(ROOT / folder / "foreign_answers.py") for folder in ("filmstrip", "comfyui"))
    assert ours.read_text() == theirs.read_text()
