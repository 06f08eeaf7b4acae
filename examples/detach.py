"""A generation that goes on without its client: started by one, followed and downloaded by another."""

from filmstrip.client import Client, Progress

with Client() as client:
    submitted = client.generations.submit(
        pipeline_id="longlive-small",
        prompt="a purple square moving right on a white background",
        num_frames=69,
        seed=1,
    )
    print(submitted.id, submitted.state)

# The connection is closed, and the generation goes on. Only its id is needed from now on.
with Client() as client:
    with client.generations.attach(submitted.id) as events:
        for event in events:
            print(events.after, event)
            if isinstance(event, Progress) and event.chunk == 2:
                break  # as a connection that breaks; whoever follows it next continues after the same event

    for event in client.generations.attach(submitted.id, after=events.after):
        print(event)
    print([generation.id for generation in client.generations.list(state="complete", limit=5)])
    client.generations.download(submitted.id, "detach.mp4", fps=16)
