"""Uses a server through the real `openai` package, and prints what came back as JSON.

python openai_client.py BASE_URL KEY FOLDER
"""

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import openai
from PIL import Image

warnings.simplefilter("ignore", DeprecationWarning)  # of the videos API at openai.com


def main(base_url: str, key: str, folder: Path) -> dict[str, Any]:
    client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=60)
    models = [model.id for model in client.models.list()]
    video = client.videos.create_and_poll(model="probe", prompt="a cat", seconds="4", size="96x64")  # type: ignore[arg-type]
    client.videos.download_content(video.id).write_to_file(folder / "video.mp4")
    for variant in ("thumbnail", "spritesheet"):
        client.videos.download_content(video.id, variant=variant).write_to_file(folder / f"{variant}.png")  # type: ignore[arg-type]
    extra = client.videos.create_and_poll(
        model="probe",
        prompt="a dog",
        extra_body={
            "num_frames": 21,
            "seed": 7,
            "denoising_steps": [1000, 500],
            "lora_scales": {"ink": 0.5},
            "chunk_specs": [{"chunk": 0, "text": "x"}, {"chunk": 1, "text": "7"}],
        },
    )
    image = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(image, "PNG")
    with_image = client.videos.create_and_poll(
        model="probe", prompt="a bird", input_reference=("a.png", image.getvalue(), "image/png"), seconds="4"
    )
    with_video = client.videos.create_and_poll(
        model="probe", prompt="a fish", input_reference=("a.mp4", (folder / "video.mp4").read_bytes(), "video/mp4")
    )
    pages = [one.id for one in client.videos.list(limit=1)][:10]
    ascending = [one.id for one in client.videos.list(limit=2, order="asc")][:10]
    slow = client.videos.create(model="probe", prompt="!sleep 0.5", extra_body={"num_frames": 400})
    refusals = {
        "early": _refusal(lambda: client.videos.download_content(slow.id)),
        "deleted": _refusal(lambda: (client.videos.delete(slow.id), client.videos.retrieve(slow.id))),
        "model": _refusal(lambda: client.videos.create(model="sora-2", prompt="x")),
        "size": _refusal(lambda: client.videos.create(model="probe", prompt="x", size="4096x4096")),
        "knob": _refusal(lambda: client.videos.create(prompt="x", model="probe", extra_body={"guidance_scale": 5})),
        "remix": _refusal(lambda: client.videos.remix(video.id, prompt="x")),
        "key": _refusal(lambda: client.with_options(api_key="wrong").videos.retrieve(video.id)),
    }
    return {
        "version": openai.__version__,
        "models": models,
        "video": video.to_dict(),
        "extra": extra.to_dict(),
        "with_image": with_image.to_dict(),
        "with_video": with_video.to_dict(),
        "pages": pages,
        "ascending": ascending,
        "refusals": refusals,
    }


def _refusal(call: Any) -> dict[str, Any] | None:
    try:
        call()
    except openai.APIStatusError as error:
        return {"kind": type(error).__name__, "status": error.status_code, "body": error.body}
    return None


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
