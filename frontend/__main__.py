"""`python -m frontend`: serve with hypercorn on uvloop, in one process."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import click
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from pydantic import ValidationError

from . import embedded, logs, protocol
from .app import create_app
from .logs import AccessLog
from .protocol import OpenConnections, most_connections, raise_descriptor_limit
from .settings import Settings, unknown_variables
from .state import AppState
from .store import DataDirectoryTaken, Store

log = logging.getLogger(__name__)

_HARD_LIMIT_S = 9.0
_BACKLOG = 2048  # a client that finds the queue full tries again a second later


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--embedded", is_flag=True, default=None, help="Start a Triton of our own, on a Unix socket.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 picks a free one.  [default: 8000]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of uploads and outputs.  [default: data]")
@click.option(
    "--model-repository",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Model repository of the embedded Triton; may be given again.  [default: model_repository and models]",
)
@click.option("--triton-url", help="gRPC address of Triton without --embedded.  [default: 127.0.0.1:8001]")
def main(**flags: Any) -> None:
    r"""Serve the Filmstrip API: whole videos from one request, made chunk by chunk on NVIDIA Triton.

    Every setting can come from the environment as FILMSTRIP_<NAME> (see docs/operations.md); flags win.

    \b
    Examples:
      python -m frontend --embedded
      python -m frontend --host 0.0.0.0 --port 8000 --triton-url triton:8001
    """
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value not in (None, ())})
        if settings.embedded:
            embedded.check(settings)
        with contextlib.closing(Store(settings)) as store:
            store.open()  # says now, in a line, what would stop the server while it starts
        listener = _listen(settings)
    except ValidationError as error:
        problems = (f"FILMSTRIP_{str(first['loc'][0]).upper()}: {first['msg']}" for first in error.errors())
        raise click.ClickException("; ".join(problems)) from None
    except (embedded.EmbeddedUnsupported, DataDirectoryTaken, OSError) as error:
        raise click.ClickException(str(error)) from None
    logs.configure(settings)
    for name, match in unknown_variables(os.environ).items():
        log.warning("there is no setting %s%s", name, f"; did you mean {match}?" if match else "")
    descriptors = raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_serve(settings, listener, descriptors)))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these: a client that vanished without a word is noticed in bounded time.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(settings.client_timeout_s / 2))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, math.ceil(settings.client_timeout_s / 6))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * settings.client_timeout_s))
    try:
        listener.bind((settings.host, settings.port))
        listener.listen()  # before the log says so
    except OSError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener


def _stop_signals() -> list[signal.Signals]:
    """The signals that stop the server: SIGHUP is left alone where the start ignores it, as `nohup` does."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


async def _serve(settings: Settings, listener: socket.socket, descriptors: int) -> int:
    """Serve until a signal says to stop, or until the embedded Triton cannot be started; the exit status."""
    app = create_app(settings)
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in _stop_signals():
        loop.add_signal_handler(number, signalled.set)
    status = 0

    async def stop() -> None:
        """Return when the server is to stop, once its generation has."""
        nonlocal status
        parts: AppState = app.extensions["filmstrip"]
        waits = [asyncio.create_task(signalled.wait())]
        if parts.embedded is not None:
            waits.append(asyncio.create_task(parts.embedded.failed.wait()))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not signalled.is_set():
            status = 1
        for wait in waits:
            wait.cancel()
        loop.call_later(_HARD_LIMIT_S, _give_up, parts)
        await parts.slot.close(settings.shutdown_timeout_s)

    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.graceful_timeout = settings.shutdown_timeout_s
    config.accesslog = logging.getLogger("frontend.access")
    config.errorlog = logging.getLogger("frontend.hypercorn")
    config.logger_class = AccessLog
    config.include_server_header = False
    config.backlog = _BACKLOG
    config.h11_max_incomplete_size = protocol.HEAD_BYTES
    most = most_connections(settings.max_connections, descriptors)
    if most < settings.max_connections:
        log.info("%d connections at most: the process may have %d open files", most, descriptors)
    protocol.install(OpenConnections(most), settings.refused_body_bytes)
    host, port, *_ = listener.getsockname()
    log.info("Filmstrip listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    await serve(app, config, shutdown_trigger=stop)
    return status


def _give_up(parts: AppState) -> None:
    """Something holds the shutdown up: end all the same."""
    log.error("the shutdown took too long")
    if parts.embedded is not None:
        parts.embedded.kill()
    with contextlib.suppress(OSError):  # its terminal is closed
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
