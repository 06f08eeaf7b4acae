"""Three pipelines in one request: `pre_processor_id`, `pipeline_id`, `post_processor_id`."""

from pathlib import Path

import click
import numpy as np

from examples.show import command, make, save
from filmstrip.client import Client
from filmstrip.runtime.processors import Scribble
from tests.support.toyworld.grammar import Scene, caption
from tests.support.toyworld.metrics import overlap
from tests.support.toyworld.videos import CHUNK_FRAMES, render

LEADS = Scene("white", "circle", "up", "black")
PROMPT = caption(Scene("orange", "circle", "up", "blue"))
CHUNKS = 3


def run(client: Client, out: Path) -> None:
    """Grey frames lead the model, and its video comes back as contours: both processors run on the server."""
    leading = render([(LEADS, CHUNKS * CHUNK_FRAMES)], start=(50, 22))
    made = make(
        client,
        prompt=PROMPT,
        num_frames=len(leading),
        seed=1,
        input_path=client.upload(leading).input_path,
        pre_processor_id="gray",
        vace_use_input_video=True,
        post_processor_id="scribble",
    )
    drawn = made.max(axis=3) > 0
    lead_lines = Scribble().process(leading).max(axis=3) > 0
    click.echo(f"values in the video: {sorted(set(np.unique(made).tolist()))}")
    click.echo(f"frames with contours: {drawn.any(axis=(1, 2)).sum()} of {len(made)}")
    click.echo(f"the contours overlap those of the leading video by {overlap(drawn, lead_lines):.2f}")
    save(out / "chain", {"in": leading, "out": made})


main = command(run)

if __name__ == "__main__":
    main()
