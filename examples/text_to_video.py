"""A video from a sentence."""

from pathlib import Path

import click

from examples.show import command, make, save, seen
from filmstrip.client import Client
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES

PROMPT = "a red circle moving left on a blue background"
CHUNKS = 6


def run(client: Client, out: Path) -> None:
    """A video from a sentence: six chunks, the first of which is shorter."""
    video = make(client, prompt=PROMPT, num_frames=FIRST_CHUNK_FRAMES + (CHUNKS - 1) * CHUNK_FRAMES, seed=1)
    click.echo(f"asked for: {PROMPT}")
    click.echo(f"last chunk shows: {seen(video[-CHUNK_FRAMES:])}")
    save(out / "text_to_video", {"": video})


main = command(run)

if __name__ == "__main__":
    main()
