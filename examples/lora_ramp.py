"""A LoRA that sets in slowly: `lora_scales` in `chunk_specs`."""

from pathlib import Path

import click

from examples.show import command, make, percent, save
from filmstrip.client import Client
from tests.support.toyworld.grammar import Scene, caption
from tests.support.toyworld.metrics import fill_share
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES

SCENE = Scene("white", "square", "left", "purple")
LORA = "outlines"
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)


def run(client: Client, out: Path) -> None:
    """The scale of a LoRA that draws outlines grows from chunk to chunk."""
    video = make(
        client,
        prompt=caption(SCENE),
        num_frames=FIRST_CHUNK_FRAMES + (len(SCALES) - 1) * CHUNK_FRAMES,
        seed=1,
        chunk_specs=[{"chunk": chunk, "lora_scales": {LORA: scale}} for chunk, scale in enumerate(SCALES)],
    )
    for chunk, scale in enumerate(SCALES):
        end = FIRST_CHUNK_FRAMES + chunk * CHUNK_FRAMES
        filled = fill_share(video[max(0, end - CHUNK_FRAMES) : end], SCENE)
        click.echo(f"chunk {chunk}, scale {scale}: {percent(filled)} of the object is filled")
    save(out / "lora_ramp", {"": video})


main = command(run)

if __name__ == "__main__":
    main()
