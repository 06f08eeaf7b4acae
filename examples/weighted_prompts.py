"""Two prompts at once: a list of texts with weights."""

from pathlib import Path

import click

from examples.show import command, make, percent, save
from filmstrip.client import Client
from tests.support.toyworld.metrics import colour_way
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES

FROM, TO = "red", "yellow"
WEIGHTS = (0, 25, 50, 75, 100)


def run(client: Client, out: Path) -> None:
    """Two prompts at once, blended by weight: from one colour to another."""
    videos = {}
    for weight in WEIGHTS:
        video = videos[f"{weight} %"] = make(
            client,
            prompt=[
                {"text": f"a {FROM} square moving right on a blue background", "weight": 100 - weight},
                {"text": f"a {TO} square moving right on a blue background", "weight": weight},
            ],
            prompt_interpolation_method="linear",
            num_frames=FIRST_CHUNK_FRAMES + CHUNK_FRAMES,
            seed=1,
        )
        way = percent(colour_way(video, FROM, TO))
        click.echo(f"{weight} % {TO}: the colour is {way} of the way from {FROM} to {TO}")
    save(out / "weighted_prompts", videos)


main = command(run)

if __name__ == "__main__":
    main()
