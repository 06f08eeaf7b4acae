"""Other prompts on the way: `chunk_specs` with `text`."""

from pathlib import Path

import click

from examples.show import command, make, save, seen
from filmstrip.client import Client
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES

PROMPTS = {
    0: "a red circle moving left on a blue background",
    3: "a yellow circle moving left on a blue background",
    6: "a white square moving down on a green background",
}
CHUNKS = 9


def run(client: Client, out: Path) -> None:
    """Other prompts on the way: each holds until the next, and what was drawn before goes on."""
    video = make(
        client,
        prompt=PROMPTS[0],
        num_frames=FIRST_CHUNK_FRAMES + (CHUNKS - 1) * CHUNK_FRAMES,
        seed=1,
        chunk_specs=[{"chunk": chunk, "text": text} for chunk, text in PROMPTS.items() if chunk > 0],
    )
    for chunk in range(CHUNKS):
        end = FIRST_CHUNK_FRAMES + chunk * CHUNK_FRAMES
        asked = f" - asked for: {PROMPTS[chunk]}" if chunk in PROMPTS else ""
        click.echo(f"chunk {chunk} shows: {seen(video[max(0, end - CHUNK_FRAMES) : end])}{asked}")
    save(out / "prompt_schedule", {"": video})


main = command(run)

if __name__ == "__main__":
    main()
