"""What chunk specs do: parameters and arrays of single chunks, as the model receives them."""

import hashlib
from typing import Any

import numpy as np

from tests.support.recovery import PROBE, noise
from tests.support.server import Frontend

PASSTHROUGH = {"pipeline_id": "passthrough", "prompt": ""}


def probe_chunks(server: Frontend, **fields: object) -> list[dict[str, Any]]:
    """Run a generation of the probe; what the model received for each chunk."""
    before = len(server.probe_entries())
    assert server.generate(**PROBE | fields)[-1][0] == "complete"
    return server.probe_entries()[before:]


def test_chunks_reach_the_model_as_planned(server: Frontend) -> None:
    """Prompts that last, overrides of one chunk, a transition, LoRA names and resets."""
    specs = [
        {"chunk": 1, "text": "b", "seed": 7, "lora_scales": {"loras/ink.safetensors": 0.5}},
        {"chunk": 2, "transition_target_prompts": [{"text": "c", "weight": 30}], "transition_num_steps": 2},
        {"chunk": 4, "reset_cache": True},
    ]
    num_frames = 9 + 12 + 12 + 12 + 9 + 1
    chunks = [
        entry["parameters"] for entry in probe_chunks(server, prompt="a", num_frames=num_frames, chunk_specs=specs)
    ]
    assert [chunk["num_frames"] for chunk in chunks] == [9, 12, 12, 12, 9, 12]
    assert [chunk["reset"] for chunk in chunks] == [True, False, False, False, True, False]
    assert [chunk["prompts"][0][0] for chunk in chunks] == ["a", "b", "b", "b", "c", "c"]
    steps = [chunk["transition"] and chunk["transition"]["step"] for chunk in chunks]
    assert steps == [None, None, 0, 1, None, None]
    assert [chunk["seed"] for chunk in chunks] == [42, 7, 42, 42, 42, 42]
    assert [chunk["lora_scales"] for chunk in chunks] == [{}, {"ink": 0.5}, {}, {}, {}, {}]
    assert chunks[2]["transition"]["target"] == [["c", 30.0]]


def test_a_transition_of_no_steps_happens_at_once(server: Frontend) -> None:
    spec = {"chunk": 1, "transition_target_prompts": [{"text": "b"}], "transition_num_steps": 0}
    chunks = [entry["parameters"] for entry in probe_chunks(server, chunk_specs=[spec])]
    assert [chunk["prompts"][0][0] for chunk in chunks] == ["x", "x", "b"]
    assert [chunk["transition"] and chunk["transition"]["num_steps"] for chunk in chunks] == [None, 0, None]


def test_masks_without_frames_start_at_any_byte(server: Frontend) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (1, 1, 12, 64, 96)).astype("<f4")
    digest = hashlib.sha256(masks.tobytes()).hexdigest()
    for offset in range(4):
        blob = server.upload_data(bytes(offset) + masks.tobytes())
        spec = {"chunk": 0, "vace_masks_offset": offset, "vace_masks_shape": masks.shape}
        (chunk,) = probe_chunks(server, num_frames=12, data_blob_path=blob, chunk_specs=[spec])[:1]
        assert chunk["tensors"]["vace_masks"] == {"sha256": digest, "shape": list(masks.shape)}
        assert "vace_frames" not in chunk["tensors"]


def test_a_chunks_own_video_is_trimmed_to_the_chunk(server: Frontend) -> None:
    video, own = noise(24), noise(20)
    spec = {"chunk": 0, "input_video_offset": 0, "input_video_shape": own.shape}
    paths = {"input_path": server.upload(video), "data_blob_path": server.upload_data(own.tobytes())}
    frames = server.generate_frames(**PASSTHROUGH, **paths, num_frames=24, chunk_specs=[spec])
    assert np.array_equal(frames, np.concatenate([own[:12], video[12:]]))


def test_a_chunks_own_video_has_the_size_of_the_others(server: Frontend) -> None:
    own = noise(12, 32, 48)
    spec = {"chunk": 1, "input_video_offset": 0, "input_video_shape": own.shape}
    paths = {"input_path": server.upload(noise(24)), "data_blob_path": server.upload_data(own.tobytes())}
    data = server.generate(**PASSTHROUGH, **paths, num_frames=24, chunk_specs=[spec])[-1][1]
    assert data["video_shape"] == [24, 64, 96, 3]
    assert server.download(data["output_path"]).shape == (24, 64, 96, 3)
