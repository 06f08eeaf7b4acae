"""Log lines of a generation: each carries its id, whoever writes it."""

import json
import re
from pathlib import Path

import httpx
import pytest

from tests.support import http
from tests.support.recovery import eventually
from tests.support.server import Frontend, frontend_on

OF_GENERATIONS = {
    "frontend.local_jobs",
    "frontend.request_check",
    "frontend.generation",
    "frontend.chunks",
    "frontend.triton",
    "frontend.model_registry",
}
TEXT_LINE = re.compile(
    r"\[(?P<level>\w+) *\] (?P<event>.*?) *\[(?P<logger>[\w.]+)\](?: generation=(?P<generation>\w+))?$"
)


def lines(frontend: Frontend, log_format: str) -> list[dict[str, str]]:
    """The lines of what works on generations."""
    found = []
    for line in frontend.log().splitlines():
        if log_format == "json":
            found.append(json.loads(line))
        elif match := TEXT_LINE.search(line):
            found.append(match.groupdict())
    return [line for line in found if line["logger"] in OF_GENERATIONS]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_every_line_of_a_generation_carries_its_id(server: Frontend, tmp_path: Path, log_format: str) -> None:
    with (
        frontend_on(server, tmp_path, log_format=log_format) as frontend,
        httpx.Client(base_url=frontend.url) as client,
    ):
        fields = {"pipeline_id": "probe", "num_frames": 33}
        ids = []

        def generation(prompt: str) -> httpx.Response:
            request = client.build_request("POST", "/api/v1/generate", json=fields | {"prompt": prompt}, timeout=60)
            answer = client.send(request, stream=True)
            ids.append(answer.headers["X-Generation-Id"])
            return answer

        generation("x").read()  # all on one connection, which must not keep the id
        assert client.get("/api/v1/pipelines").status_code == 200
        generation("!raise").read()
        client.post("/api/v1/generate", json=fields | {"prompt": "x", "seed": "no"})
        cancelled = generation("!sleep 0.3")
        http.post(f"{frontend.url}/api/v1/generate/cancel")
        cancelled.read()
        generation("!sleep 5").close()
        eventually(lambda: lines(frontend, log_format)[-1]["event"] == "ended: client_gone")
        seen = lines(frontend, log_format)
        assert all(line.get("generation") in ids for line in seen), seen
        events = {name: [line["event"] for line in seen if line["generation"] == name] for name in ids}
        for name, end in zip(ids, ("complete", "model_error", "cancelled", "client_gone"), strict=True):
            assert events[name][-1] == f"ended: {end}", events
        assert "cancel requested" in events[ids[2]]
        assert "the client is gone" in events[ids[3]]
        assert any("Triton" in event or "model" in event for event in events[ids[1]])
