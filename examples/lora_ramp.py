"""A LoRA whose scale grows from chunk to chunk: `lora_scales`."""

from filmstrip.client import Client, Complete

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)  # one per chunk

with Client() as client:
    with client.generate(
        pipeline_id="longlive-small",
        prompt="a white square moving left on a purple background",
        num_frames=69,
        seed=1,
        chunk_specs=[{"chunk": chunk, "lora_scales": {"outlines": scale}} for chunk, scale in enumerate(SCALES)],
    ) as events:
        for event in events:
            print(event)
    if not isinstance(event, Complete):
        raise SystemExit("the generation did not complete")
    client.download_mp4(event.output_path, "lora_ramp.mp4", fps=12)
