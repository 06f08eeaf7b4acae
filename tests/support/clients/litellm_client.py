"""Generates a video through the real `litellm` package, and prints what came back as JSON.

python litellm_client.py BASE_URL KEY
"""

import json
import os
import sys
import time
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it looks for prices on the internet

import litellm


def main(base_url: str, key: str) -> dict[str, Any]:
    options = {"api_base": base_url, "api_key": key}
    video = litellm.video_generation(prompt="a cat", model="openai/probe", seconds="2", size="96x64", **options)
    options["custom_llm_provider"] = "openai"
    while (status := litellm.video_status(video_id=video.id, **options)).status not in ("completed", "failed"):
        time.sleep(0.1)
    content = litellm.video_content(video_id=video.id, **options)
    return {"status": status.status, "size": status.size, "seconds": status.seconds, "start": content[4:8].decode()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
