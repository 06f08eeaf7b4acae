"""An image to begin with, or to arrive at: `first_frame_image` and `last_frame_image`."""

from pathlib import Path

import click

from examples.show import command, make, save
from filmstrip.client import Client
from tests.support.toyworld.grammar import Scene, caption
from tests.support.toyworld.metrics import place_overlap
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, as_png, masks, render

SCENE = Scene("green", "square", "down", "white")
CHUNKS = 3
PLACES = {"first_frame_image": (14, 48), "last_frame_image": (44, 16)}


def run(client: Client, out: Path) -> None:
    """The first chunk begins with an image, then another video's first chunk ends with one."""
    videos = {}
    for name, place in PLACES.items():
        shot = [(SCENE, 1)]
        path = client.upload_asset(as_png(render(shot, place)[0]))
        video = videos[name.removesuffix("_frame_image")] = make(
            client,
            prompt=caption(SCENE),
            num_frames=FIRST_CHUNK_FRAMES + (CHUNKS - 1) * CHUNK_FRAMES,
            seed=1,
            chunk_specs=[{"chunk": 0, name: path}],
        )
        frame = 0 if name == "first_frame_image" else FIRST_CHUNK_FRAMES - 1
        share = place_overlap(video[frame : frame + 1], masks(shot, place))
        click.echo(f"{name}: in frame {frame} the object overlaps the image's by {share:.2f}")
    save(out / "key_images", videos)


main = command(run)

if __name__ == "__main__":
    main()
