"""The command that serves: Hypercorn on uvloop, in one process."""

import gc

gc.disable()  # the imports create much that stays: the collector would traverse it repeatedly and find nothing

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

from . import logs, protocol
from .app import create_app
from .embedded import wheel
from .logs import AccessLog
from .protocol import OpenConnections, connection_limit, raise_descriptor_limit
from .settings import Settings, unknown_variables
from .state import AppState
from .store import DataDirectoryTaken, Store
from .tasks import start_threads

gc.enable()
log = logging.getLogger(__name__)

_HARD_LIMIT_S = 9.0  # of a shutdown
_BACKLOG = 2048  # when the queue is full, a client retries a second later
_EXAMPLES = """\b
Examples:
  filmstrip serve --embedded
  filmstrip serve --host 0.0.0.0 --port 8000 --triton-url triton:8001
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.option(
    "--embedded",
    is_flag=False,
    flag_value="1",
    metavar="[N]",
    help="Start our own Triton, on a Unix socket; --embedded=N starts N, one for each GPU.",
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 picks a free one.  [default: 8000]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder for uploads and outputs.  [default: data]")
@click.option(
    "--model-repository",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Model repository of the embedded Triton; can be repeated.  [default: model_repository and models]",
)
@click.option(
    "--triton-url",
    help="gRPC address of Triton, without --embedded; several are separated by commas.  [default: 127.0.0.1:8001]",
)
def main(**flags: Any) -> None:
    """Serve the Filmstrip API: one request, a whole video, generated chunk by chunk on NVIDIA Triton.

    Every setting can also be set in the environment, as FILMSTRIP_<NAME>; flags take precedence. All settings are
    listed in docs/operations.md.
    """
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value not in (None, ())})
        if settings.embedded:
            wheel.check(settings)
        with contextlib.closing(Store(settings)) as store:
            store.open()  # report in one line now what would otherwise fail during the start
        listener = _listen(settings)
    except ValidationError as error:
        problems = (f"FILMSTRIP_{str(first['loc'][0]).upper()}: {first['msg']}" for first in error.errors())
        raise click.ClickException("; ".join(problems)) from None
    except (wheel.EmbeddedUnsupported, DataDirectoryTaken, OSError) as error:
        raise click.ClickException(str(error)) from None
    logs.configure(settings)
    for name, match in unknown_variables(os.environ).items():
        log.warning("unknown setting %s%s", name, f"; did you mean {match}?" if match else "")
    descriptors = raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_serve(settings, listener, descriptors)))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these: a client that vanishes silently is noticed in bounded time.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(settings.client_timeout_s / 2))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, math.ceil(settings.client_timeout_s / 6))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * settings.client_timeout_s))
    try:
        listener.bind((settings.host, settings.port))
        listener.listen()  # before the log says that we listen
    except OSError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener


def _stop_signals() -> list[signal.Signals]:
    """The signals that stop the server. SIGHUP is not one of them if it is ignored at the start, as under `nohup`."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


async def _serve(settings: Settings, listener: socket.socket, descriptors: int) -> int:
    """Serve until a signal arrives or the embedded Triton fails to start; returns the exit status."""
    app = create_app(settings)
    loop = asyncio.get_running_loop()
    start_threads(loop)
    signalled = asyncio.Event()
    stop_signals = _stop_signals()
    for number in stop_signals:
        # Not with the loop's own method: that restores the default when the loop closes, and a second signal kills.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(signalled.set))
    status = 0

    async def stop() -> None:
        """Return when the server has to stop, after ending its generation."""
        nonlocal status
        state: AppState = app.extensions["filmstrip"]
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(signalled.wait())]
        if state.embedded:
            waits.append(asyncio.create_task(state.embedded_failed()))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not signalled.is_set():
            status = 1
        for wait in waits:
            wait.cancel()
        loop.call_later(_HARD_LIMIT_S, _give_up, state)
        await state.jobs.close(settings.shutdown_timeout_s)

    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.graceful_timeout = settings.shutdown_timeout_s
    config.accesslog = logging.getLogger(logs.ACCESS_LOGGER)
    config.errorlog = logging.getLogger(logs.HYPERCORN_LOGGER)
    config.logger_class = AccessLog
    config.include_server_header = False
    config.backlog = _BACKLOG
    config.h11_max_incomplete_size = protocol.HEAD_BYTES
    limit = connection_limit(settings.max_connections, descriptors)
    if limit < settings.max_connections:
        log.info("at most %d connections: the process may open %d files", limit, descriptors)
    protocol.install(OpenConnections(limit), settings.refused_body_bytes)
    host, port, *_ = listener.getsockname()
    log.info("Filmstrip listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    try:
        await serve(app, config, shutdown_trigger=stop)
    finally:
        for number in stop_signals:
            signal.signal(number, signal.SIG_IGN)
    return status


def _give_up(state: AppState) -> None:
    """Exit although the shutdown is not finished."""
    log.error("shutdown took too long; exiting")
    for embedded in state.embedded:
        embedded.kill()
    with contextlib.suppress(OSError):  # the terminal is closed
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
