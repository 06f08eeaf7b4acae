"""From one prompt to another, a step a chunk: `transition_target_prompts`."""

from pathlib import Path

import click

from examples.show import command, make, percent, save
from filmstrip.client import Client
from tests.support.toyworld.metrics import colour_way
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES

FROM, TO = "red", "yellow"
CHUNKS, STARTS_AT, STEPS = 9, 2, 5


def run(client: Client, out: Path) -> None:
    """From one prompt to another in five steps, the first of which is still the old prompt; the new one then stays."""
    transition = {
        "chunk": STARTS_AT,
        "transition_target_prompts": [{"text": f"a {TO} square moving right on a blue background", "weight": 100}],
        "transition_num_steps": STEPS,
        "transition_method": "linear",
    }
    video = make(
        client,
        prompt=f"a {FROM} square moving right on a blue background",
        num_frames=FIRST_CHUNK_FRAMES + (CHUNKS - 1) * CHUNK_FRAMES,
        seed=1,
        chunk_specs=[transition],
    )
    for chunk in range(CHUNKS):
        end = FIRST_CHUNK_FRAMES + chunk * CHUNK_FRAMES
        way = colour_way(video[max(0, end - CHUNK_FRAMES) : end], FROM, TO)
        click.echo(f"chunk {chunk}: the colour is {percent(way)} of the way from {FROM} to {TO}")
    save(out / "transition", {"": video})


main = command(run)

if __name__ == "__main__":
    main()
