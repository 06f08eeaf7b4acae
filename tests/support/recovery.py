"""What must hold after every fault, and small helpers of the tests that provoke faults."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton_grpc

from filmstrip import contract
from filmstrip.contract import ChunkParameters, Mode
from tests.support import http
from tests.support.server import Frames, Frontend

PROBE = {"pipeline_id": "probe", "prompt": "x", "num_frames": 33}
# With a comment for each millisecond of silence, this stream is longer than what any kernel buffers for a RawClient
# with small buffers that does not read: the server's writes stall.
NUM_LONG_CHUNKS = 10_000 // 9 + 1
LONG = {
    "pipeline_id": "probe",
    "prompt": "!sleep 0.01",
    "num_frames": 10_000,
    "chunk_specs": [{"chunk": number, "reset_cache": True} for number in range(NUM_LONG_CHUNKS)],
}
SHORT_KEEP_ALIVE_S = 0.001
SOON_S = 5.0
"""A limit that a busy machine keeps; what must not happen takes ten seconds or longer."""
MODELS_WITH_STATE = ("probe", "passthrough")


@contextlib.contextmanager
def assert_recovers(frontend: Frontend, *, inputs: int = 0, outputs: int = 0, timeout_s: float = 30) -> Iterator[None]:
    """Check that the server recovers from whatever happens in the block, without a restart.

    Afterwards the slot is free, no incomplete files are left, shared memory is released, all models are loaded, their
    sequences have ended, and the next generation yields the expected frames.

    Args:
        frontend: the server.
        inputs: number of uploads that the block leaves.
        outputs: number of videos that the block leaves: of generations that completed, or were cancelled after a chunk.
        timeout_s: how long each of these may take.
    """
    stored, shm = set(frontend.stored()), frontend.in_shm()
    yield
    frontend.wait_healthy(timeout_s)
    frontend.wait_idle(timeout_s)
    eventually(lambda: not frontend.stored("partial", "work"), timeout_s)
    new = sorted(set(frontend.stored()) - stored)
    assert sum(name.startswith("outputs/") for name in new) == outputs, new
    assert len(new) == inputs + outputs, new
    eventually(lambda: frontend.in_shm() == shm, timeout_s)
    eventually(lambda: all_models_loaded(frontend), timeout_s)  # a model whose process died is loaded again
    assert {model: open_sequences(frontend, model) for model in MODELS_WITH_STATE} == dict.fromkeys(
        MODELS_WITH_STATE, 0
    )
    assert_serves(frontend)


def assert_serves(frontend: Frontend) -> None:
    """Check that a generation yields the expected frames."""
    frames = frontend.generate_frames(**PROBE, seed=5)
    assert frames.shape == (33, 64, 96, 3)
    assert np.array_equal(frames[[0, 9], 0, 0], [[5, 90, 175], [36, 121, 206]])  # the probe's pattern


def open_sequences(frontend: Frontend, model: str) -> int:
    """How many sequences a model holds, counted by a sequence of one chunk that starts and ends at once."""
    parameters = ChunkParameters(0, 1, 64, 96, Mode.VIDEO)
    chunk = triton_grpc.InferInput(contract.CHUNK.name, [1], contract.CHUNK.dtype)
    chunk.set_data_from_numpy(np.array([parameters.to_json()], np.object_))
    video = triton_grpc.InferInput(contract.INPUT_VIDEO.name, [1, 64, 96, 3], contract.INPUT_VIDEO.dtype)
    video.set_data_from_numpy(np.zeros((1, 64, 96, 3), np.uint8))
    with frontend.triton_client() as client:
        response = client.infer(
            model,
            [chunk, video],
            sequence_id=time.monotonic_ns(),
            sequence_start=True,
            sequence_end=True,
            timeout=2_000_000,  # microseconds; a sequence that has not ended would hold the only slot
            client_timeout=10,
        )
    report = response.as_numpy(contract.REPORT.name)
    assert report is not None
    return int(json.loads(report[0])["open_sequences"])  # this one has ended by then


def all_models_loaded(frontend: Frontend) -> bool:
    """Whether every model is loaded."""
    response = http.get(f"{frontend.url}/api/v1/pipelines")
    return response.status_code == 200 and all(pipeline["loaded"] for pipeline in response.json()["pipelines"])


def eventually(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still false after {timeout_s:g} s"
        time.sleep(0.02)


def open_files_in(folder: Path) -> list[str]:
    """Files of a folder that this process has open, including deleted ones."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(str(folder))]


def is_generating(frontend: Frontend) -> bool:
    """Whether the slot is taken."""
    return bool(http.get(f"{frontend.url}/health").json()["generating"])


def noise(num_frames: int, height: int = 64, width: int = 96) -> Frames:
    """A video of random pixels, [F, H, W, 3]: it hardly compresses, and no two frames are equal."""
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), np.uint8)
