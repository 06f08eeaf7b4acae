"""A video that follows the grey or scribbled frames of another: a pre-processor, or VACE frames of one's own."""

from pathlib import Path

import click
import numpy as np

from examples.show import command, make, save, seen
from filmstrip.client import BlobBuilder, Client, as_vace_frames
from filmstrip.runtime.processors import Gray, Scribble
from filmstrip.wire import Video
from tests.support.toyworld.grammar import Scene, caption
from tests.support.toyworld.metrics import place_overlap
from tests.support.toyworld.videos import CHUNK_FRAMES, masks, render

LEADS = Scene("white", "triangle", "right", "black")
START = (18, 10)
PROMPT = caption(Scene("yellow", "triangle", "right", "purple"))
CHUNKS = 3


def run(client: Client, out: Path) -> None:
    """The object's course from another video, by its grey frames and by its contours; the colours from the prompt."""
    shots = [(LEADS, CHUNKS * CHUNK_FRAMES)]
    leading, covered = render(shots, START), masks(shots, START)
    input_path = client.upload(leading).input_path
    videos: dict[str, Video] = {}
    for name, processor in (("gray", Gray()), ("scribble", Scribble())):
        # 1. The server makes the control frames.
        made = make(
            client,
            prompt=PROMPT,
            num_frames=len(leading),
            seed=1,
            input_path=input_path,
            pre_processor_id=name,
            vace_use_input_video=True,
        )
        # 2. The client does, and packs them into a blob.
        control = processor.process(leading)
        blob = BlobBuilder()
        for chunk in range(CHUNKS):
            part = control[chunk * CHUNK_FRAMES : (chunk + 1) * CHUNK_FRAMES]
            blob.chunk(chunk, vace_frames=as_vace_frames(part))
        own = make(
            client,
            prompt=PROMPT,
            num_frames=len(leading),
            seed=1,
            data_blob_path=client.upload_data(blob).data_blob_path,
            chunk_specs=blob.chunk_specs,
        )
        same = "the same video" if np.array_equal(made, own) else "another video"
        click.echo(f"{name}: the object overlaps the leading one's place by {place_overlap(made, covered):.2f}")
        click.echo(f"{name}: shows: {seen(made[-CHUNK_FRAMES:])}; frames of one's own make {same}")
        videos |= {f"{name} in": control, f"{name} out": made}
    save(out / "control", videos)


main = command(run)

if __name__ == "__main__":
    main()
