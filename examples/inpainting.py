"""A part of a video replaced: VACE frames and masks."""

import numpy as np

from filmstrip.client import BlobBuilder, Client, as_vace_frames

CHUNK = 12  # frames

y, x = np.mgrid[:64, :64]
source = np.empty((3 * CHUNK, 64, 64, 3), np.uint8)  # a red circle that moves left
for number, frame in enumerate(source):
    frame[:] = (20, 90, 225)
    frame[(y - 32) ** 2 + ((x - 32 + number + 32) % 64 - 32) ** 2 < 12**2] = (205, 20, 40)
mask = np.zeros((len(source), 64, 64), np.float32)
mask[:, 14:50] = 1  # 1 is generated, 0 is kept

blob = BlobBuilder()
for chunk in range(3):
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    blob.chunk(chunk, vace_frames=as_vace_frames(source[part]), vace_masks=mask[part])

with Client() as client:
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a yellow square moving left on a blue background",
        num_frames=len(source),
        seed=1,
        data_blob_path=client.upload_data(blob).data_blob_path,
        chunk_specs=blob.chunk_specs,
        on_event=print,
    )
    client.download_mp4(complete.output_path, "inpainting.mp4", fps=12)
