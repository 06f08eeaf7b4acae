"""An image that shows what the object looks like: `vace_ref_images`."""

import io

from PIL import Image, ImageDraw

from filmstrip.client import Client

image = Image.new("RGB", (64, 64), (245, 245, 245))
ImageDraw.Draw(image).polygon([(32, 20), (44, 44), (20, 44)], fill=(255, 230, 50))  # a yellow triangle
png = io.BytesIO()
image.save(png, "PNG")

with Client() as client:
    path = client.upload_asset(png.getvalue())
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a thing moving left on a blue background",
        num_frames=45,
        seed=1,
        chunk_specs=[{"chunk": chunk, "vace_ref_images": [path]} for chunk in range(4)],
        on_event=print,
    )
    client.download_mp4(complete.output_path, "reference_image.mp4", fps=12)
