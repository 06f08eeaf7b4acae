"""Bytes on the wire: the video header, the bodies of uploads and downloads, blobs of arrays. No I/O."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from filmstrip.errors import ConnectionFailed, UnexpectedAnswer
from filmstrip.request_fields import ChunkFields, ChunkSpec

Frame = NDArray[np.uint8]  # [H, W, C]
Video = NDArray[np.uint8]  # [F, H, W, C]

VIDEO_HEADER_BYTES = 20
_VIDEO_NDIM = 4
_U32_MAX = 2**32 - 1
_PIECE_BYTES = 2**20
CHANNELS = (1, 3, 4)
_FLOAT32 = np.dtype("<f4")


class VideoShape(NamedTuple):
    """Shape [F, H, W, C] of a uint8 video."""

    frames: int
    height: int
    width: int
    channels: int = 3

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.height * self.width * self.channels

    @property
    def num_bytes(self) -> int:
        """Bytes of all frames, without the header."""
        return self.frames * self.frame_bytes


def pack_video_header(shape: VideoShape) -> bytes:
    """The 20-byte header: ndim, then the four dimensions, each a little-endian u32."""
    return struct.pack("<5I", _VIDEO_NDIM, *shape)


def unpack_video_header(header: bytes) -> VideoShape:
    """Read a 20-byte header back.

    Raises:
        ValueError: it is not the header of a four-dimensional video with positive dimensions.
    """
    if len(header) != VIDEO_HEADER_BYTES:
        raise ValueError(f"a video header has {VIDEO_HEADER_BYTES} bytes, got {len(header)}")
    ndim, *dims = struct.unpack("<5I", header)
    if ndim != _VIDEO_NDIM or min(dims) < 1:
        raise ValueError(f"not a video header: ndim {ndim}, dimensions {dims}")
    return VideoShape(*dims)


def header_holds(dimension: int) -> bool:
    """Whether a dimension is positive and fits the header's u32."""
    return 1 <= dimension <= _U32_MAX


# -- Videos ------------------------------------------------------------------------------------------------------


def shape_of(video: Video) -> VideoShape:
    """The shape of an array [F, H, W, C].

    Raises:
        ValueError: it has other dimensions, or another type than uint8.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or 0 in video.shape:
        raise ValueError(f"a video is a uint8 array [F, H, W, C], got {video.dtype} {list(video.shape)}")
    return VideoShape(*video.shape)


def upload_shape(video: object, shape: VideoShape | None) -> VideoShape:
    """The shape of a video to upload: that of the array, else the shape that the caller has to give.

    Raises:
        ValueError: the array is not a video, or there is no shape.
    """
    if isinstance(video, np.ndarray):
        return shape_of(video)
    if shape is None:
        raise ValueError("shape is required unless the video is one array")
    return shape


class BodyChecker:
    """Turns frames into bytes and counts them, so that a body always matches the shape in its headers."""

    def __init__(self, shape: VideoShape) -> None:
        self._shape = shape
        self._num_bytes = 0

    def add(self, piece: Frame | bytes) -> bytes:
        """The bytes to send for a frame [H, W, C], or for a piece of the video's bytes.

        Raises:
            ValueError: a frame of another shape, or more bytes than the shape has.
        """
        if isinstance(piece, np.ndarray):
            if piece.dtype != np.uint8 or piece.shape != self._shape[1:]:
                want = list(self._shape[1:])
                raise ValueError(f"a frame of this video must be uint8 {want}, got {piece.dtype} {list(piece.shape)}")
            piece = piece.tobytes()
        self._num_bytes += len(piece)
        if self._num_bytes > self._shape.num_bytes:
            raise ValueError(f"the video has more frames than the {self._shape.frames} of its shape")
        return piece

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            ValueError: fewer bytes were added than the shape has.
        """
        if self._num_bytes != self._shape.num_bytes:
            frames = self._num_bytes / self._shape.frame_bytes
            raise ValueError(f"the video has {frames:g} frames, its shape says {self._shape.frames}")


def video_body(frames: Iterable[Frame | bytes], shape: VideoShape) -> Iterator[bytes]:
    """The body of an upload, frame by frame; see `BodyChecker` for what it raises."""
    checker = BodyChecker(shape)
    for frame in frames:
        yield checker.add(frame)
    checker.finish()


