"""The rules for requests that only apply with a pipeline, a file or a parser: a request for each, on a real server."""

import numpy as np
import pytest

from tests.support import http
from tests.support.http import GENERATE
from tests.support.server import Frames, Frontend

SHAPE = [1, 3, 12, 64, 96]
BYTES = 12 * 64 * 96 * 3 * 4


@pytest.fixture(scope="module")
def clip_path(server: Frontend, clip: Frames) -> str:
    return server.upload(clip)


@pytest.fixture(scope="module")
def blob_path(server: Frontend) -> str:
    return server.upload_data(bytes(BYTES))


def probe(**fields: object) -> dict[str, object]:
    return {"pipeline_id": "probe", "prompt": "x", "num_frames": 33, **fields}


def vace(chunk: int = 0, **fields: object) -> dict[str, object]:
    return {"chunk": chunk, "vace_frames_offset": 0, "vace_frames_shape": SHAPE, **fields}


# Limits of single fields are tested in tests/unit/frontend/test_schema.py.
REFUSED = [
    # request, status, code, field, words of the message
    ({"pipeline_id": "probe"}, 422, "invalid_field", "prompt", ["required"]),
    (probe(surprise=1), 422, "invalid_field", "surprise", ["unknown field"]),
    (probe(num_frames="48"), 422, "invalid_field", "num_frames", ["number", "48"]),
    (probe(num_frames=10001), 422, "invalid_field", "num_frames", ["10000", "10001"]),
    (probe(chunk_specs=[{"chunk": 0, "seed": -1}]), 422, "invalid_field", "chunk_specs[0].seed", ["-1"]),
    (probe(pipeline_id="nope"), 404, "unknown_pipeline", "pipeline_id", ["nope", "passthrough"]),
    (probe(pre_processor_id="nope"), 404, "unknown_pipeline", "pre_processor_id", ["nope"]),
    (probe(post_processor_id="../gray"), 404, "unknown_pipeline", "post_processor_id", ["../gray"]),
    (probe(post_processor_id="probe"), 422, "invalid_field", "post_processor_id", ["frame processor"]),
    (probe(height=100), 422, "invalid_field", "height", ["96", "112"]),
    (probe(lora_scales={"other.safetensors": 1}), 422, "invalid_field", "lora_scales", ["ink", "neon", "other"]),
    (probe(input_path="video-" + 32 * "0"), 404, "unknown_path", "input_path", ["video-000"]),
    (probe(data_blob_path="blob-" + 32 * "f"), 404, "unknown_path", "data_blob_path", []),
    (probe(vace_use_input_video=True), 422, "invalid_field", "input_path", ["vace_use_input_video", "chunk 0"]),
    (probe(pre_processor_id="gray"), 422, "invalid_field", "input_path", ["pre-processor"]),
    ({"pipeline_id": "gray", "prompt": ""}, 422, "invalid_field", "input_path", ["gray needs an input video"]),
    (probe(chunk_specs=[{"chunk": 3}]), 422, "invalid_field", "chunk_specs[0].chunk", ["chunk 3", "3 chunks"]),
    (probe(chunk_specs=[{"chunk": 1}, {"chunk": 1}]), 422, "invalid_field", "chunk_specs[1].chunk", ["chunk 1"]),
    (
        probe(chunk_specs=[{"chunk": 2, "text": "a", "prompts": [{"text": "b"}]}]),
        *(422, "invalid_field", "chunk_specs[0].prompts", ["chunk 2", "text"]),
    ),
    (probe(chunk_specs=[vace()]), 422, "invalid_field", "chunk_specs[0].vace_frames_offset", ["data_blob_path"]),
    (
        probe(chunk_specs=[{"chunk": 0, "first_frame_image": "/etc/passwd"}]),
        *(404, "unknown_path", "chunk_specs[0].first_frame_image", []),
    ),
    (
        probe(chunk_specs=[{"chunk": 0, "vace_ref_images": ["asset-" + 32 * "1"]}]),
        *(404, "unknown_path", "chunk_specs[0].vace_ref_images", []),
    ),
]


def test_refused_requests(server: Frontend, subtests: pytest.Subtests) -> None:
    for request, status, code, field, words in REFUSED:
        with subtests.test(str(request)[:120]):
            response = http.post(server.url + GENERATE, json=request)
            assert response.status_code == status, response.text
            body = response.json()
            assert body["error"] == {"code": code, "message": body["detail"], "field": field}
            assert all(word in body["detail"] for word in words), body["detail"]
            assert len(response.content) < 1000
    assert server.post(**probe(num_frames=0)).status_code == 422  # not 409: the slot is free


