"""A gradual change from one prompt to another: `transition_target_prompts`."""

from filmstrip.client import Client

with Client() as client:
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a red square moving right on a blue background",
        num_frames=105,
        seed=1,
        chunk_specs=[
            {
                "chunk": 2,  # where the transition starts
                "transition_target_prompts": [
                    {"text": "a yellow square moving right on a blue background", "weight": 100}
                ],
                "transition_num_steps": 5,  # one step per chunk; the target prompt then stays
                "transition_method": "linear",
            }
        ],
        on_event=print,
    )
    client.download_mp4(complete.output_path, "transition.mp4", fps=12)
