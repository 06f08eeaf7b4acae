"""A video restyled by a prompt: `input_path` and `noise_scale`."""

import numpy as np

from filmstrip.client import Client

# A red circle that moves left on a blue background, [F, H, W, C]. To use a file: filmstrip.video.read_frames.
y, x = np.mgrid[:64, :64]
source = np.empty((36, 64, 64, 3), np.uint8)
for number, frame in enumerate(source):
    frame[:] = (20, 90, 225)
    frame[(y - 20) ** 2 + ((x - 40 + number + 32) % 64 - 32) ** 2 < 12**2] = (205, 20, 40)

with Client() as client:
    input_path = client.upload(source).input_path
    for noise_scale in (0.3, 0.7):  # a little noise keeps the source, more follows the prompt
        complete = client.run(
            pipeline_id="longlive-small",
            prompt="a yellow circle moving left on a green background",
            input_path=input_path,
            num_frames=len(source),
            noise_scale=noise_scale,
            seed=1,
        )
        print(noise_scale, complete)
        client.download_mp4(complete.output_path, f"video_to_video_{noise_scale}.mp4", fps=12)