class FrameReader:
    """Reads the body of a download piece by piece; holds one frame at a time.

    Attributes:
        shape: shape of the video; None until the header has been read.
    """

    def __init__(self) -> None:
        self.shape: VideoShape | None = None
        self._pending = bytearray()
        self._num_frames = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes; yield the frames [H, W, C] that they complete.

        Raises:
            UnexpectedAnswer: the bytes are not a video, or are more than its header says.
        """
        self._pending += data
        if self.shape is None:
            if len(self._pending) < VIDEO_HEADER_BYTES:
                return
            self.shape = _read_header(bytes(self._pending[:VIDEO_HEADER_BYTES]))
            del self._pending[:VIDEO_HEADER_BYTES]
        shape = self.shape
        while len(self._pending) >= shape.frame_bytes and self._num_frames < shape.frames:
            frame = np.frombuffer(bytes(self._pending[: shape.frame_bytes]), np.uint8).reshape(shape[1:])
            del self._pending[: shape.frame_bytes]
            self._num_frames += 1
            yield frame
        if self._pending and self._num_frames == shape.frames:
            raise UnexpectedAnswer(f"the download continues after its {shape.frames} frames")

    def finish(self) -> None:
        """Check that the video is complete.

        Raises:
            ConnectionFailed: the body ended early.
        """
        shape = self.required_shape()
        if self._num_frames != shape.frames:
            raise ConnectionFailed(f"the download ended after {self._num_frames} of {shape.frames} frames")

    def required_shape(self) -> VideoShape:
        """The shape of the video, of which nothing more will come.

        Raises:
            ConnectionFailed: the body ended inside its header.
        """
        if self.shape is None:
            raise ConnectionFailed("the download ended inside its header")
        return self.shape


class VideoReader:
    """Reads the body of a download into one array."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._video: Video = np.empty((0, 0, 0, 0), np.uint8)
        self._num_frames = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes; see `FrameReader.feed`."""
        for frame in self._frames.feed(data):
            if self._num_frames == 0 and self._frames.shape is not None:
                self._video = np.empty(self._frames.shape, np.uint8)
            self._video[self._num_frames] = frame
            self._num_frames += 1

    def finish(self) -> Video:
        """The video [F, H, W, C]; see `FrameReader.finish`."""
        self._frames.finish()
        return self._video


def _read_header(header: bytes) -> VideoShape:
    try:
        return unpack_video_header(header)
    except ValueError as error:
        raise UnexpectedAnswer(f"the download is not a video: {error}") from None


# -- Blobs -------------------------------------------------------------------------------------------------------


def as_vace_frames(video: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A video [F, H, W, C] as VACE frames: [C, F, H, W] in -1..1."""
    return np.ascontiguousarray(video.transpose(3, 0, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1))


class BlobBuilder:
    """Collects the arrays of chunks: iterating over it yields the bytes to upload; `chunk_specs` goes into the request.

        blob = BlobBuilder()
        blob.chunk(0, text="a cat", vace_frames=frames, vace_masks=masks)
        blob.chunk(3, input_video=video)
        uploaded = client.upload_data(blob)
        client.generate(..., data_blob_path=uploaded.data_blob_path, chunk_specs=blob.chunk_specs)

    Arrays are not copied unless their type or layout must change: do not write to them before the upload.
    """

    def __init__(self) -> None:
        self._arrays: list[tuple[int, NDArray[Any]]] = []
        self._specs: dict[int, ChunkSpec] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of the blob so far."""
        return self._size

    @property
    def chunk_specs(self) -> list[ChunkSpec]:
        """The ChunkSpecs for the request, in the order of the chunks."""
        return [self._specs[index].copy() for index in sorted(self._specs)]

    def chunk(
        self,
        index: int,
        *,
        vace_frames: NDArray[Any] | None = None,
        vace_masks: NDArray[Any] | None = None,
        input_video: NDArray[np.uint8] | None = None,
        **fields: Unpack[ChunkFields],
    ) -> ChunkSpec:
        """Add the ChunkSpec of one chunk and its arrays; returns the spec.

        Args:
            index: index of the chunk, from 0.
            vace_frames: floats in -1..1, [1, C, F, H, W] or [C, F, H, W].
            vace_masks: floats in 0..1 or bools, [1, 1, F, H, W], [F, H, W], one mask [H, W], or masks with a channel,
                [F, 1, H, W] or [F, H, W, 1].
            input_video: uint8, [F, H, W, C], or one image [H, W, C].
            fields: the other fields of a ChunkSpec: text, seed, noise_scale...

        Raises:
            ValueError: the chunk was already added, or an array has the wrong type or shape.
        """
        if index in self._specs:
            raise ValueError(f"chunk {index} was already added")
        arrays: dict[str, NDArray[Any]] = {}
        if vace_frames is not None:
            arrays["vace_frames"] = _as_vace_frames(vace_frames)
        if vace_masks is not None:
            arrays["vace_masks"] = _as_vace_masks(vace_masks)
        if input_video is not None:
            arrays["input_video"] = _as_video(input_video)
        spec = cast("ChunkSpec", {"chunk": index, **fields, **self._add(arrays)})
        self._specs[index] = spec
        return spec.copy()

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
            # Aligned, so that the server can use the bytes in place; it does not rely on it.
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
    video = array[None] if array.ndim == 3 and array.shape[2] in CHANNELS else array
    if array.dtype != np.uint8 or video.ndim != 4 or array.size == 0:
        raise ValueError(f"input_video must be uint8 [F, H, W, C] or [H, W, C], got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(video)
