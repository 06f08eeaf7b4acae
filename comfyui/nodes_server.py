"""The nodes Server and Pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import widgets
from .client import PipelineRef, ServerAddress, ServerClient, server_address
from .errors import FilmstripError
from .host import Display, check_interrupted
from .pipeline_names import PIPELINE_NAMES
from .settings import default_url, token_for


class FilmstripServer:
    """A server's address, checked when the workflow runs."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = "A Filmstrip server. Checks that it responds, takes the API key and would accept a generation."
    SEARCH_ALIASES = ["connect", "remote", "address", "url", "api key"]
    RETURN_TYPES = ("FILMSTRIP_SERVER",)
    RETURN_NAMES = ("server",)
    OUTPUT_TOOLTIPS = ("For the Pipeline node.",)
    FUNCTION = "check"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        address = (
            "Such as http://127.0.0.1:8000. New nodes have the address of ComfyUI's settings, else that of"
            " FILMSTRIP_SERVER in ComfyUI's environment."
        )
        key = (
            "The API key, if the server needs one. ComfyUI saves it with the workflow and in images: it is safer to"
            " leave this empty and to save the key in ComfyUI's settings (Filmstrip)."
        )
        timeout = (
            "How long the server may send nothing, in seconds. During a generation it sends something at least every"
            " 15 s, but not while it loads a pipeline."
        )
        types: dict[str, Any] = {
            "required": {"address": widgets.text(address, default=default_url(), lines=False)},
            "optional": {
                "token": widgets.text(key, lines=False, advanced=True),
                "timeout_s": widgets.number(60, 1, 3600, 1, timeout, advanced=True),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }
        return widgets.labelled(types)

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
        display = Display(unique_id)
        with display.run():
            server = server_address(address, token or token_for(address), timeout_s)
            PIPELINE_NAMES.remember_server(server)
            client = ServerClient(server, check_interrupted)
            status = client.health()
            if status != "healthy":
                raise FilmstripError(f"the Filmstrip server at {server.url} is {status}", status)
            # /health needs no key: the list of pipelines does.
            PIPELINE_NAMES.remember(server, client.pipelines())
            display.text(f"{server.url} is {status}")
        return (server,)


class FilmstripPipeline:
    """One pipeline of a server."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = (
        "A pipeline of the server: a generator or a frame processor. A processor can also run before or after another "
        "pipeline. The list comes from the last server used; press R to refresh it."
    )
    SEARCH_ALIASES = ["model", "checkpoint loader", "longlive", "scribble", "gray", "optical flow"]
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
        types: dict[str, Any] = {
            "required": {
                "server": ("FILMSTRIP_SERVER", {"tooltip": "From a Server node."}),
                "pipeline_id": (
                    PIPELINE_NAMES.get(),
                    {"tooltip": "The server's pipelines. Press R to refresh the list; no restart is needed."},
                ),
            },
            "optional": {
                "other_id": widgets.text(
                    "A pipeline that is not in the list. If not empty, it takes precedence.", lines=False, advanced=True
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }
        return widgets.labelled(types)

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
        display = Display(unique_id)
        with display.run():
            client = ServerClient(server, check_interrupted)
            try:
                info = client.loaded_pipeline(other_id.strip() or pipeline_id, display.text)
            finally:
                if client.known:
                    PIPELINE_NAMES.remember(server, client.known)
            display.text(summary(info))
        pipeline = PipelineRef(server, str(info["id"]))
        width, height = info.get("width") or 0, info.get("height") or 0
        return pipeline, int(info["chunk_size"]), width, height, json.dumps(info, indent=1)


def summary(info: Mapping[str, Any]) -> str:
    """What an artist wants to know of a pipeline, in one line; the page's extension writes the same."""
    features = info.get("features") or {}
    parts = [f"{info['width']}x{info['height']}"] if info.get("width") and info.get("height") else ["any size"]
    parts.append(f"{info['chunk_size']} frames per chunk")
    first = info.get("first_chunk_size")
    if first and first != info["chunk_size"]:
        parts[-1] += f" (the first {first})"
    parts.append(
        " and ".join({"text": "text to video", "video": "video to video"}.get(m, m) for m in info["modes"] or ())
    )
    if features.get("vace"):
        parts.append("control frames, masks and references")
    if features.get("loras"):
        parts.append("LoRAs: " + ", ".join(features["loras"]))
    return "; ".join(filter(None, parts))


NODE_CLASS_MAPPINGS: dict[str, type] = {"FilmstripServer": FilmstripServer, "FilmstripPipeline": FilmstripPipeline}
NODE_DISPLAY_NAME_MAPPINGS = {"FilmstripServer": "Filmstrip Server", "FilmstripPipeline": "Filmstrip Pipeline"}
