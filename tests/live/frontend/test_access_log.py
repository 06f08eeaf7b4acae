"""The access log: who asked, from where, what was answered, and the generation that was started."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import http
from tests.support.raw_client import RawClient, raw_request, send_raw
from tests.support.recovery import PROBE, eventually
from tests.support.server import Frontend, frontend_on

KEY = "alice-secret-key"


def lines_of(frontend: Frontend, path: str) -> list[str]:
    """The lines of requests for a path; the last one may come after its answer."""
    return [line for line in frontend.log().splitlines() if path in line and "filmstrip.access" in line]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_request_is_one_line_with_who_and_what(server: Frontend, tmp_path: Path, log_format: str) -> None:
    with frontend_on(server, tmp_path, api_keys=f"alice:{KEY}", log_format=log_format) as frontend:
        alice = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=frontend.url, headers=alice) as client:
            client.get("/api/v1/pipelines")
            with client.stream("POST", "/api/v1/generate", json=PROBE, timeout=60) as answer:
                generation = answer.headers["x-generation-id"]
                answer.read()
            client.get("/api/v1/generate/download?path=secret-in-a-query")
        http.get(f"{frontend.url}/metrics", headers={"Authorization": "Bearer wrong-secret"})
        http.get(f"{frontend.url}/api/v1/pipeline/status", headers={"Authorization": "Bearer wrong-secret"})
        address = r"127\.0\.0\.1:\d+"
        expected = [
            ("/api/v1/pipelines", "GET", "200", "alice", None),
            ("/api/v1/generate", "POST", "200", "alice", generation),
            ("/api/v1/generate/download", "GET", "404", "alice", None),
            ("/api/v1/pipeline/status", "GET", "401", "-", None),
        ]
        for path, method, status, who, made in expected:
            eventually(lambda path=path: lines_of(frontend, f"{path} "))  # type: ignore[misc]
            (line,) = lines_of(frontend, f"{path} ")
            if log_format == "json":
                found: dict[str, Any] = json.loads(line)
                assert (found["method"], found["path"], found["status"]) == (method, path, int(status))
                assert (found["client"], found.get("generation")) == (who, made)
                assert re.fullmatch(address, found["address"])
                assert found["seconds"] >= 0
                assert found["bytes"] == "-" if made else found["bytes"] > 0
            else:
                assert re.search(rf"{method} {path} {status} (\d+|-) bytes [\d.]+ s", line), line
                assert re.search(rf"address={address}", line), line
                assert re.search(rf"client={who}", line), line
                assert (f"generation={made}" in line) if made else ("generation=" not in line)
        assert "secret" not in frontend.log()
        assert "/health" not in frontend.log()


def test_without_keys_the_log_has_no_client_name(server: Frontend) -> None:
    send_raw(server.url, raw_request("GET /nothing-of-a-client"))
    eventually(lambda: lines_of(server, "/nothing-of-a-client"))
    (line,) = lines_of(server, "/nothing-of-a-client")
    assert "client=-" in line
    assert "address=127.0.0.1:" in line


def test_a_client_that_leaves_before_its_answer_has_one_line(server: Frontend) -> None:
    paths = [f"/left-before-the-answer-{number}" for number in range(20)]
    for path in paths:
        with RawClient(server.url) as client:
            client.send(raw_request(f"GET {path}"))
    eventually(lambda: all(lines_of(server, f"{path} ") for path in paths))
    send_raw(server.url, raw_request("GET /the-last-of-all"))
    eventually(lambda: lines_of(server, "/the-last-of-all"))
    assert {path: len(lines_of(server, f"{path} ")) for path in paths} == dict.fromkeys(paths, 1)


def test_a_client_that_leaves_its_generation_is_named_with_it(
    server: Frontend, start_frontend: Callable[..., Frontend]
) -> None:
    frontend = start_frontend("--triton-url", server.triton_url, log_format="json")
    frontend.wait_healthy()
    with RawClient(frontend.url) as client:
        client.post_json("/api/v1/generate", PROBE | {"prompt": "!sleep 0.5", "num_frames": 99})
        generation = client.read_head().headers["X-Generation-Id"]
        client.reset()
    eventually(lambda: lines_of(frontend, "/api/v1/generate"))
    found = json.loads(lines_of(frontend, "/api/v1/generate")[0])
    assert (found["generation"], found["status"]) == (generation, 200)
    frontend.wait_idle()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_request_forges_a_line(server: Frontend, start_frontend: Callable[..., Frontend], log_format: str) -> None:
    frontend = start_frontend("--triton-url", server.triton_url, log_format=log_format)
    evil = "%0d%0aGET%20/forged%20200%20client=root%1b[2J%e2%80%a8%c2%85"
    send_raw(
        frontend.url,
        raw_request(f"GET /{evil}", "X-Real-IP: 6.6.6.6", "X-Forwarded-For: 6.6.6.6", "X-Generation-Id: forged"),
    )
    eventually(lambda: lines_of(frontend, "forged"))
    (line,) = lines_of(frontend, "forged")
    assert line.isascii()
    assert line.isprintable()
    assert "6.6.6.6" not in line
    if log_format == "json":
        assert "generation" not in json.loads(line)
