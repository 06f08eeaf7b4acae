"""A video from a sentence, by longlive-small, and whether it shows what the sentence says."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click
import numpy as np

from demo.following import CheckFailed, check, follow
from filmstrip.client import Client, Complete
from filmstrip.video import count_frames, write_video
from filmstrip.video.contact_sheet import contact_sheet
from filmstrip.wire import Video
from tests.support.toyworld.detectors import Seen, detect
from tests.support.toyworld.videos import split_chunks

PIPELINE = "longlive-small"
PROMPT = "a yellow circle moving left on a green background"
"""One of those that no training video shows."""
_CHUNKS = 6
_FPS = 16
_ENLARGED, _ENLARGED_SHEET = 8, 2
_COLUMNS, _ROWS = 6, 3
_LEAST_RIGHT = 0.8  # of the chunks


def text_to_video(client: Client, out: Path) -> Iterator[Path]:
    """A video that starts with a sentence and nothing else."""
    pipeline = client.pipeline(PIPELINE)
    assert pipeline.first_chunk_size
    assert pipeline.chunk_size
    num_frames = pipeline.first_chunk_size + (_CHUNKS - 1) * pipeline.chunk_size
    click.echo(f"\n{PIPELINE}, {num_frames} frames of '{PROMPT}':")
    with client.generate(pipeline_id=PIPELINE, prompt=PROMPT, num_frames=num_frames) as events:
        last, progress = follow(events)
    if not isinstance(last, Complete):
        raise CheckFailed(f"the generation ended with {last}")
    shape = (num_frames, pipeline.height, pipeline.width, 3)
    check(last.num_frames == num_frames, f"complete: {last.num_frames} frames in {last.num_chunks} chunks")
    video = client.download(last.output_path)
    check(video.shape == last.video_shape == shape, f"the download is {list(video.shape)}")
    seconds = sum(event.latency for event in progress)
    click.echo(f"  generated in {seconds:.1f} s, {num_frames / seconds:.0f} frames per second")

    path, sheet = out / f"{PIPELINE}.mp4", out / f"{PIPELINE}.png"
    write_video(path, _enlarged(video, _ENLARGED), _FPS)
    check(count_frames(path) == num_frames, f"{path.name} has every frame, {_ENLARGED} times as large")
    large = _enlarged(video, _ENLARGED_SHEET)
    contact_sheet(large, num_frames, sheet, columns=_COLUMNS, rows=_ROWS, width=large.shape[2])

    shown = [_sentence(detect(chunk)) for chunk in split_chunks(video)]
    for sentence, chunks in groupby(shown):
        click.echo(f"  {len(list(chunks))} chunks show {sentence}")
    right = shown.count(PROMPT)
    check(right >= _LEAST_RIGHT * len(shown), f"{right} of {len(shown)} chunks show what the prompt says")
    yield from (path, sheet)


def _enlarged(video: Video, times: int) -> Video:
    """Each pixel as a square of so many: players would blur it."""
    return np.repeat(np.repeat(video, times, axis=1), times, axis=2)


def _sentence(seen: Seen) -> str:
    """What the detectors see, in the words of a prompt; three dots for what they cannot determine."""
    colour, shape, motion, background = (
        word or "..." for word in (seen.colour, seen.shape, seen.motion, seen.background)
    )
    return f"a {colour} {shape} moving {motion} on a {background} background"
