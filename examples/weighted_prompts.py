"""Two prompts blended by weight."""

from filmstrip.client import Client, Complete

with Client() as client:
    for weight in (25, 50, 75):
        with client.generate(
            pipeline_id="longlive-small",
            prompt=[
                {"text": "a red square moving right on a blue background", "weight": 100 - weight},
                {"text": "a yellow square moving right on a blue background", "weight": weight},
            ],
            prompt_interpolation_method="linear",
            num_frames=21,
            seed=1,
        ) as events:
            *_, event = events
        print(weight, event)
        if not isinstance(event, Complete):
            raise SystemExit("the generation did not complete")
        client.download_mp4(event.output_path, f"weighted_prompts_{weight}.mp4", fps=12)
