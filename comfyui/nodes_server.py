"""The nodes Server and Pipeline, and the list of pipelines in the dropdown."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from .client import PipelineRef, ServerAddress, ServerClient, server_address
from .errors import FilmstripError
from .host import Display, check_interrupted

DEFAULT_PIPELINES = ("longlive-small", "longlive", "scribble", "gray", "optical-flow", "passthrough")
"""Offered until a server has been asked."""
DEFAULT_URL = "http://127.0.0.1:8000"
WAIT_S = 0.5
FRESH_S = 2.0
_ASK_TIMEOUT_S = 5.0


class FilmstripServer:
    """A server's address, checked when the workflow runs."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = "A Filmstrip server. Checks that it responds and would accept a generation."
    RETURN_TYPES = ("FILMSTRIP_SERVER",)
    RETURN_NAMES = ("server",)
    OUTPUT_TOOLTIPS = ("For the Pipeline node.",)
    FUNCTION = "check"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        return {
            "required": {
                "address": (
                    "STRING",
                    {
                        "default": url_from_environment(),
                        "tooltip": "Such as http://127.0.0.1:8000. FILMSTRIP_SERVER in ComfyUI's environment sets the "
                        "default of new nodes.",
                    },
                ),
            },
            "optional": {
                "token": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "The API key, if the server needs one. ComfyUI saves it with the workflow and in "
                        "images: it is safer to leave this empty, and to set FILMSTRIP_TOKEN and FILMSTRIP_SERVER in "
                        "ComfyUI's environment.",
                    },
                ),
                "timeout_s": (
                    "FLOAT",
                    {
                        "default": 60.0,
                        "min": 1.0,
                        "max": 3600.0,
                        "step": 1.0,
                        "tooltip": "How long the server may send nothing, in seconds. During a generation it sends "
                        "something at least every 15 s, but not while it loads a pipeline.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, address: str | None = None) -> bool | str:  # noqa: D102 - ComfyUI's interface
        try:
            if address is not None:  # None comes by a link, later
                server_address(address)
        except FilmstripError as error:
            return str(error)
        return True

    def check(
        self, address: str, token: str = "", timeout_s: float = 60.0, unique_id: str | None = None
    ) -> tuple[ServerAddress]:
        """Return the server, if it is healthy.

        Raises:
            FilmstripError: it cannot be reached, or would not accept a generation.
        """
        server = server_address(address, token or token_from_environment(address), timeout_s)
        PIPELINE_NAMES.remember_server(server)
        status = ServerClient(server, check_interrupted).health()
        Display(unique_id).text(f"{server.url} is {status}")
        if status != "healthy":
            raise FilmstripError(f"the Filmstrip server at {server.url} is {status}", status)
        return (server,)


class FilmstripPipeline:
    """One pipeline of a server."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = (
        "A pipeline of the server: a generator or a frame processor. A processor can also run before or after another "
        "pipeline. The list comes from the last server used; press R to refresh it."
    )
    RETURN_TYPES = ("FILMSTRIP_PIPELINE", "INT", "INT", "INT", "STRING")
    RETURN_NAMES = ("pipeline", "chunk_size", "width", "height", "facts")
    OUTPUT_TOOLTIPS = (
        "For the Generate nodes.",
        "Frames per chunk.",
        "The pipeline's own width; 0 if it keeps the width of the input.",
        "The pipeline's own height; 0 if it keeps the height of the input.",
        "All that the server says about the pipeline, as JSON.",
    )
    FUNCTION = "pick"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        return {
            "required": {
                "server": ("FILMSTRIP_SERVER", {"tooltip": "From a Server node."}),
                "pipeline_id": (
                    PIPELINE_NAMES.get(),
                    {"tooltip": "The server's pipelines. Press R to refresh the list; no restart is needed."},
                ),
            },
            "optional": {
                "other_id": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A pipeline that is not in the list. If not empty, it takes precedence.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, pipeline_id: str | None = None) -> bool:  # noqa: ARG003, D102 - ComfyUI's interface
        # Takes pipeline_id, so that ComfyUI does not check it against the current list: the server decides.
        return True

    def pick(
        self, server: ServerAddress, pipeline_id: str, other_id: str = "", unique_id: str | None = None
    ) -> tuple[PipelineRef, int, int, int, str]:
        """Return the pipeline, once the server has loaded it.

        Raises:
            FilmstripError: the server does not have it (the message lists those it has), or it cannot run.
        """
        client = ServerClient(server, check_interrupted)
        try:
            info = client.loaded_pipeline(other_id.strip() or pipeline_id, Display(unique_id).text)
        finally:
            PIPELINE_NAMES.remember(server, client.pipeline_ids)
        pipeline = PipelineRef(server, str(info["id"]))
        width, height = info.get("width") or 0, info.get("height") or 0
        return pipeline, int(info["chunk_size"]), width, height, json.dumps(info, indent=1)


# -- The names in the dropdown of pipelines ------------------------------------------------------------------------


# ComfyUI asks a node for its widgets when the page is loaded, when the user presses R, and often in between. The answer
# must not take long, and a server that is down must not empty the list.


class PipelineNames:
    """Remembers the last server and its pipelines, and asks that server again from time to time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: tuple[str, ...] = DEFAULT_PIPELINES
        self._server: ServerAddress | None = None
        self._asked_at = float("-inf")
        self._asking: threading.Thread | None = None

    def remember_server(self, server: ServerAddress) -> None:
        """Ask this server from now on: a Server node has run."""
        with self._lock:
            if server != self._server:
                self._server = server
                self._asked_at = float("-inf")

    def remember(self, server: ServerAddress, names: tuple[str, ...]) -> None:
        """Remember what a server has listed."""
        with self._lock:
            self._server = server
            if names:
                self._names = names
            self._asked_at = time.monotonic()

    def get(self) -> list[str]:
        """The names; asks the server, for half a second at most."""
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
            server = self._server or server_address(url, token_from_environment(url))
            impatient = replace(server, timeout_s=min(server.timeout_s, _ASK_TIMEOUT_S))
            names = tuple(ServerClient(impatient, poll=_no_poll).pipelines())
        except FilmstripError:
            return  # it is down: the list stays as it is
        with self._lock:
            if names and self._server in (None, server):
                self._names = names


def url_from_environment() -> str:
    """The default address of a Server node."""
    return os.environ.get("FILMSTRIP_SERVER", "").strip() or DEFAULT_URL


def token_from_environment(url: str) -> str:
    """The token for a Server node without one, if it names the environment's server.

    A workflow from someone else may name any address, which must not get the key.
    """
    same = _endpoint(url) == _endpoint(url_from_environment())
    return os.environ.get("FILMSTRIP_TOKEN", "").strip() if same else ""


def _endpoint(url: str) -> tuple[str, str | None, int | None, str]:
    try:
        parts = urlsplit(url.strip())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None, url
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def _no_poll() -> None:
    """Nobody waits for this call, so nobody stops it."""


PIPELINE_NAMES = PipelineNames()
"""One for all nodes: ComfyUI asks a class for INPUT_TYPES, not a node."""


NODE_CLASS_MAPPINGS: dict[str, type] = {"FilmstripServer": FilmstripServer, "FilmstripPipeline": FilmstripPipeline}
NODE_DISPLAY_NAME_MAPPINGS = {"FilmstripServer": "Filmstrip Server", "FilmstripPipeline": "Filmstrip Pipeline"}
