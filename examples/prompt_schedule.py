"""A prompt that changes during the video: `chunk_specs` with `text`."""

from filmstrip.client import Client

with Client() as client:
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a red circle moving left on a blue background",
        num_frames=105,  # nine chunks
        seed=1,
        chunk_specs=[  # each text holds until the next one
            {"chunk": 3, "text": "a yellow circle moving left on a blue background"},
            {"chunk": 6, "text": "a white square moving down on a green background"},
        ],
        on_event=print,
    )
    client.download_mp4(complete.output_path, "prompt_schedule.mp4", fps=12)
