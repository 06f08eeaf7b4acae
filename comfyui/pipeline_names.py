"""The names in the dropdowns of pipelines and LoRAs.

ComfyUI asks a node for its widgets when the page is loaded, when the user presses R, and often in between. The answer
must not take long, and a server that is down must not empty the list.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .client import ServerAddress, ServerClient, server_address
from .errors import FilmstripError
from .settings import default_url, token_for

DEFAULT_PIPELINES = ("longlive-small", "longlive", "scribble", "gray", "optical-flow", "passthrough")
"""Offered until a server has been asked."""
NO_LORAS = "none"
"""Offered where no pipeline has a LoRA."""
WAIT_S = 0.5
FRESH_S = 2.0
ASK_TIMEOUT_S = 5.0


class PipelineNames:
    """Remembers the last server and its pipelines, and asks that server again from time to time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: tuple[str, ...] = DEFAULT_PIPELINES
        self._loras: tuple[str, ...] = ()
        self._server: ServerAddress | None = None
        self._asked_at = float("-inf")
        self._asking: threading.Thread | None = None

    def remember_server(self, server: ServerAddress) -> None:
        """Ask this server from now on: a Server node has run."""
        with self._lock:
            if server != self._server:
                self._server = server
                self._asked_at = float("-inf")

    def remember(self, server: ServerAddress, pipelines: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember what a server has listed."""
        with self._lock:
            self._server = server
            self._keep(pipelines)
            self._asked_at = time.monotonic()

    def get(self) -> list[str]:
        """The pipelines' names; asks the server, for half a second at most."""
        self._ask_now_and_then()
        with self._lock:
            return list(self._names)

    def loras(self) -> list[str]:
        """The names of all pipelines' LoRAs, likewise."""
        self._ask_now_and_then()
        with self._lock:
            return list(self._loras) or [NO_LORAS]

    def _ask_now_and_then(self) -> None:
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

    def _ask(self) -> None:
        try:
            url = default_url()
            server = self._server or server_address(url, token_for(url))
            impatient = replace(server, timeout_s=min(server.timeout_s, ASK_TIMEOUT_S))
            pipelines = ServerClient(impatient, poll=_no_poll).pipelines()
        except FilmstripError:
            return  # it is down: the list stays as it is
        with self._lock:
            if self._server in (None, server):
                self._keep(pipelines)

    def _keep(self, pipelines: Mapping[str, Mapping[str, Any]]) -> None:
        if pipelines:
            self._names = tuple(pipelines)
            loras = (lora for info in pipelines.values() for lora in info["features"].get("loras") or ())
            self._loras = tuple(dict.fromkeys(map(str, loras)))


def _no_poll() -> None:
    """Nobody waits for this call, so nobody stops it."""


PIPELINE_NAMES = PipelineNames()
"""One for all nodes: ComfyUI asks a class for INPUT_TYPES, not a node."""
