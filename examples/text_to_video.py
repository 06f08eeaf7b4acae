"""A video from a sentence."""

from filmstrip.client import Client

with Client() as client:  # the server of FILMSTRIP_SERVER, or http://127.0.0.1:8000
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a red circle moving left on a blue background",
        num_frames=69,  # six chunks: the first has 9 frames, each later one 12
        seed=1,
        on_event=print,
    )
    client.download_mp4(complete.output_path, "text_to_video.mp4", fps=12)
