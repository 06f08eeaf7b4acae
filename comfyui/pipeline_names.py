"""The names in the dropdown of pipelines: those of the server that was seen last.

ComfyUI asks a node for its widgets when the page is loaded, when the user presses R, and often in between. It must
not wait long then, and a server that is down must not empty the list.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

from .client import Client
from .connection import Server, make_server
from .errors import FilmstripError

SHIPPED = ("longlive-small", "longlive", "scribble", "gray", "optical-flow", "passthrough")
"""Offered until a server was seen."""
DEFAULT_URL = "http://127.0.0.1:8000"
WAIT_S = 0.5
FRESH_S = 2.0
_ASK_TIMEOUT_S = 5.0


class PipelineNames:
    """Remembers the last server and its pipelines, and asks it again from time to time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: tuple[str, ...] = SHIPPED
        self._server: Server | None = None
        self._asked_at = float("-inf")
        self._asking: threading.Thread | None = None

    def remember_server(self, server: Server) -> None:
        """A Server node was run: ask this one from now on."""
        with self._lock:
            if server != self._server:
                self._server = server
                self._asked_at = float("-inf")

    def remember(self, server: Server, names: tuple[str, ...]) -> None:
        """A server has told its pipelines."""
        with self._lock:
            self._server = server
            if names:
                self._names = names
            self._asked_at = time.monotonic()

    def get(self) -> list[str]:
        """The names, after a look at the server that takes half a second at most."""
        with self._lock:
            fresh = time.monotonic() - self._asked_at < FRESH_S
            asking = self._asking is not None and self._asking.is_alive()
            if not fresh and not asking:
                self._asked_at = time.monotonic()
                thread = self._asking = threading.Thread(target=self._ask, name="filmstrip-names", daemon=True)
                thread.start()
            else:
                thread = None
        if thread is not None:
            thread.join(WAIT_S)
        with self._lock:
            return list(self._names)

    def _ask(self) -> None:
        try:
            url = url_from_environment()
            server = self._server or make_server(url, token_from_environment(url))
            impatient = replace(server, timeout_s=min(server.timeout_s, _ASK_TIMEOUT_S))
            names = tuple(Client(impatient, poll=_nothing).pipelines())
        except FilmstripError:
            return  # it is down: the list stays as it was
        with self._lock:
            if names and self._server in (None, server):
                self._names = names


def url_from_environment() -> str:
    """The address that a new Server node shows."""
    return os.environ.get("FILMSTRIP_SERVER", "").strip() or DEFAULT_URL


def token_from_environment(url: str) -> str:
    """The token for a Server node that has none; only for the environment's server, or the default one.

    A workflow that somebody else made may name any address: the key is not for that.
    """
    same = _place(url) == _place(url_from_environment())
    return os.environ.get("FILMSTRIP_TOKEN", "").strip() if same else ""


def _place(url: str) -> tuple[str, str | None, int | None, str]:
    try:
        parts = urlsplit(url.strip())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None, url
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def _nothing() -> None:
    """Nobody waits for this call, so nobody stops it."""


PIPELINE_NAMES = PipelineNames()
"""ComfyUI's one page shares it: INPUT_TYPES is asked of a class, not of a node."""
