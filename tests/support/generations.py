"""The generation resource of a server, as one of its clients uses it."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.support import http
from tests.support.server import Frontend
from tests.support.sse import EventParser, ServerSentEvent

ROOT = "/api/v1/generations"
EVENTS = "text/event-stream"
LAST = ("complete", "cancelled", "error")


class Generations:
    """The generations of one client.

    Args:
        frontend: the server, under whatever address it has now.
        key: API key of the client.
    """

    def __init__(self, frontend: Frontend, key: str | None = None) -> None:
        self._frontend = frontend
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def url(self, path: str = "") -> str:
        return f"{self._frontend.url}{ROOT}{path}"

    def request(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        headers = self._headers | options.pop("headers", {})
        return http.request(method, self.url(path), headers=headers, **options)

    def put(self, name: str, request: dict[str, Any], **headers: str) -> httpx.Response:
        return self.request("PUT", f"/{name}", json=request, headers=headers)

    def post(self, request: dict[str, Any], **headers: str) -> httpx.Response:
        return self.request("POST", json=request, headers=headers)

    def start(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """PUT one that must be accepted."""
        answer = self.put(name, request)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, name: str) -> dict[str, Any]:
        answer = self.request("GET", f"/{name}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def page(self, **query: str | int) -> dict[str, Any]:
        answer = self.request("GET", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def cancel(self, name: str) -> str:
        return str(self.request("POST", f"/{name}/cancel").json()["status"])

    def delete(self, name: str) -> int:
        return self.request("DELETE", f"/{name}").status_code

    @contextlib.contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[Iterator[ServerSentEvent]]:
        headers = self._headers | {"Accept": EVENTS} | options.pop("headers", {})
        with http.stream(method, self.url(path), headers=headers, **options) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["Content-Type"].startswith(EVENTS)
            yield EventParser().parse(answer.iter_lines())

    def events(self, name: str, after: int | None = None) -> list[ServerSentEvent]:
        """All events of a generation up to its last one, those of the queue left out."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self.stream("GET", f"/{name}/events", headers=headers) as events:
            return [event for event in events if event.name != "queued"]

    def wait(self, name: str, *states: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until a generation is in one of these states."""
        deadline = time.monotonic() + timeout_s
        while (found := self.get(name))["state"] not in states:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def wait_ended(self, name: str) -> dict[str, Any]:
        return self.wait(name, "complete", "cancelled", "failed")
