"""Requests to the pipeline `tiny` with all that may come with them."""

import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from filmstrip.wire import BlobBuilder
from tests.support import http
from tests.support.server import Frames, Frontend

HEIGHT = WIDTH = 64
SIDES = (HEIGHT, WIDTH)
FIRST, CHUNK = 9, 12
"""Pixel frames of a first chunk in text mode, and of any other."""


def video(num_frames: int, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Frames:
    """A square that moves over a coloured ground, [F, H, W, 3]."""
    random = np.random.default_rng(seed)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = random.integers(0, 256, 3)
    colour = random.integers(0, 256, 3)
    for index in range(num_frames):
        left = (3 * index) % (width - 16)
        frames[index, 20:36, left : left + 16] = colour
    return frames


def floats(frames: Frames) -> np.ndarray:
    """VACE frames [1, 3, F, H, W] in -1..1 of a video."""
    return frames.transpose(3, 0, 1, 2)[None].astype("<f4") / np.float32(127.5) - np.float32(1)


def half_mask(num_frames: int) -> np.ndarray:
    """Masks [1, 1, F, H, W]: the left half is to be made."""
    mask = np.zeros((1, 1, num_frames, *SIDES), "<f4")
    mask[..., : WIDTH // 2] = 1
    return mask


def picture(server: Frontend, seed: int) -> str:
    """The name of an uploaded image."""
    buffer = io.BytesIO()
    Image.fromarray(video(1, seed)[0]).save(buffer, "PNG")
    answer = http.post(f"{server.url}/api/v1/assets", content=buffer.getvalue())
    assert answer.status_code == 200, answer.text
    return str(answer.json()["path"])


def make(
    server: Frontend,
    chunks: Mapping[int, Mapping[str, Any]] | None = None,
    *,
    input_video: Frames | None = None,
    **request: Any,
) -> Frames:
    """The frames of a generation; arrays of chunks are packed, `seed` and size are always the same unless given."""
    blob = BlobBuilder()
    for index, fields in (chunks or {}).items():
        blob.chunk(index, **fields)
    if chunks:
        request["chunk_specs"] = blob.chunk_specs
    if blob.size:
        request["data_blob_path"] = server.upload_data(b"".join(blob))
    if input_video is not None:
        request["input_path"] = server.upload(input_video)
    given = {"pipeline_id": "tiny", "prompt": "a red circle", "num_frames": FIRST + 3 * CHUNK, "seed": 1}
    return server.generate_frames(**given | request)


def changed_chunks(one: Frames, other: Frames, first: int = FIRST) -> list[int]:
    """The chunks in which two generations of one length differ."""
    assert one.shape == other.shape
    bounds = [0, *range(first, len(one), CHUNK), len(one)]
    return [
        index
        for index, (start, end) in enumerate(itertools.pairwise(bounds))
        if not np.array_equal(one[start:end], other[start:end])
    ]
