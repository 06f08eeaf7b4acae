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

ACCESS_LOGGER = "filmstrip.access"
HYPERCORN_LOGGER = "filmstrip.hypercorn"
_NOTES = "filmstrip.access_log"
_FIELDS = ("client", "address", "method", "path", "status", "bytes", "seconds", "generation")
_SHORT_FIELDS = ("client", "address", "generation")  # those that the text of a line does not contain
_PROBES = tuple(f"GET {path} " for path in ("/health", "/health/live", "/health/ready", "/metrics"))


def configure(settings: Settings) -> None:
    """Send all logs of the process to stderr, in the configured format."""
    is_json = settings.log_format is LogFormat.JSON
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(_FIELDS if is_json else _SHORT_FIELDS),
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
    access_log = logging.getLogger(ACCESS_LOGGER)
    access_log.addFilter(_is_no_probe)
    access_log.addFilter(_escape_unprintable)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what clients send
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)


def name_generation(id: str) -> None:
    """Add a generation's id to all later log lines of this task, its threads and the tasks that it starts."""
    structlog.contextvars.bind_contextvars(generation=id)


def name_slot(name: str | None) -> None:
    """Likewise the name of a slot, if there are several."""
    if name is not None:
        structlog.contextvars.bind_contextvars(slot=name)


def named(id: str) -> AbstractContextManager[None]:
    """Add a generation's id to the log lines of a block, in place of any other."""
    return structlog.contextvars.bound_contextvars(generation=id)


def _is_no_probe(record: logging.LogRecord) -> bool:
    """False for the requests that monitors send every few seconds."""
    return not record.getMessage().startswith(_PROBES)


def _escape_unprintable(record: logging.LogRecord) -> bool:
    """Escape unprintable characters of the request's path: a line end in it would forge a line of the log."""
    record.msg = "".join(letter if letter.isprintable() else ascii(letter).strip("'") for letter in record.getMessage())
    record.args = ()
    return True


def note(request: Request, **notes: object) -> None:
    """Add to a request's line in the access log: its `client`, `status` or `generation`."""
    cast("dict[str, Any]", request.scope).setdefault(_NOTES, {}).update(notes)


class AccessLog(Logger):
    """Writes a line per request; Hypercorn calls it when a response is complete or its connection is gone."""

    async def access(self, request: WWWScope, response: ResponseSummary | None, request_time: float) -> None:
        """Write the line of one request."""
        if self.access_logger is None:
            return
        scope = cast("dict[str, Any]", request)
        notes = scope.setdefault(_NOTES, {})
        if notes.setdefault("is_logged", False):  # Hypercorn logs a response twice if its client left early
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
