"""A generation that is cancelled: the chunks made so far are kept."""

from filmstrip.client import Cancelled, Client, Progress

with Client() as client:
    with client.generate(
        pipeline_id="longlive-small",
        prompt="a red circle moving left on a blue background",
        num_frames=1200,
        seed=1,
    ) as events:
        for event in events:
            print(event)
            if isinstance(event, Progress) and event.chunk == 3:
                client.cancel()  # the chunk in progress is still completed
    if not isinstance(event, Cancelled) or event.output_path is None:
        raise SystemExit("the generation was not cancelled")
    client.download_mp4(event.output_path, "cancel.mp4", fps=12)
