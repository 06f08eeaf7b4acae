"""A video that follows the outlines of another: `pre_processor_id` and `vace_use_input_video`."""

import numpy as np

from filmstrip.client import Client

y, x = np.mgrid[:64, :64]
source = np.empty((36, 64, 64, 3), np.uint8)  # a white circle that moves right on black
for number, frame in enumerate(source):
    frame[:] = 20
    frame[(y - 18) ** 2 + ((x - 10 - number + 32) % 64 - 32) ** 2 < 12**2] = 245

with Client() as client:
    complete = client.run(
        pipeline_id="longlive-small",
        pre_processor_id="scribble",  # or "gray"
        vace_use_input_video=True,
        prompt="a yellow circle moving right on a purple background",
        input_path=client.upload(source).input_path,
        num_frames=len(source),
        seed=1,
        on_event=print,
    )
    client.download_mp4(complete.output_path, "control.mp4", fps=12)
