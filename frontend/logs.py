"""Logging: text or JSON lines that carry the generation's id, and the access log, one line per request."""

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any, cast

import structlog
from hypercorn.logging import Logger
from hypercorn.typing import ResponseSummary, WWWScope
from quart import Request

from .settings import LogFormat, Settings


def configure(settings: Settings) -> None:
    """Send all logs of the process to stderr in the format of the settings."""
    is_json = settings.log_format is LogFormat.JSON
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(FIELDS if is_json else SHORT_FIELDS),
    ]
    last: list[structlog.typing.Processor]
    if is_json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.getLogger("frontend.access").addFilter(_no_probes)
    logging.getLogger("frontend.access").addFilter(_on_one_line)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)


def name_generation(id: str) -> None:
    """Put a generation's id on every line that follows from this task, its threads and the tasks that it starts."""
    structlog.contextvars.bind_contextvars(generation=id)


def named(id: str) -> AbstractContextManager[None]:
    """Put a generation's id on the lines of a block, in place of any other."""
    return structlog.contextvars.bound_contextvars(generation=id)


def _no_probes(record: logging.LogRecord) -> bool:
    """Leave out what monitors ask every few seconds."""
    return not record.getMessage().startswith(
        tuple(f"GET {path} " for path in ("/health", "/health/live", "/health/ready", "/metrics"))
    )


def _on_one_line(record: logging.LogRecord) -> bool:
    """Show what an address holds beside printable characters: a line end in it would forge a line of the log."""
    record.msg = "".join(letter if letter.isprintable() else ascii(letter).strip("'") for letter in record.getMessage())
    record.args = ()
    return True


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
