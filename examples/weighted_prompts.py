"""Two prompts blended by weight."""

from filmstrip.client import Client

with Client() as client:
    for weight in (25, 50, 75):
        complete = client.run(
            pipeline_id="longlive-small",
            prompt=[
                {"text": "a red square moving right on a blue background", "weight": 100 - weight},
                {"text": "a yellow square moving right on a blue background", "weight": weight},
            ],
            prompt_interpolation_method="linear",
            num_frames=21,
            seed=1,
        )
        print(weight, complete)
        client.download_mp4(complete.output_path, f"weighted_prompts_{weight}.mp4", fps=12)
