"""Video files: any that FFmpeg reads in, H.264 in MP4 out, one frame in memory at a time."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import av.container
import numpy as np
from av.video import VideoStream
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from filmstrip.video_stream import Frame

_MAX_FPS_DENOMINATOR = 100_000
_BT709 = 1  # FFmpeg's number of it in each of its colour enumerations
_EVEN = 2


class VideoFileError(Exception):
    """A file that FFmpeg cannot read or write; the message names it."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself.

    Attributes:
        height: of its frames as shown, in pixels.
        width: likewise.
        fps: frames a second, on average.
        num_frames: None where the container doesn't say; `count_frames` is exact.
    """

    height: int
    width: int
    fps: Fraction
    num_frames: int | None


def probe(path: str | Path) -> VideoInfo:
    """Read what a file says of its first video stream; decodes one frame, which alone knows how it is shown.

    Raises:
        VideoFileError: it is not a video.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        num_frames = stream.frames or None
    for frame in read_frames(path, max_frames=1):
        height, width, _ = frame.shape
        return VideoInfo(height, width, Fraction(fps), num_frames)
    raise VideoFileError(f"{path}: no frame can be decoded")


def count_frames(path: str | Path, max_frames: int | None = None) -> int:
    """Count a file's frames by decoding them: what the container says may be wrong, or missing.

    Args:
        path: of the file.
        max_frames: stop there.
    """
    with _opened(path) as container:
        return sum(1 for _ in islice(container.decode(video=0), max_frames))


def read_frames(
    path: str | Path, size: tuple[int, int] | None = None, max_frames: int | None = None
) -> Iterator[Frame]:
    """Decode a file's frames, [H, W, 3] in RGB, turned as the file says that they be shown.

    Args:
        path: of the file.
        size: (height, width) to scale to; None keeps that of the first frame.
        max_frames: stop there.

    Raises:
        VideoFileError: the file cannot be read, or is broken.
    """
    with _opened(path) as container:
        reformatter = VideoReformatter()
        for frame in islice(container.decode(video=0), max_frames):
            turns = round(frame.rotation / 90) % 4
            if size is None:
                size = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
            height, width = reversed(size) if turns % 2 else size
            scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA)
            yield np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns), np.uint8)


class Writer:
    """Encodes frames as they come: H.264, yuv420p, BT.709, which every browser and player shows.

    yuv420p has one colour sample for 2x2 pixels: a frame of odd height or width repeats its last row or
    column, so that the file is one pixel larger. The file stands under a `.part` name until it is whole, and
    appears only when the block ends without an error.

    Args:
        path: of the file to write; replaced when it exists.
        fps: frames a second.

    Attributes:
        num_frames: added so far.
    """

    def __init__(self, path: str | Path, fps: Fraction | float) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        self.num_frames = 0
        self._path = Path(path)
        self._part = self._path.with_name(self._path.name + ".part")
        self._fps = Fraction(fps).limit_denominator(_MAX_FPS_DENOMINATOR)
        self._stream: VideoStream | None = None
        self._shape: tuple[int, ...] = ()
        self._reformatter = VideoReformatter()
        with _mapped(self._path):
            self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})

    def __enter__(self) -> Self:
        return self

    def add(self, frame: Frame) -> None:
        """Encode one frame, uint8 [H, W, 3] in RGB.

        Raises:
            ValueError: it is no such frame, or has another size than those before.
            VideoFileError: the file cannot be written.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if self._stream is None:
            self._stream, self._shape = self._open_stream(frame.shape), frame.shape
        if frame.shape != self._shape:
            raise ValueError(f"frames of one video have one size: {list(frame.shape)} after {list(self._shape)}")
        height, width, _ = frame.shape
        even = np.pad(frame, ((0, height % _EVEN), (0, width % _EVEN), (0, 0)), mode="edge")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(even, format="rgb24"), format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        picture.pts = self.num_frames
        picture.time_base = 1 / self._fps
        self._encode(self._stream, picture)
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._stream is None:
                    raise VideoFileError(f"{self._path}: a video needs a frame")
                self._encode(self._stream, None)
            with _mapped(self._path):
                self._container.close()
            if kind is None:
                os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def _open_stream(self, shape: tuple[int, ...]) -> VideoStream:
        height, width, _ = shape
        with _mapped(self._path):
            stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "18"})
        stream.height, stream.width = height + height % _EVEN, width + width % _EVEN
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._fps
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        return stream

    def _encode(self, stream: VideoStream, picture: av.VideoFrame | None) -> None:
        with _mapped(self._path):
            self._container.mux(stream.encode(picture))


def write(path: str | Path, frames: Iterable[Frame], fps: Fraction | float) -> int:
    """Encode frames as an MP4; gives their number. See `Writer`."""
    with Writer(path, fps) as writer:
        for frame in frames:
            writer.add(frame)
    return writer.num_frames


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    with _mapped(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise VideoFileError(f"{path}: the file has no video")
        container.streams.video[0].thread_type = "AUTO"
        yield container


@contextmanager
def _mapped(path: str | Path) -> Iterator[None]:
    """The boundary where FFmpeg's errors become ours."""
    try:
        yield
    except av.FFmpegError as error:
        raise VideoFileError(f"{path}: {error.strerror or error}") from error
