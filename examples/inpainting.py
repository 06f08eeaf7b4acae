"""A part of a video made anew: VACE frames and masks."""

from pathlib import Path

import click
import numpy as np

from examples.show import PIPELINE, command, make, save, seen
from filmstrip.client import BlobBuilder, Client, as_vace_frames
from tests.support.toyworld.grammar import Scene
from tests.support.toyworld.metrics import psnr
from tests.support.toyworld.videos import CHUNK_FRAMES, SIDE, render

SOURCE = Scene("red", "circle", "left", "blue")
PROMPT = "a yellow square moving left on a blue background"
CHUNKS = 3


def run(client: Client, out: Path) -> None:
    """Another object in a band through the middle; above and below the source stays as it is."""
    source = render([(SOURCE, CHUNKS * CHUNK_FRAMES)])
    mask = np.zeros((len(source), SIDE, SIDE), np.float32)  # 1 is to be made
    mask[:, 14:50] = 1

    blob = BlobBuilder()
    for chunk in range(CHUNKS):
        part = slice(chunk * CHUNK_FRAMES, (chunk + 1) * CHUNK_FRAMES)
        blob.chunk(chunk, vace_frames=as_vace_frames(source[part]), vace_masks=mask[part])
    made = make(
        client,
        prompt=PROMPT,
        num_frames=len(source),
        seed=1,
        data_blob_path=client.upload_data(blob).data_blob_path,
        chunk_specs=blob.chunk_specs,
    )

    # The source through the autoencoder alone: no kept pixel can be better than that.
    click.echo(f"{PIPELINE} with noise_scale 0:", err=True)
    input_path = client.upload(source).input_path
    coded = make(client, prompt=PROMPT, num_frames=len(source), seed=1, input_path=input_path, noise_scale=0.0)
    click.echo(f"the source shows: {seen(source[-CHUNK_FRAMES:])}\nasked for: {PROMPT}")
    click.echo(f"the last chunk shows: {seen(made[-CHUNK_FRAMES:])}")
    kept = mask == 0
    click.echo(f"kept region: {psnr(made, source, kept):.1f} dB, the autoencoder's {psnr(coded, source, kept):.1f} dB")
    hidden = np.where(mask[..., None] > 0, np.uint8(128), source)
    save(out / "inpainting", {"source": source, "kept": hidden, "made": made})


main = command(run)

if __name__ == "__main__":
    main()
