"""The routes that the page's extension calls: a server's pipelines, and the saved address and key.

A page of another origin must not be able to use them, and no workflow can have ComfyUI ask an address that its user did
not allow. A key never comes back from here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from .client import CLIENT_LIMIT_BYTES, ServerClient, server_address
from .errors import FilmstripError
from .nodes_server import summary
from .settings import allowed, default_url, has_token, save, token_for

PIPELINES = "/filmstrip/pipelines"
SETTINGS = "/filmstrip/settings"
TIMEOUT_S = 3.0
NOT_ALLOWED = (
    "This address is neither the one in ComfyUI's settings (Filmstrip) nor in FILMSTRIP_ALLOWED_SERVERS, so the page"
    " does not ask it. The workflow can still use it."
)
NO_ANSWER = "No Filmstrip server answered at this address, or it refused the API key."
_MAX_BODY_BYTES = 16_384


def is_own_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from ComfyUI's own page: browsers name the page's origin in every POST."""
    origin, host = headers.get("Origin", ""), headers.get("Host", "")
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def list_pipelines(address: object) -> dict[str, Any]:
    """What the server at an address has, or one fixed sentence."""
    if not isinstance(address, str):
        return {"error": NO_ANSWER}
    try:
        server_address(address)
    except FilmstripError as error:
        return {"error": str(error)}
    if not allowed(address):
        return {"error": NOT_ALLOWED}
    try:
        server = server_address(address, token_for(address), TIMEOUT_S)
        client = ServerClient(server, lambda: None, whole_timeout_s=TIMEOUT_S, limit_bytes=CLIENT_LIMIT_BYTES)
        found = client.pipelines()
    except FilmstripError:
        return {"error": NO_ANSWER}
    return {
        "pipelines": [
            {
                "id": name,
                "state": str(info.get("state") or "ready"),
                "summary": summary(info) if info.get("chunk_size") else str(info.get("reason") or "not loaded yet"),
                "loras": [str(lora) for lora in info["features"].get("loras") or ()],
            }
            for name, info in found.items()
        ]
    }


def change_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Save the address and the key, if the body has them; returns what the page may know."""
    if body:
        address, token = body.get("address", ""), body.get("token")
        if not isinstance(address, str) or not (token is None or isinstance(token, str)):
            return {"error": "address and token must be texts"}
        try:
            if address.strip():
                server_address(address, token or "")
            save(address.strip(), None if token is None else token.strip())
        except FilmstripError as error:
            return {"error": str(error)}
    return {"address": default_url(), "has_key": has_token()}


def register() -> None:
    """Add the routes to ComfyUI's server, where there is one."""
    try:
        from aiohttp import web
        from server import PromptServer
    except ImportError:  # the pack is loaded without ComfyUI, as by a registry
        return
    instance = getattr(PromptServer, "instance", None)
    if instance is None or not hasattr(instance, "routes"):
        return

    async def body_of(request: Any) -> dict[str, Any] | None:
        if not is_own_origin(request.headers):
            return None
        raw = await request.content.read(_MAX_BODY_BYTES)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    async def pipelines(request: Any) -> Any:
        body = await body_of(request)
        if body is None:
            return web.json_response({"error": "refused"}, status=403)
        return web.json_response(await asyncio.to_thread(list_pipelines, body.get("address")))

    async def settings(request: Any) -> Any:
        body = await body_of(request)
        if body is None:
            return web.json_response({"error": "refused"}, status=403)
        return web.json_response(await asyncio.to_thread(change_settings, body))

    instance.routes.post(PIPELINES)(pipelines)
    instance.routes.post(SETTINGS)(settings)
