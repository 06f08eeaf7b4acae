"""Generations from a real clip: frame processors, and a cancel half-way."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

from demo.following import CheckFailed, check, follow
from filmstrip.client import Cancelled, Client, Complete, Event, Progress
from filmstrip.video import VideoInfo, count_frames, probe, read_frames, write_video
from filmstrip.video.contact_sheet import Thumbnail, thumbnails, write_sheet
from filmstrip.wire import Frame, Video

CLIP = Path(__file__).with_name("big_buck_bunny.mp4")
LONG_FRAMES = 300
_COLUMNS = 6
_SHEET_FRAMES = 18


def scribble(client: Client, out: Path) -> Iterator[Path]:
    """The whole clip through `gray` and `scribble`."""
    info, clip = _clip()
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
        last, progress = follow(events)
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

    write_video(out / "scribble.mp4", video, info.fps)
    check(count_frames(out / "scribble.mp4") == len(clip), "scribble.mp4 has every frame")
    _comparison(clip, video, out / "scribble.png")
    yield from (out / "scribble.mp4", out / "scribble.png")


def cancelled_optical_flow(client: Client, out: Path) -> Iterator[Path]:
    """A longer generation from the looped clip, cancelled half-way: the frames generated so far stay."""
    info, clip = _clip()
    uploaded = client.upload(clip)
    click.echo(f"\noptical-flow, {LONG_FRAMES} frames of the looped clip, cancelled half-way:")
    with client.generate(
        pipeline_id="optical-flow", prompt="", input_path=uploaded.input_path, num_frames=LONG_FRAMES
    ) as events:
        last, progress = follow(_cancel_half_way(client, events))
    if not isinstance(last, Cancelled) or last.output_path is None:
        raise CheckFailed(f"the cancelled generation ended with {last}")
    generated = sum(event.frames for event in progress)
    check(LONG_FRAMES // 2 <= generated < LONG_FRAMES, f"cancelled after {generated} frames")
    check(last.frames_completed == generated, "the cancelled event and the progress events agree")
    check(client.cancel() == "idle", "nothing runs any more")

    path = out / "optical-flow-cancelled.mp4"
    num_frames = client.download_mp4(last.output_path, path, float(info.fps))
    check(num_frames == count_frames(path) == generated, f"{path.name} has the {generated} frames generated so far")
    looped = np.take(clip, range(generated), axis=0, mode="wrap")
    sheet = path.with_suffix(".png")
    _comparison(looped, read_frames(path), sheet)
    yield from (path, sheet)


@functools.cache
def _clip() -> tuple[VideoInfo, Video]:
    return probe(CLIP), np.stack(list(read_frames(CLIP)))


def _cancel_half_way(client: Client, events: Iterator[Event]) -> Iterator[Event]:
    asked = False
    frames = 0
    for event in events:
        yield event
        frames += event.frames if isinstance(event, Progress) else 0
        if not asked and frames >= LONG_FRAMES // 2:
            asked = True
            click.echo(f"  POST cancel -> {client.cancel()}")


def _comparison(source: Video, generated: Video | Iterator[Frame], path: Path) -> None:
    """A contact sheet with every row of the source above the same frames of the output."""
    above = thumbnails(source, len(source), _SHEET_FRAMES)
    below = thumbnails(generated, len(source), _SHEET_FRAMES)
    rows: list[tuple[str, Sequence[Thumbnail]]] = []
    for start in range(0, len(above), _COLUMNS):
        rows += [("input", above[start : start + _COLUMNS]), ("output", below[start : start + _COLUMNS])]
    write_sheet(rows, path)
