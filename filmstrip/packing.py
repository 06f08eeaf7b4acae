"""Packs the arrays of chunks into one blob and writes the ChunkSpecs that point into it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE_BYTES = 2**20
_CHANNELS = (1, 3, 4)
_FLOAT32 = np.dtype("<f4")


def as_vace_frames(video: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A video [F, H, W, C] as VACE frames: [C, F, H, W] in -1..1."""
    return np.ascontiguousarray(video.transpose(3, 0, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1))


class BlobBuilder:
    """Collects chunks; iterate over it for the bytes to upload, then send `chunk_specs` with the request.

        blob = BlobBuilder()
        blob.chunk(0, text="a cat", vace_frames=frames, vace_masks=masks)
        blob.chunk(3, input_video=video)
        uploaded = client.upload_data(blob)
        client.generate(..., data_blob_path=uploaded.data_blob_path, chunk_specs=blob.chunk_specs)

    Arrays are kept as they are, not copied, unless their type or layout must change: don't write to them
    before the upload.
    """

    def __init__(self) -> None:
        self._arrays: list[tuple[int, NDArray[Any]]] = []
        self._specs: dict[int, dict[str, Any]] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of the blob so far."""
        return self._size

    @property
    def chunk_specs(self) -> list[dict[str, Any]]:
        """The ChunkSpecs as the request carries them, by chunk."""
        return [dict(self._specs[index]) for index in sorted(self._specs)]

    def chunk(
        self,
        index: int,
        *,
        vace_frames: NDArray[Any] | None = None,
        vace_masks: NDArray[Any] | None = None,
        input_video: NDArray[np.uint8] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Add the ChunkSpec of one chunk and its arrays; gives the spec.

        Args:
            index: the chunk, from 0.
            vace_frames: floats in -1..1, [1, C, F, H, W] or [C, F, H, W].
            vace_masks: floats in 0..1 or bools, [1, 1, F, H, W], [F, H, W], one mask [H, W], or masks with a channel,
                [F, 1, H, W] or [F, H, W, 1].
            input_video: uint8, [F, H, W, C], or one image [H, W, C].
            fields: the other fields of a ChunkSpec: text, seed, noise_scale...

        Raises:
            ValueError: the chunk was added before, or an array has another type or shape.
        """
        if index in self._specs:
            raise ValueError(f"chunk {index} was added before: a chunk has one spec")
        arrays: dict[str, NDArray[Any]] = {}
        if vace_frames is not None:
            arrays["vace_frames"] = _as_vace_frames(vace_frames)
        if vace_masks is not None:
            arrays["vace_masks"] = _as_vace_masks(vace_masks)
        if input_video is not None:
            arrays["input_video"] = _as_video(input_video)
        spec: dict[str, Any] = {"chunk": index, **fields, **self._add(arrays)}
        self._specs[index] = spec
        return dict(spec)

    def __iter__(self) -> Iterator[bytes]:
        end = 0
        for offset, array in self._arrays:
            if offset > end:
                yield bytes(offset - end)
            raw = array.reshape(-1).view(np.uint8)
            for start in range(0, raw.size, _PIECE_BYTES):
                yield raw[start : start + _PIECE_BYTES].tobytes()
            end = offset + array.nbytes

    def _add(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        placed: dict[str, Any] = {}
        for name, array in arrays.items():
            # Aligned, so that the server may use the bytes where they lie; it must not need that.
            offset = -(-self._size // array.itemsize) * array.itemsize
            self._arrays.append((offset, array))
            self._size = offset + array.nbytes
            placed[f"{name}_offset"] = offset
            placed[f"{name}_shape"] = list(array.shape)
        return placed


def _as_vace_frames(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "f":
        raise ValueError(f"vace_frames must be floats, got {array.dtype}")
    if array.ndim not in (4, 5) or array.size == 0:
        raise ValueError(f"vace_frames must be [1, C, F, H, W] or [C, F, H, W], got {list(array.shape)}")
    return np.ascontiguousarray(array.reshape((1,) * (5 - array.ndim) + array.shape), _FLOAT32)


def _as_vace_masks(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "fb":
        raise ValueError(f"vace_masks must be floats or bools, got {array.dtype}")
    masks = array[0, 0] if array.ndim == 5 and array.shape[:2] == (1, 1) else array
    if masks.ndim == 4:
        channel = next((axis for axis in (1, 3, 0) if masks.shape[axis] == 1), None)
        masks = masks if channel is None else masks.squeeze(channel)
    if masks.ndim not in (2, 3) or masks.size == 0:
        forms = "[1, 1, F, H, W], [F, H, W], [F, 1, H, W], [F, H, W, 1] or [H, W]"
        raise ValueError(f"vace_masks must be {forms}, and not empty, got {list(array.shape)}")
    return np.ascontiguousarray(masks.reshape(1, 1, -1, *masks.shape[-2:]), _FLOAT32)


def _as_video(array: NDArray[Any]) -> NDArray[Any]:
    video = array[None] if array.ndim == 3 and array.shape[2] in _CHANNELS else array
    if array.dtype != np.uint8 or video.ndim != 4 or array.size == 0:
        raise ValueError(f"input_video must be uint8 [F, H, W, C] or [H, W, C], got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(video)
