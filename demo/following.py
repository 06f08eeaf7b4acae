"""What both parts of the demo do: check, and follow the events of a generation."""

from collections.abc import Iterator

import click
from rich.console import Console

from filmstrip.client import Cancelled, Complete, ErrorEvent, Event, Preview, Progress
from filmstrip.console import GenerationProgress


class CheckFailed(Exception):
    """Something came back that should not have."""


def check(holds: bool, what: str) -> None:
    """Print what was checked, or stop where it does not hold."""
    if not holds:
        raise CheckFailed(what)
    click.echo(f"  ok: {what}")


def follow(events: Iterator[Event]) -> tuple[Complete | Cancelled, list[Progress]]:
    """Show how a generation goes on; gives its last event, and the progress before it.

    Raises:
        FilmstripError: it failed.
        CheckFailed: there is no last event.
    """
    progress = []
    with GenerationProgress(Console()) as shown:
        for event in events:
            match event:
                case Progress():
                    progress.append(event)
                    shown.update(event)
                case Preview():
                    pass
                case ErrorEvent():
                    raise event.exception()
                case Complete() | Cancelled():
                    return event, progress
    raise CheckFailed("the events ended without a last one")
