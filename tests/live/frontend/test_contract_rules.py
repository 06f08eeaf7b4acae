"""The rules of the HTTP contract, one request each, on the real server; nothing of them starts a stream."""

import numpy as np
import pytest

from tests.support import http
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


REFUSED = [
    # request, status, code, field, words of the message
    ({}, 422, "invalid_field", "pipeline_id", ["required"]),
    ({"pipeline_id": "probe"}, 422, "invalid_field", "prompt", ["required"]),
    (probe(pipeline_id="nope"), 404, "unknown_pipeline", "pipeline_id", ["nope", "passthrough"]),
    (probe(pre_processor_id="nope"), 404, "unknown_pipeline", "pre_processor_id", ["nope"]),
    (probe(post_processor_id="../gray"), 404, "unknown_pipeline", "post_processor_id", ["../gray"]),
    (probe(post_processor_id="probe"), 422, "invalid_field", "post_processor_id", ["frame processor"]),
    (probe(surprise=1), 422, "invalid_field", "surprise", ["unknown field"]),
    (probe(num_frames=0), 422, "invalid_field", "num_frames", ["1", "0"]),
    (probe(num_frames=10001), 422, "invalid_field", "num_frames", ["10000", "10001"]),
    (probe(num_frames="48"), 422, "invalid_field", "num_frames", ["number", "48"]),
    (probe(num_frames=True), 422, "invalid_field", "num_frames", ["number"]),
    (probe(num_frames=4.5), 422, "invalid_field", "num_frames", ["4.5"]),
    (probe(height=100), 422, "invalid_field", "height", ["96", "112"]),
    (probe(width=48), 422, "invalid_field", "width", ["64"]),
    (probe(width=4096), 422, "invalid_field", "width", ["2048"]),
    (probe(seed=-2), 422, "invalid_field", "seed", ["-2"]),
    (probe(seed=2**64), 422, "invalid_field", "seed", [str(2**64 - 1), str(2**64)]),
    (probe(chunk_specs=[{"chunk": 0, "seed": -1}]), 422, "invalid_field", "chunk_specs[0].seed", ["-1"]),
    (probe(noise_scale=1.1), 422, "invalid_field", "noise_scale", ["1.1"]),
    (probe(kv_cache_attention_bias=0), 422, "invalid_field", "kv_cache_attention_bias", ["greater than 0"]),
    (probe(prompt_interpolation_method="cubic"), 422, "invalid_field", "prompt_interpolation_method", ["slerp"]),
    (probe(vace_context_scale=2.5), 422, "invalid_field", "vace_context_scale", ["2.5"]),
    (probe(denoising_steps=[500, 500]), 422, "invalid_field", "denoising_steps", ["fall"]),
    (probe(denoising_steps=[1001]), 422, "invalid_field", "denoising_steps[0]", ["1000"]),
    (probe(prompt=[{"text": "a", "weight": 0}]), 422, "invalid_field", "prompt", ["weight"]),
    (probe(prompt=[{"text": "a", "weight": 101}]), 422, "invalid_field", "prompt[0].weight", ["101"]),
    (probe(prompt=[]), 422, "invalid_field", "prompt", ["1"]),
    (probe(lora_scales={"other.safetensors": 1}), 422, "invalid_field", "lora_scales", ["ink", "neon", "other"]),
    (probe(input_path="video-" + 32 * "0"), 404, "unknown_path", "input_path", ["video-000"]),
    (probe(input_path="/etc/passwd"), 404, "unknown_path", "input_path", []),
    (probe(input_path="../../data/lock"), 404, "unknown_path", "input_path", []),
    (probe(data_blob_path="blob-" + 32 * "f"), 404, "unknown_path", "data_blob_path", []),
    (probe(vace_use_input_video=True), 422, "invalid_field", "input_path", ["vace_use_input_video", "chunk 0"]),
    (probe(pre_processor_id="gray"), 422, "invalid_field", "input_path", ["pre-processor"]),
    ({"pipeline_id": "gray", "prompt": ""}, 422, "invalid_field", "input_path", ["gray needs an input video"]),
    (probe(chunk_specs=[{}]), 422, "invalid_field", "chunk_specs[0].chunk", ["required"]),
    (probe(chunk_specs=[{"chunk": -1}]), 422, "invalid_field", "chunk_specs[0].chunk", ["-1"]),
    (probe(chunk_specs=[{"chunk": 3}]), 422, "invalid_field", "chunk_specs[0].chunk", ["chunk 3", "3 chunks"]),
    (probe(chunk_specs=[{"chunk": 1}, {"chunk": 1}]), 422, "invalid_field", "chunk_specs[1].chunk", ["chunk 1"]),
    (
        probe(chunk_specs=[{"chunk": 2, "text": "a", "prompts": [{"text": "b"}]}]),
        422,
        "invalid_field",
        "chunk_specs[0].prompts",
        ["chunk 2", "text"],
    ),
    (probe(chunk_specs=[vace()]), 422, "invalid_field", "chunk_specs[0].vace_frames_offset", ["data_blob_path"]),
    (
        probe(chunk_specs=[{"chunk": 0, "first_frame_image": "/etc/passwd"}]),
        404,
        "unknown_path",
        "chunk_specs[0].first_frame_image",
        [],
    ),
    (
        probe(chunk_specs=[{"chunk": 0, "vace_ref_images": ["asset-" + 32 * "1"]}]),
        404,
        "unknown_path",
        "chunk_specs[0].vace_ref_images",
        [],
    ),
]


