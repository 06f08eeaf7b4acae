"""What the command lines of long measurements share: the folder option, an orderly end, and how they were called."""

import shlex
import signal
import sys
from pathlib import Path

import click

folder_option = click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for the server's files, with some free GB.  [default: the system's temporary folder]",
)


def exit_on_sigterm() -> None:
    """Exit with status 143 on SIGTERM, so that servers are stopped and temporary folders removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def called_as(module: str, *, without: str | None = None) -> str:
    """The command that runs now, without one of its flags."""
    return shlex.join(["python", "-m", module, *(word for word in sys.argv[1:] if word != without)])
