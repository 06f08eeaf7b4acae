"""A video made over: `input_path` and `noise_scale`."""

from pathlib import Path

import click

from examples.show import command, make, save, seen
from filmstrip.client import Client
from tests.support.toyworld.grammar import Scene
from tests.support.toyworld.metrics import psnr
from tests.support.toyworld.videos import CHUNK_FRAMES, render

SOURCE = Scene("red", "circle", "left", "blue")
PROMPT = "a yellow circle moving left on a green background"
CHUNKS = 3


def run(client: Client, out: Path) -> None:
    """A video made over: little noise keeps it, more takes the prompt's colours and keeps the motion."""
    source = render([(SOURCE, CHUNKS * CHUNK_FRAMES)], start=(20, 40))
    input_path = client.upload(source).input_path
    click.echo(f"the source shows: {seen(source[:CHUNK_FRAMES])}\nasked for: {PROMPT}")
    videos = {"source": source}
    for noise_scale in (0.0, 0.3, 0.7):
        video = videos[f"{noise_scale}"] = make(
            client, prompt=PROMPT, input_path=input_path, num_frames=len(source), noise_scale=noise_scale, seed=1
        )
        found = f"{psnr(video, source):.1f} dB from the source, shows: {seen(video[-CHUNK_FRAMES:])}"
        click.echo(f"noise_scale {noise_scale}: {found}")
    save(out / "video_to_video", videos)


main = command(run)

if __name__ == "__main__":
    main()
