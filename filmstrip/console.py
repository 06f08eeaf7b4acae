"""What commands do in a terminal: connect to the server of their options, show progress, handle signals."""

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import click
import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from filmstrip import connection_settings
from filmstrip.client import Client
from filmstrip.connection_settings import TIMEOUT_S
from filmstrip.errors import ClientError, FilmstripError
from filmstrip.models import Event, Progress, Queued

ItemT = TypeVar("ItemT")


def make_client(
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
            connection_settings.parse_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
    try:
        connection_settings.resolve_server(url, token)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        return Client(url, token, timeout_s, verify=True if cacert is None else cacert)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cacert") from None


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, so that no partial file is left behind.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored. Outside the main thread nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _exit)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
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


def track(items: Iterable[ItemT], total: int, description: str, *, quiet: bool = False) -> Iterator[ItemT]:
    """Yield the items, with a progress bar on a terminal unless it should be quiet."""
    with _bar(Console(stderr=True, quiet=quiet), TimeRemainingColumn()) as bar:
        yield from bar.track(items, total, description=description)


@contextmanager
def open_tracked(path: Path, description: str, *, quiet: bool = False) -> Iterator[BinaryIO]:
    """Open a file for reading, with a progress bar on a terminal unless it should be quiet."""
    console = Console(stderr=True, quiet=quiet)
    is_hidden = quiet or not console.is_terminal
    with rich.progress.open(path, "rb", description=description, console=console, disable=is_hidden) as file:
        yield file


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

    def show(self, event: Event) -> None:
        """Show an event that has something to show."""
        if isinstance(event, Progress):
            self.update(event)
        elif isinstance(event, Queued):
            self._wait(event)

    def update(self, event: Progress) -> None:
        """Show that a chunk is done."""
        chunks, total = event.chunk, event.total_chunks
        self._bar.update(self._task, description="Generating", completed=chunks, total=total, fps=event.fps)
        if not self._console.is_terminal:
            self.note(f"chunk {event.chunk}/{event.total_chunks}: {event.frames} frames, {event.fps:.1f} fps")

    def _wait(self, event: Queued) -> None:
        self._bar.update(self._task, description=f"Waiting, place {event.position}")
        if not self._console.is_terminal:
            self.note(f"waiting: place {event.position} in the queue")

    def note(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class CancelOnInterrupt:
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
