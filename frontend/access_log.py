"""The access log: a line for each request, with its sender, its answer, and the generation that it started."""

from typing import Any, cast

from hypercorn.logging import Logger
from hypercorn.typing import ResponseSummary, WWWScope
from quart import Request

_NOTES = "filmstrip.access_log"
FIELDS = ("client", "address", "method", "path", "status", "bytes", "seconds", "generation")
SHORT_FIELDS = ("client", "address", "generation")  # those that the line itself does not have


def note(request: Request, **notes: object) -> None:
    """Add to the line that a request will have in the access log: its `client`, its `generation`."""
    cast("dict[str, Any]", request.scope).setdefault(_NOTES, {}).update(notes)


class AccessLog(Logger):
    """Writes the lines; hypercorn calls it when an answer is complete, or its connection is gone."""

    async def access(self, request: WWWScope, response: ResponseSummary | None, request_time: float) -> None:
        """Write the line of one request."""
        if self.access_logger is None:
            return
        scope = cast("dict[str, Any]", request)
        notes = scope.setdefault(_NOTES, {})
        if notes.setdefault("is_logged", False):  # hypercorn logs an answer again whose client has left before it
            return
        notes["is_logged"] = True
        headers = dict(response.get("headers", ())) if response is not None else {}
        length = headers.get(b"content-length")
        peer = scope.get("client")
        fields = {
            "client": notes.get("client") or "-",
            "address": _address(peer) if peer else "-",
            "method": scope.get("method", "GET"),
            "path": scope["path"],
            "status": response["status"] if response is not None else notes.get("status", "-"),
            "bytes": int(length) if length else "-",
            "seconds": round(request_time, 6),
        }
        if "generation" in notes:
            fields["generation"] = notes["generation"]
        message = "{method} {path} {status} {bytes} bytes {seconds:.6f} s".format(**fields)
        self.access_logger.info("%s", message, extra=fields)


def _address(peer: tuple[str, int]) -> str:
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
