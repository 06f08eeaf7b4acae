"""From one prompt to another, a step a chunk: `transition_target_prompts`."""

from pathlib import Path

import click

from docs.examples.show import FIRST_FRAMES, FRAMES, command, make, save
from filmstrip.client import Client
from training.condition_measures import colour_way

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
        num_frames=FIRST_FRAMES + (CHUNKS - 1) * FRAMES,
        seed=1,
        chunk_specs=[transition],
    )
    for chunk in range(CHUNKS):
        end = FIRST_FRAMES + chunk * FRAMES
        way = colour_way(video[max(0, end - FRAMES) : end], FROM, TO)
        click.echo(f"chunk {chunk}: the colour is {way:.0%} of the way from {FROM} to {TO}")
    save(out / "transition", {"": video})


main = command(run)

if __name__ == "__main__":
    main()