@pytest.mark.parametrize(("request_", "status", "code", "field", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_it_is_refused(
    server: Frontend, request_: dict[str, object], status: int, code: str, field: str, words: list[str]
) -> None:
    answer = http.post(f"{server.url}/api/v1/generate", json=request_)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["error"] == {"code": code, "message": body["detail"], "field": field}
    for word in words:
        assert word in body["detail"]
    assert len(answer.content) < 1000
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


@pytest.mark.parametrize(("change", "field", "word"), BLOB_RULES)
def test_arrays_outside_the_rules_are_refused(
    server: Frontend, blob_path: str, change: dict[str, object], field: str, word: str
) -> None:
    spec = {key: value for key, value in vace(chunk=1, **change).items() if value is not None}
    answer = server.post(**probe(data_blob_path=blob_path, chunk_specs=[{"chunk": 0}, spec]))
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == f"chunk_specs[1].{field}"
    assert word in answer.json()["detail"]


def test_arrays_up_to_the_last_byte_are_taken(server: Frontend, blob_path: str) -> None:
    assert server.generate(**probe(data_blob_path=blob_path, chunk_specs=[vace(chunk=1)]))[-1][0] == "complete"


def test_a_name_of_another_kind_is_unknown(server: Frontend, clip_path: str, blob_path: str) -> None:
    output = server.generate(**probe(num_frames=1))[-1][1]["output_path"]
    for field, name in (("input_path", blob_path), ("input_path", output), ("data_blob_path", clip_path)):
        assert server.post(**probe(**{field: name})).status_code == 404
    for name in (clip_path, blob_path):
        answer = http.get(f"{server.url}/api/v1/generate/download", params={"path": name})
        assert answer.status_code == 404


@pytest.mark.parametrize("channels", [1, 4])
def test_models_take_three_channels(server: Frontend, channels: int) -> None:
    path = server.upload(np.zeros((2, 16, 16, channels), np.uint8))
    answer = server.post(pipeline_id="passthrough", prompt="", input_path=path)
    assert answer.status_code == 422
    assert f"{channels} channel" in answer.json()["detail"]


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_cache_attention_bias": 0.5},
        {"vace_context_scale": 0.5},
        {"lora_scales": {"ink": 1}},
        {"chunk_specs": [{"chunk": 0, "reset_cache": True}]},
        {"chunk_specs": [{"chunk": 0, "transition_target_prompts": [{"text": "a"}]}]},
        {"chunk_specs": [{"chunk": 0, "vace_temporally_locked": False}]},
    ],
)
def test_what_a_frame_processor_does_not_support_is_refused(
    server: Frontend, clip_path: str, fields: dict[str, object]
) -> None:
    answer = server.post(pipeline_id="gray", prompt="x", input_path=clip_path, **fields)
    assert answer.status_code == 422, answer.text
    assert "its features: frame_processor" in answer.json()["detail"]


def test_defaults_and_prompts_are_no_features(server: Frontend, clip_path: str) -> None:
    specs = [{"chunk": 0, "text": "a", "seed": 42, "reset_cache": False}, {"chunk": 1, "prompts": [{"text": "b"}]}]
    defaults = {"seed": 42, "noise_scale": 0.7, "manage_cache": True, "lora_scales": {}, "vace_use_input_video": False}
    request = {"pipeline_id": "gray", "prompt": [{"text": "a"}], "num_frames": 24, "input_path": clip_path}
    assert server.generate(**request, **defaults, chunk_specs=specs)[-1][0] == "complete"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_json"),
        (b"{", 400, "bad_json"),
        (b"\xff\xfe{}", 400, "bad_json"),
        (b"[" * 100_000, 400, "bad_json"),
        (b'{"pipeline_id": "probe", "prompt": "x", "noise_scale": NaN}', 422, "invalid_field"),
        (b'{"pipeline_id": "probe", "prompt": "x", "num_frames": 1e400}', 422, "invalid_field"),
        (b"[]", 422, "invalid_field"),
        (b'{"pipeline_id": "probe", "prompt": "' + b"x" * 5_000_000 + b'"}', 422, "invalid_field"),
        (b'{"' + b"x" * 5_000_000 + b'": 1}', 422, "invalid_field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_no_request(server: Frontend, body: bytes, status: int, code: str) -> None:
    answer = http.post(f"{server.url}/api/v1/generate", content=body)
    assert answer.status_code == status, answer.text[:300]
    assert answer.json()["error"]["code"] == code
    assert len(answer.content) < 1000


def test_the_chunks_of_a_request_reach_the_model_as_planned(server: Frontend, clip_path: str) -> None:
    """Sticky prompts, one-chunk overrides, a transition, LoRA names, resets: as the model receives them."""
    specs = [
        {"chunk": 1, "text": "b", "seed": 7, "lora_scales": {"loras/ink.safetensors": 0.5}},
        {"chunk": 2, "transition_target_prompts": [{"text": "c", "weight": 30}], "transition_num_steps": 2},
        {"chunk": 4, "reset_cache": True},
    ]
    before = len(server.probe_entries())
    server.generate(**probe(prompt="a", num_frames=9 + 12 + 12 + 12 + 9 + 1, chunk_specs=specs))
    told = [entry["parameters"] for entry in server.probe_entries()[before:]]
    assert [chunk["num_frames"] for chunk in told] == [9, 12, 12, 12, 9, 12]
    assert [chunk["reset"] for chunk in told] == [True, False, False, False, True, False]
    assert [chunk["prompts"][0][0] for chunk in told] == ["a", "b", "b", "b", "c", "c"]
    assert [chunk["transition"] and chunk["transition"]["step"] for chunk in told] == [None, None, 0, 1, None, None]
    assert [chunk["seed"] for chunk in told] == [42, 7, 42, 42, 42, 42]
    assert [chunk["lora_scales"] for chunk in told] == [{}, {"ink": 0.5}, {}, {}, {}, {}]
    assert told[2]["transition"]["target"] == [["c", 30.0]]
