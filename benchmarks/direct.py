"""The same model called without the frontend: by system shared memory and by gRPC."""

import itertools
import mmap
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton_grpc

from filmstrip.contract import CHUNK, FRAMES, INPUT_VIDEO, REPORT, ChunkParameters, Mode, Prompt
from filmstrip.triton_server import NO_PROXY

_SHM = Path("/dev/shm")  # noqa: S108
_MESSAGE_BYTES = 2**31 - 1
_ids = itertools.count(secrets.randbelow(2**40) + 1)


class DirectModel:
    """One sequence of a model in Triton.

    Args:
        client: of tritonclient.
        model: its name.
    """

    def __init__(self, client: Any, model: str) -> None:
        self._client = client
        self._model = model
        self._id = next(_ids)
        self._index = 0

    def infer(self, frames: Any, shape: tuple[int, ...], video: Any = None, **params: Any) -> Any:
        """Make the next chunk of the sequence.

        Args:
            frames: the output that is asked for.
            shape: of it, [F, H, W, 3].
            video: the input, where there is one.
            params: more of `ChunkParameters`.
        """
        parameters = ChunkParameters(self._index, shape[0], shape[1], shape[2], **params)
        chunk = triton_grpc.InferInput(CHUNK.name, [1], CHUNK.dtype)
        chunk.set_data_from_numpy(np.array([parameters.to_json()], np.object_))
        self._index += 1
        return self._client.infer(
            self._model,
            [chunk] if video is None else [chunk, video],
            outputs=[frames, triton_grpc.InferRequestedOutput(REPORT.name)],
            sequence_id=self._id,
            sequence_start=self._index == 1,
        )

    def end(self) -> None:
        """End the sequence."""
        self._client.infer(self._model, [], sequence_id=self._id, sequence_end=True)


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A client of a Triton, with the options that the frontend uses."""
    options = [
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        NO_PROXY,
    ]
    with closing(triton_grpc.InferenceServerClient(url, channel_args=options)) as client:
        yield client


def by_grpc(client: Any, model: str, source: npt.NDArray[np.uint8], num_chunks: int) -> None:
    """Call with arrays in messages: `source` is one chunk, [F, H, W, 3]."""
    sequence = DirectModel(client, model)
    target = np.empty_like(source)
    for _ in range(num_chunks):
        video = triton_grpc.InferInput(INPUT_VIDEO.name, list(source.shape), INPUT_VIDEO.dtype)
        video.set_data_from_numpy(source)
        frames = triton_grpc.InferRequestedOutput(FRAMES.name)
        np.copyto(target, sequence.infer(frames, source.shape, video).as_numpy(FRAMES.name))
    sequence.end()


def by_text(client: Any, model: str, prompt: str, shapes: Sequence[tuple[int, ...]]) -> list[float]:
    """Call with a prompt and no array, frames in messages; when each chunk was there, by the monotonic clock.

    Args:
        client: of Triton.
        model: to call.
        prompt: of all chunks.
        shapes: of their frames, [F, H, W, 3].
    """
    sequence = DirectModel(client, model)
    arrivals = []
    for index, shape in enumerate(shapes):
        frames = triton_grpc.InferRequestedOutput(FRAMES.name)
        params = {"mode": Mode.TEXT, "reset": index == 0, "prompts": (Prompt(prompt),)}
        outputs = sequence.infer(frames, shape, **params).as_numpy(FRAMES.name)
        assert outputs.shape == shape
        arrivals.append(time.monotonic())
    sequence.end()
    return arrivals


@contextmanager
def _region(client: Any, num_bytes: int) -> Iterator[tuple[str, mmap.mmap]]:
    """Shared memory that Triton maps too."""
    name = f"filmstrip-benchmark-{secrets.token_hex(6)}"
    path = _SHM / name
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        mapped = mmap.mmap(file.fileno(), num_bytes)
    try:
        client.register_system_shared_memory(name, f"/{name}", num_bytes)
        yield name, mapped
        client.unregister_system_shared_memory(name)
    finally:
        path.unlink()


def by_shared_memory(
    client: Any, model: str, source: npt.NDArray[np.uint8], num_chunks: int, files: tuple[Path, Path] | None = None
) -> None:
    """Call with arrays in a region: copied in before each call and out after it.

    Args:
        client: of Triton.
        model: to call.
        source: one chunk, [F, H, W, 3].
        num_chunks: how often.
        files: read each chunk from the first file, which holds `source`, and append its frames to the second, as
            the frontend must; without, both copies are from memory to memory.
    """
    sequence = DirectModel(client, model)
    size = source.nbytes
    target = np.empty_like(source)
    with _region(client, 2 * size) as (name, mapped), _opened(files) as fds:
        inputs, outputs = memoryview(mapped)[:size], memoryview(mapped)[size:]
        input_array, output_array = (np.frombuffer(part, np.uint8).reshape(source.shape) for part in (inputs, outputs))
        for _ in range(num_chunks):
            if fds:
                os.preadv(fds[0], [inputs], 0)
            else:
                np.copyto(input_array, source)
            video = triton_grpc.InferInput(INPUT_VIDEO.name, list(source.shape), INPUT_VIDEO.dtype)
            video.set_shared_memory(name, size, 0)
            frames = triton_grpc.InferRequestedOutput(FRAMES.name)
            frames.set_shared_memory(name, size, size)
            sequence.infer(frames, source.shape, video)
            if fds:
                os.write(fds[1], outputs)
            else:
                np.copyto(target, output_array)
        sequence.end()


@contextmanager
def _opened(files: tuple[Path, Path] | None) -> Iterator[tuple[int, int] | None]:
    if files is None:
        yield None
        return
    source, target = files
    with source.open("rb", buffering=0) as source_file, target.open("wb", buffering=0) as target_file:
        yield source_file.fileno(), target_file.fileno()
    target.unlink()
