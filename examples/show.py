"""What the examples share: their command line, a generation followed to its end, and a video made visible.

Nothing here is needed to use the API: `filmstrip.client` is all that an example calls the server with.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from filmstrip.client import Client, ClientError, Complete, ErrorEvent, Progress
from filmstrip.console import client_of
from filmstrip.errors import FilmstripError
from filmstrip.video import write_video
from filmstrip.video.contact_sheet import Thumbnail, thumbnails, write_sheet
from filmstrip.wire import Frame, Video
from tests.support.toyworld.detectors import detect

PIPELINE = "longlive-small"
_FPS = 12
_ENLARGED = 5
_COLUMNS = 12
_THUMBNAIL = 96


def command(run: Callable[[Client, Path], None]) -> click.Command:
    """The command line of an example: `--server` and `--out`."""

    @click.command(help=run.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("--server", default="http://127.0.0.1:8000", show_default=True, help="URL of a running server.")
    @click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("out/examples"),
        show_default=True,
        help="Folder for the video and its contact sheet.",
    )
    def main(server: str, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        try:
            with client_of(server) as client:
                run(client, out)
        except (FilmstripError, ClientError) as error:
            raise click.ClickException(str(error)) from error

    return main


def make(client: Client, **request: Any) -> Video:
    """Generate with the small model, and fetch what it made, [F, 64, 64, 3].

    Raises:
        FilmstripError: the server refuses, or its model fails.
    """
    with client.generate(pipeline_id=PIPELINE, **request) as events:
        for event in events:
            match event:
                case Progress():
                    click.echo(f"  chunk {event.chunk} of {event.total_chunks}: {event.frames} frames", err=True)
                case Complete():
                    return client.download(event.output_path)
                case ErrorEvent():
                    raise event.exception()
    raise click.ClickException("somebody else cancelled the generation")


def save(path: Path, videos: Mapping[str, Video]) -> None:
    """Write videos of one length beside each other as `path`.mp4, enlarged, and a contact sheet with a row of each."""
    beside = np.concatenate(list(videos.values()), axis=2)
    write_video(path.with_suffix(".mp4"), (_enlarged(frame) for frame in beside), _FPS)
    rows: list[tuple[str, list[Thumbnail]]] = []
    for label, video in videos.items():
        drawn = (_enlarged(frame) for frame in video)
        rows.append((label, thumbnails(drawn, len(video), _COLUMNS, _THUMBNAIL)))
    write_sheet(rows, path.with_suffix(".png"))
    click.echo(f"{path.with_suffix('.mp4')}, {path.with_suffix('.png')}")


def _enlarged(frame: Frame) -> Frame:
    return frame.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)


def seen(frames: Video) -> str:
    """What plain geometry and colour distance find in a chunk's frames, in the words of a prompt."""
    found = detect(frames)
    words = [found.colour, found.shape, "moving", found.motion, "on", found.background]
    return " ".join("?" if word is None else word for word in words)


def percent(share: float) -> str:
    """A share for people; a `?` where there was nothing to measure."""
    return "?" if math.isnan(share) else f"{share:.0%}"
