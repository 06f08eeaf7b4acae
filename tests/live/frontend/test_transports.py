"""The same bytes reach the model through shared memory, through gRPC, and from uploads in shared memory."""

import hashlib

import numpy as np
import pytest

from filmstrip.contract import Mode
from tests.support.server import Frames, Frontend


@pytest.fixture(params=["server", "grpc_server", "shm_server"])
def anywhere(request: pytest.FixtureRequest) -> Frontend:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Frontend)
    return found


def digest(array: np.ndarray) -> str:  # type: ignore[type-arg]
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_frames_come_back_to_the_byte(anywhere: Frontend, clip: Frames) -> None:
    path = anywhere.upload(clip)
    request = {"pipeline_id": "passthrough", "prompt": "", "input_path": path}
    assert np.array_equal(anywhere.generate_frames(**request, num_frames=30), clip)
    chain = {"pre_processor_id": "passthrough", "post_processor_id": "passthrough"}
    looped = anywhere.generate_frames(**request, **chain, num_frames=70)
    assert np.array_equal(looped, clip[np.arange(70) % 30])


def test_arrays_at_odd_offsets_arrive_whole(anywhere: Frontend) -> None:
    rng = np.random.default_rng(1)
    frames = rng.uniform(-1, 1, (1, 3, 12, 64, 96)).astype("<f4")
    masks = rng.uniform(0, 1, (1, 1, 12, 64, 96)).astype("<f4")
    video = rng.integers(0, 256, (12, 64, 96, 3), np.uint8)
    blob = b"x" + frames.tobytes() + b"yy" + masks.tobytes() + b"z" + video.tobytes()
    spec = {
        "chunk": 1,
        "vace_frames_offset": 1,
        "vace_frames_shape": list(frames.shape),
        "vace_masks_offset": 3 + frames.nbytes,
        "vace_masks_shape": list(masks.shape),
        "input_video_offset": 4 + frames.nbytes + masks.nbytes,
        "input_video_shape": list(video.shape),
    }
    path = anywhere.upload_data(blob)
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 21, "data_blob_path": path}
    made = anywhere.generate_frames(**request, chunk_specs=[spec])
    received = anywhere.probe_entries()[-1]
    assert received["parameters"]["mode"] == Mode.VIDEO
    assert {name: tensor["sha256"] for name, tensor in received["tensors"].items()} == {
        "vace_frames": digest(frames),
        "vace_masks": digest(masks),
        "input_video": digest(video),
    }
    assert np.array_equal(made[9:], video)


def test_locked_arrays_are_trimmed_and_unlocked_ones_are_not(anywhere: Frontend) -> None:
    frames = np.random.default_rng(2).uniform(-1, 1, (1, 3, 20, 64, 96)).astype("<f4")
    path = anywhere.upload_data(frames.tobytes())
    spec = {"chunk": 0, "vace_frames_offset": 0, "vace_frames_shape": list(frames.shape)}
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 12, "data_blob_path": path}
    anywhere.generate_frames(**request, chunk_specs=[spec])
    assert anywhere.probe_entries()[-1]["tensors"]["vace_frames"]["sha256"] == digest(frames[:, :, :12])
    anywhere.generate_frames(**request, chunk_specs=[spec | {"vace_temporally_locked": False}])
    assert anywhere.probe_entries()[-1]["tensors"]["vace_frames"]["sha256"] == digest(frames)


def test_nan_in_the_used_part_is_an_error_that_names_chunk_and_field(anywhere: Frontend) -> None:
    frames = np.zeros((1, 3, 20, 64, 96), "<f4")
    frames[0, 2, 15] = np.nan  # beyond the 12 frames of the chunk
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 24}
    spec = {"chunk": 1, "vace_frames_offset": 0, "vace_frames_shape": list(frames.shape)}
    path = anywhere.upload_data(frames.tobytes())
    assert anywhere.generate(**request, data_blob_path=path, chunk_specs=[spec])[-1][0] == "complete"
    frames[0, 1, 3, 0, 0] = np.inf
    path = anywhere.upload_data(frames.tobytes())
    name, data = anywhere.generate(**request, data_blob_path=path, chunk_specs=[spec])[-1]
    assert name == "error"
    assert "chunk 1" in data["error"]
    assert "vace_frames" in data["error"]


def test_nothing_stays_in_shared_memory(anywhere: Frontend, clip: Frames) -> None:
    path = anywhere.upload(clip)
    before = anywhere.in_shm()
    anywhere.generate_frames(pipeline_id="passthrough", prompt="", input_path=path, num_frames=40)
    assert anywhere.in_shm() == before
    assert anywhere.stored("work", "partial") == []


def test_where_uploads_lie(server: Frontend, shm_server: Frontend, clip: Frames) -> None:
    for frontend, in_shm in ((server, False), (shm_server, True)):
        path = frontend.upload(clip)
        assert (path in frontend.in_shm()) == in_shm
        assert (frontend.data_dir / "videos" / path).exists() != in_shm


def test_the_log_names_the_grpc_transport(grpc_server: Frontend, clip: Frames) -> None:
    grpc_server.generate_frames(pipeline_id="gray", prompt="", input_path=grpc_server.upload(clip), num_frames=12)
    assert "arrays go to Triton as gRPC tensors" in grpc_server.log()


def test_cancel_and_disconnect_reach_the_model_through_grpc(grpc_server: Frontend) -> None:
    chunks = len(grpc_server.probe_entries())
    with grpc_server.stream(pipeline_id="probe", prompt="!sleep 30", num_frames=9):
        grpc_server.wait_for_chunk(chunks)
    grpc_server.wait_idle()
    assert grpc_server.probe_entries()[-1]["event"] == "cancelled"
    assert grpc_server.generate(pipeline_id="probe", prompt="x", num_frames=9)[-1][0] == "complete"
