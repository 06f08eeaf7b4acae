"""A generation that is ended early and kept: `POST /api/v1/generate/cancel`."""

from pathlib import Path

import click

from examples.show import PIPELINE, command, save, seen
from filmstrip.client import Cancelled, Client, ErrorEvent, Progress

NUM_FRAMES = 1200
AFTER_CHUNKS = 3


def run(client: Client, out: Path) -> None:
    """A long generation, ended after a few chunks: what was made so far stays."""
    prompt = "a red circle moving left on a blue background"
    with client.generate(pipeline_id=PIPELINE, prompt=prompt, num_frames=NUM_FRAMES, seed=1) as events:
        for event in events:
            if isinstance(event, Progress) and event.chunk == AFTER_CHUNKS:
                click.echo(f"after chunk {event.chunk} of {event.total_chunks}: {client.cancel()}")
    if isinstance(event, ErrorEvent):
        raise event.exception()
    if not isinstance(event, Cancelled) or event.output_path is None:
        raise click.ClickException(f"the generation ended otherwise: {event}")
    video = client.download(event.output_path)
    click.echo(f"cancelled before chunk {event.chunk + 1}: {len(video)} of {NUM_FRAMES} frames are kept")
    click.echo(f"they show: {seen(video[-12:])}")
    save(out / "cancel", {"": video})


main = command(run)

if __name__ == "__main__":
    main()
