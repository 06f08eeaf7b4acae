"""An image that tells what the object looks like: `vace_ref_images`."""

from pathlib import Path

import click

from examples.show import command, make, save, seen
from filmstrip.client import Client
from tests.support.toyworld.grammar import Scene
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, as_png, render

PROMPT = "a thing moving left on a blue background"
THINGS = (("red", "circle"), ("yellow", "triangle"))
CHUNKS = 4


def run(client: Client, out: Path) -> None:
    """The same vague prompt with two images: colour and shape are theirs."""
    videos = {}
    for colour, shape in THINGS:
        image = render([(Scene(colour, shape, "left", "white"), 1)])[0]
        path = client.upload_asset(as_png(image))
        video = videos[shape] = make(
            client,
            prompt=PROMPT,
            num_frames=FIRST_CHUNK_FRAMES + (CHUNKS - 1) * CHUNK_FRAMES,
            seed=1,
            chunk_specs=[{"chunk": chunk, "vace_ref_images": [path]} for chunk in range(CHUNKS)],
        )
        click.echo(f"the image shows a {colour} {shape}, the video: {seen(video[-CHUNK_FRAMES:])}")
    save(out / "reference_image", videos)


main = command(run)

if __name__ == "__main__":
    main()
