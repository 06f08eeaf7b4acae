"""What must hold after every fault, and the small things that tests of faults share."""

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
# With a comment in each millisecond of silence, this stream is longer than what any kernel buffers for a narrow
# RawClient that does not read: the server's writes stall.
NUM_LONG_CHUNKS = 10_000 // 9 + 1
LONG = {
    "pipeline_id": "probe",
    "prompt": "!sleep 0.01",
    "num_frames": 10_000,
    "chunk_specs": [{"chunk": number, "reset_cache": True} for number in range(NUM_LONG_CHUNKS)],
}
CHATTY_S = 0.001
SOON_S = 5.0
"""A limit that a busy machine keeps. What must not happen takes ten seconds or longer, so the limit excludes it."""
MODELS_WITH_STATE = ("probe", "passthrough")


@contextlib.contextmanager
def harmless(frontend: Frontend, *, inputs: int = 0, outputs: int = 0, timeout_s: float = 30) -> Iterator[None]:
    """Whatever happens in the block, the server is as good as new after it, without a restart.

    The slot is free, nothing half-written lies about, shared memory is given back, Triton's sequences are ended and
    the next generation gives what it should.

    Args:
        frontend: the server.
        inputs: whole uploads that the block leaves.
        outputs: videos that the block leaves: of generations that completed, or were cancelled with frames made.
        timeout_s: how long the server may take to get over it.
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
    eventually(lambda: all_loaded(frontend), timeout_s)  # a model whose process died is loaded anew
    assert {model: open_sequences(frontend, model) for model in MODELS_WITH_STATE} == dict.fromkeys(
        MODELS_WITH_STATE, 0
    )
    assert_serves(frontend)


def assert_serves(frontend: Frontend) -> None:
    """A generation gives exactly what it should."""
    made = frontend.make(**PROBE, seed=5)
    assert made.shape == (33, 64, 96, 3)
    assert np.array_equal(made[[0, 9], 0, 0], [[5, 90, 175], [36, 121, 206]])  # the probe's pattern


def open_sequences(frontend: Frontend, model: str) -> int:
    """Sequences that a model holds for others: asked with a sequence of one chunk, which is its start and its end."""
    told = ChunkParameters(0, 1, 64, 96, Mode.VIDEO)
    chunk = triton_grpc.InferInput(contract.CHUNK.name, [1], contract.CHUNK.dtype)
    chunk.set_data_from_numpy(np.array([told.to_json()], np.object_))
    video = triton_grpc.InferInput(contract.INPUT_VIDEO.name, [1, 64, 96, 3], contract.INPUT_VIDEO.dtype)
    video.set_data_from_numpy(np.zeros((1, 64, 96, 3), np.uint8))
    with frontend.triton_client() as client:
        answer = client.infer(
            model,
            [chunk, video],
            sequence_id=time.monotonic_ns(),
            sequence_start=True,
            sequence_end=True,
            timeout=2_000_000,  # a sequence that was not ended would hold the one slot
            client_timeout=10,
        )
    report = answer.as_numpy(contract.REPORT.name)
    assert report is not None
    return int(json.loads(report[0])["open_sequences"])  # its own has ended by then


def all_loaded(frontend: Frontend) -> bool:
    """Whether chunks can be sent to every model."""
    answer = http.get(f"{frontend.url}/api/v1/pipelines")
    return answer.status_code == 200 and all(pipeline["loaded"] for pipeline in answer.json()["pipelines"])


def eventually(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def held_open(folder: Path) -> list[str]:
    """Files of a folder that this process has open, also those whose name is gone."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(str(folder))]


def is_generating(frontend: Frontend) -> bool:
    """Whether the slot is taken."""
    return bool(http.get(f"{frontend.url}/health").json()["generating"])


def noise(num_frames: int, height: int = 64, width: int = 96) -> Frames:
    """A video of random pixels: it hardly compresses, and no frame equals another."""
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), np.uint8)
