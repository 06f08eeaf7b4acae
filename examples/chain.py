"""Three pipelines in one request: `pre_processor_id`, `pipeline_id` and `post_processor_id`."""

import numpy as np

from filmstrip.client import Client

y, x = np.mgrid[:64, :64]
source = np.empty((36, 64, 64, 3), np.uint8)  # a white circle that moves up on black
for number, frame in enumerate(source):
    frame[:] = 20
    frame[((y - 50 + number + 32) % 64 - 32) ** 2 + (x - 22) ** 2 < 12**2] = 245

with Client() as client:
    complete = client.run(
        pre_processor_id="gray",  # its frames control the generation
        pipeline_id="longlive-small",
        post_processor_id="scribble",  # turns the generated frames into outlines
        vace_use_input_video=True,
        prompt="an orange circle moving up on a blue background",
        input_path=client.upload(source).input_path,
        num_frames=len(source),
        seed=1,
        on_event=print,
    )
    client.download_mp4(complete.output_path, "chain.mp4", fps=12)
