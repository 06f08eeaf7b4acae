"""Generates from a real clip on a real server, checks what comes back, and shows where it lies."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np

from demo.server import ServerDied, started
from filmstrip import mp4
from filmstrip.client import Cancelled, Client, ClientError, Complete, ErrorEvent, Event, Progress
from filmstrip.contact_sheet import Thumbnail, thumbnails, write_sheet
from filmstrip.errors import FilmstripError
from filmstrip.video_stream import Frame, Video

CLIP = Path(__file__).with_name("big_buck_bunny.mp4")
LONG_FRAMES = 300
_COLUMNS = 6
_SHEET_FRAMES = 18


class CheckFailed(Exception):
    """Something came back that should not have."""


def check(holds: bool, what: str) -> None:
    """Print what was checked, or stop where it does not hold."""
    if not holds:
        raise CheckFailed(what)
    click.echo(f"  ok: {what}")


@click.command()
@click.option("--server", help="URL of a running server.  [default: start one]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True)
def main(server: str | None, out: Path) -> None:
    """Generate from a real clip, check what comes back, and show where it lies."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="filmstrip-demo-") as data_dir:
            if server is None:
                click.echo("Starting the server...")
            with nullcontext(server) if server else started(out / "server.log", Path(data_dir)) as url:
                click.echo(f"The server at {url} is healthy.")
                with Client(url) as client:
                    files = [*scribble(client, out), *cancelled_optical_flow(client, out)]
    except (CheckFailed, ServerDied, FilmstripError, ClientError, mp4.VideoFileError) as error:
        click.echo(f"FAILED: {error}", err=True)
        sys.exit(1)
    click.echo("\nAll checks held. See:")
    for file in files:
        click.echo(f"  {file}")


def scribble(client: Client, out: Path) -> Iterator[Path]:
    """The whole clip through `gray` and `scribble`."""
    info = mp4.probe(CLIP)
    clip = np.stack(list(mp4.read_frames(CLIP)))
    click.echo(f"\n{CLIP.name}: {len(clip)} frames of {info.width}x{info.height}, {clip.nbytes / 1e6:.1f} MB raw")
    uploaded = client.upload(clip)
    check(uploaded.shape == clip.shape, f"the server holds {uploaded.num_frames} frames")

    click.echo(f"scribble of gray, {len(clip)} frames:")
    with client.generate(
        pipeline_id="scribble",
        pre_processor_id="gray",
        prompt="a rabbit climbs out of its burrow",
        input_path=uploaded.input_path,
        num_frames=len(clip),
    ) as events:
        last, progress = _follow(events)
    if not isinstance(last, Complete):
        raise CheckFailed(f"the generation ended with {last}")
    check(last.num_frames == len(clip), f"complete: {last.num_frames} frames in {last.num_chunks} chunks")
    check(sum(event.frames for event in progress) == len(clip), "the progress events count every frame")
    video = client.download(last.output_path)
    check(video.shape == last.video_shape == clip.shape, f"the download is {list(video.shape)}")
    with (out / "scribble.bin").open("w+b") as file:
        num_bytes = client.download_to(last.output_path, file)
    (out / "scribble.bin").unlink()
    check(num_bytes == 20 + clip.nbytes, f"it has {num_bytes} bytes, 20 of them the header")
    check(set(np.unique(video)) == {0, 255}, "a scribble is black and white, and both")
    check(bool((video.max(axis=(1, 2, 3)) == 255).all()), "every frame has outlines")

    mp4.write(out / "scribble.mp4", video, info.fps)
    check(mp4.count_frames(out / "scribble.mp4") == len(clip), "scribble.mp4 has every frame")
    _comparison(clip, video, out / "scribble.png")
    yield from (out / "scribble.mp4", out / "scribble.png")


def cancelled_optical_flow(client: Client, out: Path) -> Iterator[Path]:
    """A longer generation from the looped clip, cancelled half-way: the frames made so far stay."""
    info = mp4.probe(CLIP)
    clip = np.stack(list(mp4.read_frames(CLIP)))
    uploaded = client.upload(clip)
    click.echo(f"\noptical-flow, {LONG_FRAMES} frames of the looped clip, cancelled half-way:")
    with client.generate(
        pipeline_id="optical-flow", prompt="", input_path=uploaded.input_path, num_frames=LONG_FRAMES
    ) as events:
        last, progress = _follow(_cancel_half_way(client, events))
    if not isinstance(last, Cancelled) or last.output_path is None:
        raise CheckFailed(f"the cancelled generation ended with {last}")
    made = sum(event.frames for event in progress)
    check(LONG_FRAMES // 2 <= made < LONG_FRAMES, f"cancelled after {made} frames")
    check(last.frames_completed == made, "the cancelled event and the progress events agree")
    check(client.cancel() == "idle", "nothing runs any more")

    path = out / "optical-flow-cancelled.mp4"
    num_frames = client.download_mp4(last.output_path, path, float(info.fps))
    check(num_frames == mp4.count_frames(path) == made, f"{path.name} has the {made} frames made so far")
    looped = np.take(clip, range(made), axis=0, mode="wrap")
    sheet = path.with_suffix(".png")
    _comparison(looped, mp4.read_frames(path), sheet)
    yield from (path, sheet)


def _follow(events: Iterator[Event]) -> tuple[Complete | Cancelled, list[Progress]]:
    """Print every event; gives the last one, and the progress before it."""
    progress = []
    for event in events:
        match event:
            case Progress():
                progress.append(event)
                click.echo(
                    f"  progress: chunk {event.chunk}/{event.total_chunks}, {event.frames} frames, "
                    f"{event.latency:.3f} s, {event.fps:.0f} fps"
                )
            case ErrorEvent():
                raise event.exception()
            case _:
                click.echo(f"  {type(event).__name__.lower()}: {event}")
                return event, progress
    raise CheckFailed("the events ended without a last one")


def _cancel_half_way(client: Client, events: Iterator[Event]) -> Iterator[Event]:
    asked = False
    frames = 0
    for event in events:
        yield event
        frames += event.frames if isinstance(event, Progress) else 0
        if not asked and frames >= LONG_FRAMES // 2:
            asked = True
            click.echo(f"  POST cancel -> {client.cancel()}")


def _comparison(source: Video, made: Video | Iterator[Frame], path: Path) -> None:
    """A contact sheet with every row of the source above the same frames of the output."""
    above = thumbnails(source, len(source), _SHEET_FRAMES)
    below = thumbnails(made, len(source), _SHEET_FRAMES)
    rows: list[tuple[str, Sequence[Thumbnail]]] = []
    for start in range(0, len(above), _COLUMNS):
        rows += [("input", above[start : start + _COLUMNS]), ("output", below[start : start + _COLUMNS])]
    write_sheet(rows, path)


if __name__ == "__main__":
    main()
