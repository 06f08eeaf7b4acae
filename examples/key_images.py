"""A video that starts with a given image: `first_frame_image`. `last_frame_image` works the same way."""

import io

from PIL import Image, ImageDraw

from filmstrip.client import Client

image = Image.new("RGB", (64, 64), (245, 245, 245))
ImageDraw.Draw(image).rectangle((36, 2, 59, 25), fill=(35, 160, 60))  # a green square
png = io.BytesIO()
image.save(png, "PNG")

with Client() as client:
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a green square moving down on a white background",
        num_frames=33,
        seed=1,
        chunk_specs=[{"chunk": 0, "first_frame_image": client.upload_asset(png.getvalue())}],
        on_event=print,
    )
    client.download_mp4(complete.output_path, "key_images.mp4", fps=12)
