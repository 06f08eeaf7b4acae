"""Memory does not grow with the blob, the input or the number of frames."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.support import http
from tests.support.server import Frontend
from tests.unit.filmstrip.video_samples import encode

MIB = 2**20
GROWTH = 64 * MIB


@pytest.fixture
def fresh(server: Frontend, start_frontend: Callable[..., Frontend]) -> Frontend:
    frontend = start_frontend("--triton-url", server.triton_url)
    frontend.wait_healthy()
    frontend.upload_data(bytes(MIB))  # what the first request allocates once
    frontend.generate_frames(pipeline_id="probe", prompt="x", num_frames=9)
    return frontend


@contextmanager
def growing_less_than(frontend: Frontend, limit: int) -> Iterator[None]:
    """The frontend's resident memory stays within the limit all the time."""
    process = psutil.Process(frontend.process.pid)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()
    assert peak - before < limit, f"{(peak - before) / MIB:.0f} MiB"


def test_the_largest_blob_is_stored_and_used(fresh: Frontend) -> None:
    """2 GiB to the byte pass; the last frames of it are what a chunk reads."""
    piece, size = bytes(MIB), 2 * 1024**3
    shape = [1, 3, 12, 64, 96]
    with growing_less_than(fresh, GROWTH):
        answer = http.post(
            f"{fresh.url}/api/v1/generate/upload-data", content=(piece for _ in range(size // MIB)), timeout=120
        )
        assert answer.json()["size_bytes"] == size
        path = answer.json()["data_blob_path"]
        offset = size - 4 * int(np.prod(shape))
        spec = {"chunk": 0, "vace_frames_shape": shape, "vace_frames_offset": offset}
        events = fresh.generate(pipeline_id="probe", prompt="x", num_frames=12, data_blob_path=path, chunk_specs=[spec])
        assert events[-1][0] == "complete"
    (fresh.data_dir / "blobs" / path).unlink()


def test_one_byte_over_the_largest_blob_is_refused_by_its_length(fresh: Frontend) -> None:
    headers = {"Content-Length": str(2 * 1024**3 + 1)}
    piece = bytes(MIB)
    pieces = (piece for _ in range(2048 + 1))
    try:
        answer = http.post(f"{fresh.url}/api/v1/generate/upload-data", content=pieces, headers=headers)
    except httpx.WriteError:
        return  # closed while still writing, as after 64 MiB it may be
    assert answer.status_code == 413
    assert fresh.stored("partial") == []


def test_one_frame_looped_to_a_thousand(fresh: Frontend) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 320, 576, 3), np.uint8)
    path = fresh.upload(frame)
    with growing_less_than(fresh, GROWTH):
        events = fresh.generate(pipeline_id="passthrough", prompt="", num_frames=1000, input_path=path)
        output = events[-1][1]["output_path"]
        received = 0
        with http.stream("GET", f"{fresh.url}/api/v1/generate/download", params={"path": output}) as answer:
            for piece in answer.iter_raw():
                received += len(piece)
    assert received == 20 + 1000 * frame.nbytes
    (fresh.data_dir / "outputs" / output).unlink()


def test_decoding_a_long_video_file(fresh: Frontend, tmp_path: Path) -> None:
    """300 MiB of frames from a file of a few megabytes pass through the decoder, not through the server."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 120, 160, 3), np.uint8).repeat(6, 1).repeat(6, 2)
    path = encode(tmp_path / "long.mp4", picture.repeat(160, 0), options={"preset": "ultrafast"})
    with growing_less_than(fresh, GROWTH), path.open("rb") as file:
        answer = http.post(
            f"{fresh.url}/api/v1/generate/upload", content=file, headers={"Content-Type": "video/mp4"}, timeout=110
        )
    assert answer.json()["shape"] == [160, 720, 960, 3]
    (path,) = (fresh.data_dir / "videos").glob(f"{answer.json()['input_path']}*")
    path.unlink()


def test_encoding_a_long_video(fresh: Frontend) -> None:
    """200 MiB of frames pass through the encoder, not through the server."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 40, 72, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    path = fresh.upload(frames)
    events = fresh.generate(pipeline_id="passthrough", prompt="", num_frames=400, input_path=path)
    output = events[-1][1]["output_path"]
    with growing_less_than(fresh, GROWTH):
        answer = http.get(
            f"{fresh.url}/api/v1/generate/download",
            params={"path": output, "format": "mp4", "crf": 40},
            headers={"Range": "bytes=0-99"},
            timeout=110,
        )
    assert answer.status_code == 206
    (fresh.data_dir / "outputs" / output).unlink()
