"""The API without Filmstrip's client: httpx, and the event stream read line by line."""

import json
import os

import httpx
import numpy as np

SERVER = os.environ.get("FILMSTRIP_SERVER") or "http://127.0.0.1:8000"
REQUEST = {
    "pipeline_id": "longlive-small",
    "prompt": "a yellow square moving down on a purple background",
    "num_frames": 45,
    "seed": 1,
}

with httpx.Client(base_url=SERVER, timeout=60) as http:
    fields: dict[str, str] = {}
    with http.stream("POST", "/api/v1/generate", json=REQUEST) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith(":"):
                continue  # a comment that keeps the connection open
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            else:  # an empty line ends an event
                print(fields["event"], fields["data"])
    if fields["event"] != "complete":
        raise SystemExit("the generation did not complete")
    path = json.loads(fields["data"])["output_path"]
    download = http.get("/api/v1/generate/download", params={"path": path}).raise_for_status().content

# The header is five 32-bit numbers: the number of dimensions (4), then frames, height, width, channels.
dimensions = np.frombuffer(download[:20], "<u4").tolist()
video = np.frombuffer(download[20:], np.uint8).reshape(dimensions[1:])
np.save("plain_http.npy", video)
print(video.shape)
