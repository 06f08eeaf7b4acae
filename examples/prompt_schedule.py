"""A prompt that changes during the video: `chunk_specs` with `text`."""

from filmstrip.client import Client, Complete

with Client() as client:
    with client.generate(
        pipeline_id="longlive-small",
        prompt="a red circle moving left on a blue background",
        num_frames=105,  # nine chunks
        seed=1,
        chunk_specs=[  # each text holds until the next one
            {"chunk": 3, "text": "a yellow circle moving left on a blue background"},
            {"chunk": 6, "text": "a white square moving down on a green background"},
        ],
    ) as events:
        for event in events:
            print(event)
    if not isinstance(event, Complete):
        raise SystemExit("the generation did not complete")
    client.download_mp4(event.output_path, "prompt_schedule.mp4", fps=12)
