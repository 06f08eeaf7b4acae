"""Generates videos from a prompt and from a real clip on a real server, checks them, and prints their paths."""

import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import click

from demo.following import CheckFailed
from demo.real_clip import cancelled_optical_flow, scribble
from demo.server import ServerDied, started
from demo.text_to_video import text_to_video
from filmstrip.client import Client, ClientError
from filmstrip.errors import FilmstripError
from filmstrip.video import VideoFileError


@click.command()
@click.option("--server", help="URL of a running server.  [default: start one]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True)
def main(server: str | None, out: Path) -> None:
    """Generate videos from a prompt and from a real clip, check the results, and print their paths."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
            signal.signal(number, lambda received, _: sys.exit(128 + received))  # so that the server is stopped
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="filmstrip-demo-") as data_dir:
            if server is None:
                click.echo("Starting the server...")
            with nullcontext(server) if server else started(out / "server.log", Path(data_dir)) as url:
                click.echo(f"The server at {url} is healthy.")
                with Client(url) as client:
                    parts = (text_to_video, scribble, cancelled_optical_flow)
                    files = [file for part in parts for file in part(client, out)]
    except (CheckFailed, ServerDied, FilmstripError, ClientError, VideoFileError) as error:
        click.echo(f"FAILED: {error}", err=True)
        sys.exit(1)
    click.echo(f"\nAll checks passed, in {time.monotonic() - began:.0f} s. See:")
    for file in files:
        click.echo(f"  {file}")


if __name__ == "__main__":
    main()
