"""How commands work with a server: connect, wait until it is ready, show progress, cancel at Ctrl-C."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from filmstrip import connection
from filmstrip.client import Client, pick_pipeline
from filmstrip.connection import TIMEOUT_S, retry_after_s
from filmstrip.errors import (
    Busy,
    ClientError,
    FilmstripError,
    LoadFailed,
    ServerUnreachable,
    TritonUnavailable,
    UnknownPipeline,
)
from filmstrip.models import PipelineInfo, Progress

SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LONGEST_REFUSAL_S = 60.0
_PAUSE_S = 1.0
_REMINDER_S = 60.0
_POLL_S = 0.5

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def client_of(
    url: str | None,
    option: str = "--server",
    *,
    token: str | None = None,
    timeout_s: float = TIMEOUT_S,
    cacert: Path | None = None,
) -> Client:
    """A client of the server that a command's options or the environment select.

    Raises:
        BadParameter: the URL is not that of an HTTP server, or the file has no certificates.
        UsageError: the token cannot be sent, or the environment's URL is not that of a server.
    """
    try:
        if url is not None:
            connection.parse_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
    try:
        connection.resolve(url, token)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        return Client(url, token, timeout_s, verify=True if cacert is None else cacert)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cacert") from None


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, so that no partial file is left behind.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored. Outside the main thread nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _bar(console: Console, *last: Any) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *last,
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable[ItemT], total: int, description: str) -> Iterator[ItemT]:
    """Yield the items, with a progress bar on a terminal."""
    with _bar(Console(stderr=True), TimeRemainingColumn()) as bar:
        yield from bar.track(items, total, description=description)


class GenerationProgress:
    """Shows each chunk as it is done: a bar on a terminal, else one line per chunk, for logs."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = _bar(self._console, TextColumn("chunks, {task.fields[fps]:.1f} fps"), TimeRemainingColumn())
        self._task = self._bar.add_task("Generating", total=None, fps=0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, event: Progress) -> None:
        """Show that a chunk is done."""
        self._bar.update(self._task, completed=event.chunk, total=event.total_chunks, fps=event.fps)
        if not self._console.is_terminal:
            self.note(f"chunk {event.chunk}/{event.total_chunks}: {event.frames} frames, {event.fps:.1f} fps")

    def note(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Interrupt:
    """Within the block, the first Ctrl-C cancels on the server, and the second one interrupts as usual.

    Args:
        cancel: asks the server; called in a thread, since the main thread waits for events.
        note: tells the user.
    """

    def __init__(self, cancel: Callable[[], str], note: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._note = note
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        self._note("Cancelling after the current chunk. Press Ctrl-C again to exit at once and keep nothing.")
        try:
            self._cancel()
        except (ClientError, FilmstripError) as error:
            self._note(f"Cannot cancel on the server: {error}. Press Ctrl-C again to exit at once.")


# -- Waiting for a server ----------------------------------------------------------------------------------------


class Patience:
    """Retries a request that the server refuses for now, if the user asked to wait.

    Args:
        client: of the server.
        waits: False raises every refusal.
        note: tells the user.
    """

    def __init__(self, client: Client, note: Callable[[str], None], *, waits: bool) -> None:
        self._client = client
        self._waits = waits
        self._note = note
        self._noted = ""
        self._noted_at = 0.0
        self._since: float | None = None

    def call(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Return what `attempt` returns, once the server accepts it.

        Raises:
            FilmstripError: the server refused, and waiting was not asked for or would not help.
            ServerUnreachable: likewise, or it has refused connections for longer than `LONGEST_REFUSAL_S`.
        """
        refused_since: float | None = None
        while True:
            try:
                result = attempt()
            except ServerUnreachable as error:
                refused_since = refused_since or time.monotonic()
                waited = time.monotonic() - refused_since
                if not self._waits or not _is_refused(error) or waited > LONGEST_REFUSAL_S:
                    raise
                self._tell("The server refuses connections; it may be starting")
                time.sleep(SHORTEST_PAUSE_S)
            except FilmstripError as error:
                reason = self._reason(error) if self._waits else None
                if reason is None:
                    raise
                self._tell(reason)
                refused_since = None
                pause = retry_after_s(error)
                time.sleep(min(max(_PAUSE_S if pause is None else pause, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
            else:
                self._since, self._noted = None, ""
                return result

    def _reason(self, error: FilmstripError) -> str | None:
        """Why the server refuses for now; None if waiting does not help."""
        if isinstance(error, Busy):
            return "The server is busy with another generation"
        if isinstance(error, TritonUnavailable) and self._client.health().status in ("starting", "healthy"):
            return "The server is starting"
        if retry_after_s(error) is not None:
            return f"The server asks to try again later ({error.message})"
        return None

    def _tell(self, reason: str) -> None:
        now = time.monotonic()
        self._since = self._since or now
        if reason != self._noted:
            self._note(f"{reason}; waiting. Press Ctrl-C to stop waiting.")
        elif now - self._noted_at >= _REMINDER_S:
            self._note(f"{reason}; still waiting after {(now - self._since) / 60:.0f} min.")
        else:
            return
        self._noted, self._noted_at = reason, now


def _is_refused(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def ready_pipelines(client: Client, ids: Iterable[str], note: Callable[[str], None]) -> dict[str, PipelineInfo]:
    """Pipelines by id; those that are not loaded, or not listed, are loaded first.

    Raises:
        UnknownPipeline: the server has no such pipeline; the message lists those it has.
        LoadFailed: one cannot run; the message says why.
    """
    ready = {}
    listed = client.pipelines()
    for name in ids:
        pipeline = next((pipeline for pipeline in listed if pipeline.id == name), None)
        if pipeline is not None and pipeline.state == "failed":
            raise LoadFailed(f"{name} cannot run: {pipeline.reason or 'it could not be loaded'}")
        if pipeline is None or pipeline.state != "ready":
            load(client, name, note)
            listed = client.pipelines()
            pipeline = pick_pipeline(name, listed)
        ready[name] = pipeline
    return ready


def load(client: Client, id: str, note: Callable[[str], None]) -> None:
    """Have a pipeline loaded, and wait for it.

    Raises:
        UnknownPipeline: the server has no such pipeline.
        LoadFailed: it could not be loaded; the message says why.
    """
    try:
        if client.load(id).status == "loaded":
            return
    except UnknownPipeline as error:
        raise UnknownPipeline(error.message) from None  # without the field of a request that the user did not write
    note(f"Loading {id}.")
    while True:
        answer = client.status()
        if answer.pipeline_id not in (None, id):
            return  # this client has started another load since: the list of pipelines decides
        if answer.status == "error":
            raise LoadFailed(f"{id} could not be loaded: {answer.error or 'the server gives no reason'}")
        if answer.status != "loading":
            return
        time.sleep(_POLL_S)
