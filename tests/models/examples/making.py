"""One video by the small model, for tests of what its frames show."""

from typing import Any

from filmstrip.client import Client
from filmstrip.wire import Video

PIPELINE = "longlive-small"


def make(client: Client, **request: Any) -> Video:
    """Generate with the small model, and download the frames, [F, 64, 64, 3]."""
    return client.download(client.run(pipeline_id=PIPELINE, **request).output_path)
