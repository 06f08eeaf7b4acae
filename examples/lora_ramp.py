"""A LoRA whose scale grows from chunk to chunk: `lora_scales`."""

from filmstrip.client import Client

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)  # one per chunk

with Client() as client:
    complete = client.run(
        pipeline_id="longlive-small",
        prompt="a white square moving left on a purple background",
        num_frames=69,
        seed=1,
        chunk_specs=[{"chunk": chunk, "lora_scales": {"outlines": scale}} for chunk, scale in enumerate(SCALES)],
        on_event=print,
    )
    client.download_mp4(complete.output_path, "lora_ramp.mp4", fps=12)
