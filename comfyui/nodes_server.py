"""The nodes Server and Pipeline: where the work is done, and by what."""

from __future__ import annotations

import json
from typing import Any

from .client import Client
from .connection import Server, make_server
from .errors import FilmstripError
from .generation import Pipeline
from .host import Display, check_interrupted
from .pipeline_names import PIPELINE_NAMES, token_from_environment, url_from_environment


class FilmstripServer:
    """A server's address, checked when the workflow runs."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = "A Filmstrip server. Checks that it answers and would accept a generation."
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
                        "tooltip": "Such as http://127.0.0.1:8000. FILMSTRIP_SERVER in ComfyUI's environment sets what "
                        "new nodes show.",
                    },
                ),
            },
            "optional": {
                "token": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "The key, if the server asks for one. Better left empty, with FILMSTRIP_TOKEN and "
                        "FILMSTRIP_SERVER in ComfyUI's environment: what stands here is saved with the workflow and in "
                        "the pictures made.",
                    },
                ),
                "timeout_s": (
                    "FLOAT",
                    {
                        "default": 60.0,
                        "min": 1.0,
                        "max": 3600.0,
                        "step": 1.0,
                        "tooltip": "Longest silence of the server, in seconds. While it generates it is never silent "
                        "for more than 15 s; while it loads a pipeline first it may be.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, address: str | None = None) -> bool | str:  # noqa: D102 - ComfyUI's interface
        try:
            if address is not None:  # None comes by a link, later
                make_server(address)
        except FilmstripError as error:
            return str(error)
        return True

    def check(
        self, address: str, token: str = "", timeout_s: float = 60.0, unique_id: str | None = None
    ) -> tuple[Server]:
        """Give the server, if it is well.

        Raises:
            FilmstripError: it cannot be reached, or would not accept a generation.
        """
        server = make_server(address, token or token_from_environment(address), timeout_s)
        PIPELINE_NAMES.remember_server(server)
        status = Client(server, check_interrupted).health()
        Display(unique_id).text(f"{server.url} is {status}")
        if status != "healthy":
            raise FilmstripError(f"the Filmstrip server at {server.url} is {status}", status)
        return (server,)


class FilmstripPipeline:
    """One pipeline of a server."""

    CATEGORY = "Filmstrip"
    DESCRIPTION = (
        "A pipeline of the server: a generator, or a frame processor, which may also stand before or after another "
        "pipeline. The list is the one of the server seen last; press R to ask again."
    )
    RETURN_TYPES = ("FILMSTRIP_PIPELINE", "INT", "INT", "INT", "STRING")
    RETURN_NAMES = ("pipeline", "chunk_size", "width", "height", "facts")
    OUTPUT_TOOLTIPS = (
        "For the Generate nodes.",
        "Frames of a chunk.",
        "The pipeline's own width; 0 when it keeps the input's.",
        "The pipeline's own height; 0 when it keeps the input's.",
        "All that the server says of the pipeline, as JSON.",
    )
    FUNCTION = "pick"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: D102 - ComfyUI's interface
        return {
            "required": {
                "server": ("FILMSTRIP_SERVER", {"tooltip": "From a Server node."}),
                "pipeline_id": (
                    PIPELINE_NAMES.get(),
                    {"tooltip": "The server's pipelines. Press R when the list is old; a restart isn't needed."},
                ),
            },
            "optional": {
                "other_id": (
                    "STRING",
                    {"default": "", "tooltip": "A pipeline that is not in the list. Wins over it when not empty."},
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, pipeline_id: str | None = None) -> bool:  # noqa: ARG003, D102 - ComfyUI's interface
        # Named here, so that ComfyUI doesn't look for the name in the list of this moment: the server decides.
        return True

    def pick(
        self, server: Server, pipeline_id: str, other_id: str = "", unique_id: str | None = None
    ) -> tuple[Pipeline, int, int, int, str]:
        """Give the pipeline, once the server has loaded it.

        Raises:
            FilmstripError: the server does not have it, and the message lists those it has; or it cannot run.
        """
        client = Client(server, check_interrupted)
        try:
            facts = client.ready_pipeline(other_id.strip() or pipeline_id, Display(unique_id).text)
        finally:
            PIPELINE_NAMES.remember(server, client.pipeline_ids)
        pipeline = Pipeline(server, str(facts["id"]))
        width, height = facts.get("width") or 0, facts.get("height") or 0
        return pipeline, int(facts["chunk_size"]), width, height, json.dumps(facts, indent=1)


NODE_CLASS_MAPPINGS: dict[str, type] = {"FilmstripServer": FilmstripServer, "FilmstripPipeline": FilmstripPipeline}
NODE_DISPLAY_NAME_MAPPINGS = {"FilmstripServer": "Filmstrip Server", "FilmstripPipeline": "Filmstrip Pipeline"}
