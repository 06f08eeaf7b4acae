"""Videos as bytes on the wire: frames to the body of an upload, the body of a download to frames. No I/O."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from filmstrip.client_errors import ConnectionFailed, UnexpectedAnswer
from filmstrip.geometry import VIDEO_HEADER_BYTES, VideoShape, unpack_video_header

Frame = NDArray[np.uint8]  # [H, W, C]
Video = NDArray[np.uint8]  # [F, H, W, C]


def shape_of(video: Video) -> VideoShape:
    """The shape of an array [F, H, W, C].

    Raises:
        ValueError: it has other dimensions, or holds something else than uint8.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or 0 in video.shape:
        raise ValueError(f"a video is a uint8 array [F, H, W, C], got {video.dtype} {list(video.shape)}")
    return VideoShape(*video.shape)


class BodyChecker:
    """Turns frames into bytes and counts them, so that a body never differs from the shape in its headers."""

    def __init__(self, shape: VideoShape) -> None:
        self._shape = shape
        self._num_bytes = 0

    def add(self, piece: Frame | bytes) -> bytes:
        """One frame [H, W, C], or any run of bytes, as the bytes to send.

        Raises:
            ValueError: a frame of another shape, or more bytes than the shape has.
        """
        if isinstance(piece, np.ndarray):
            if piece.dtype != np.uint8 or piece.shape != self._shape[1:]:
                want = list(self._shape[1:])
                raise ValueError(f"a frame of this video is uint8 {want}, got {piece.dtype} {list(piece.shape)}")
            piece = piece.tobytes()
        self._num_bytes += len(piece)
        if self._num_bytes > self._shape.num_bytes:
            raise ValueError(f"more frames came than the {self._shape.frames} announced")
        return piece

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            ValueError: fewer bytes were added than the shape has.
        """
        if self._num_bytes != self._shape.num_bytes:
            frames = self._num_bytes / self._shape.frame_bytes
            raise ValueError(f"{self._shape.frames} frames were announced, {frames:g} came")


def video_body(frames: Iterable[Frame | bytes], shape: VideoShape) -> Iterator[bytes]:
    """The body of an upload, frame by frame; see `BodyChecker` for what it raises."""
    checker = BodyChecker(shape)
    for frame in frames:
        yield checker.add(frame)
    checker.finish()


class FrameReader:
    """Reads the body of a download as its bytes come, one frame held at a time.

    Attributes:
        shape: of the video, None until the header was read.
    """

    def __init__(self) -> None:
        self.shape: VideoShape | None = None
        self._pending = bytearray()
        self._num_frames = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes; give the frames [H, W, C] that they complete.

        Raises:
            UnexpectedAnswer: the bytes are not a video's, or more than its header says.
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
            raise UnexpectedAnswer(f"the download goes on after its {shape.frames} frames")

    def finish(self) -> None:
        """Check that the video is whole.

        Raises:
            ConnectionFailed: the body ended early.
        """
        if self.shape is None:
            raise ConnectionFailed("the download ended within its header")
        if self._num_frames != self.shape.frames:
            raise ConnectionFailed(f"the download ended after {self._num_frames} of {self.shape.frames} frames")


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