BLOB_RULES = [
    ({"vace_frames_offset": 1}, "vace_frames_offset", str(BYTES)),
    ({"vace_frames_offset": None}, "vace_frames_offset", "missing"),
    ({"vace_frames_shape": None}, "vace_frames_shape", "missing"),
    ({"vace_frames_offset": -1}, "vace_frames_offset", "-1"),
    ({"vace_frames_shape": [1, 3, 12, 64]}, "vace_frames_shape", "5"),
    ({"vace_frames_shape": [1, 3, 0, 64, 96]}, "vace_frames_shape[2]", "0"),
    ({"vace_frames_shape": [1, 3, 12, 32, 96]}, "vace_frames_shape", "96x64"),
    ({"vace_frames_shape": [1, 2, 12, 64, 96]}, "vace_frames_shape", "channels"),
    ({"vace_frames_shape": [2, 3, 6, 64, 96]}, "vace_frames_shape", "batch"),
    ({"vace_masks_offset": 0, "vace_masks_shape": [1, 3, 1, 64, 96]}, "vace_masks_shape", "channels"),
    ({"input_video_offset": 0, "input_video_shape": [1, 32, 96, 3]}, "input_video_shape", "96x64"),
    ({"input_video_offset": 0, "input_video_shape": [1, 64, 96, 1]}, "input_video_shape", "channel"),
    ({"input_video_offset": BYTES, "input_video_shape": [1, 64, 96, 3]}, "input_video_offset", "ends at"),
]


def test_refused_arrays(server: Frontend, blob_path: str, subtests: pytest.Subtests) -> None:
    for change, field, word in BLOB_RULES:
        with subtests.test(str(change)):
            spec = {key: value for key, value in vace(chunk=1, **change).items() if value is not None}
            response = server.post(**probe(data_blob_path=blob_path, chunk_specs=[{"chunk": 0}, spec]))
            assert response.status_code == 422, response.text
            assert response.json()["error"]["field"] == f"chunk_specs[1].{field}"
            assert word in response.json()["detail"]


def test_arrays_up_to_the_last_byte_are_accepted(server: Frontend, blob_path: str) -> None:
    assert server.generate(**probe(data_blob_path=blob_path, chunk_specs=[vace(chunk=1)]))[-1][0] == "complete"


def test_a_name_of_another_kind_is_unknown(server: Frontend, clip_path: str, blob_path: str) -> None:
    output = server.generate(**probe(num_frames=1))[-1][1]["output_path"]
    for field, name in (("input_path", blob_path), ("input_path", output), ("data_blob_path", clip_path)):
        assert server.post(**probe(**{field: name})).status_code == 404
    for name in (clip_path, blob_path):
        answer = http.get(f"{server.url}/api/v1/generate/download", params={"path": name})
        assert answer.status_code == 404


def test_models_need_three_channels(server: Frontend) -> None:
    for channels in (1, 4):
        path = server.upload(np.zeros((2, 16, 16, channels), np.uint8))
        response = server.post(pipeline_id="passthrough", prompt="", input_path=path)
        assert response.status_code == 422
        assert f"{channels} channel" in response.json()["detail"]


def test_frame_processors_refuse_what_they_do_not_support(
    server: Frontend, clip_path: str, subtests: pytest.Subtests
) -> None:
    for fields in (
        {"kv_cache_attention_bias": 0.5},
        {"vace_context_scale": 0.5},
        {"lora_scales": {"ink": 1}},
        {"chunk_specs": [{"chunk": 0, "reset_cache": True}]},
        {"chunk_specs": [{"chunk": 0, "transition_target_prompts": [{"text": "a"}]}]},
        {"chunk_specs": [{"chunk": 0, "vace_temporally_locked": False}]},
    ):
        with subtests.test(str(fields)):
            response = server.post(pipeline_id="gray", prompt="x", input_path=clip_path, **fields)
            assert response.status_code == 422, response.text
            assert "its features: frame_processor" in response.json()["detail"]


def test_frame_processors_accept_defaults_and_prompts(server: Frontend, clip_path: str) -> None:
    specs = [{"chunk": 0, "text": "a", "seed": 42, "reset_cache": False}, {"chunk": 1, "prompts": [{"text": "b"}]}]
    defaults = {"seed": 42, "noise_scale": 0.7, "manage_cache": True, "lora_scales": {}, "vace_use_input_video": False}
    request = {"pipeline_id": "gray", "prompt": [{"text": "a"}], "num_frames": 24, "input_path": clip_path}
    assert server.generate(**request, **defaults, chunk_specs=specs)[-1][0] == "complete"
