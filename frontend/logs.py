"""Log lines with the generation's id on each, as text for people or as JSON for machines."""

import logging
import sys
from contextlib import AbstractContextManager

import structlog

from .access_log import FIELDS, SHORT_FIELDS
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
