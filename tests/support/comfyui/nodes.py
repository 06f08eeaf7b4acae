"""The nodes as tests call them: by keywords, as ComfyUI does."""

import json
from typing import Any

from comfyui.chunk_specs import Specs
from comfyui.client import PipelineRef
from comfyui.nodes_chunks import FilmstripChunkSpec, FilmstripPromptSchedule
from comfyui.nodes_generate import FilmstripGenerate, FilmstripGenerateVideo
from comfyui.nodes_server import FilmstripPipeline, FilmstripServer
from tests.support.server import Frontend

NODE_ID = "17"


def pipeline(server: Frontend | str, id: str = "probe", token: str = "") -> PipelineRef:
    url = server if isinstance(server, str) else server.url
    (handle,) = FilmstripServer().check(address=url, token=token, timeout_s=60.0, unique_id=NODE_ID)
    return FilmstripPipeline().pick(server=handle, pipeline_id=id)[0]


def generate(of: PipelineRef, **inputs: Any) -> tuple[Any, int, dict[str, Any]]:
    """Images, their number, and the report as it was read back."""
    arguments = {"prompt": "a cat", "num_frames": 33, "seed": 42, "unique_id": NODE_ID, **inputs}
    images, count, report = FilmstripGenerate().generate(pipeline=of, **arguments)
    return images, count, json.loads(report)


def generate_video(of: PipelineRef, **inputs: Any) -> dict[str, Any]:
    arguments = {
        "prompt": "a cat",
        "num_frames": 33,
        "seed": 42,
        "fps": 16.0,
        "filename_prefix": "video/Filmstrip",
        **inputs,
    }
    return FilmstripGenerateVideo().generate(pipeline=of, unique_id=NODE_ID, **arguments)


def chunk_spec(chunk: int, **inputs: Any) -> Specs:
    return FilmstripChunkSpec().add(chunk=chunk, **inputs)[0]


def schedule(text: str, **inputs: Any) -> Specs:
    return FilmstripPromptSchedule().add(schedule=text, **inputs)[0]
