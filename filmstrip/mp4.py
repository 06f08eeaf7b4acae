"""Video files: any that FFmpeg reads in, H.264 in MP4 out, one frame in memory at a time."""

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
from av.video.reformatter import Interpolation, VideoReformatter

from filmstrip.video_file import VideoFileError, mapped_errors
from filmstrip.video_output import open_mp4
from filmstrip.video_stream import Frame

__all__ = ["VideoFileError", "VideoInfo", "Writer", "count_frames", "probe", "read_frames", "write"]


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
    column, so that the file is one pixel larger. The file appears only when the block ends without an error.

    Args:
        path: of the file to write; replaced when it exists.
        fps: frames a second.
    """

    def __init__(self, path: str | Path, fps: Fraction | float) -> None:
        self._output = open_mp4(path)
        try:
            self._output.start(fps)
        except BaseException:
            self._output.discard()
            raise

    @property
    def num_frames(self) -> int:
        """Frames added so far."""
        return self._output.num_frames

    def __enter__(self) -> Self:
        return self

    def add(self, frame: Frame) -> None:
        """Encode one frame, uint8 [H, W, 3] in RGB.

        Raises:
            ValueError: it is no such frame, or has another size than those before.
            VideoFileError: the file cannot be written.
        """
        self._output.add(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._output:
            if kind is None:
                self._output.commit()


def write(path: str | Path, frames: Iterable[Frame], fps: Fraction | float) -> int:
    """Encode frames as an MP4; gives their number. See `Writer`, and `video_output` for other formats."""
    with Writer(path, fps) as writer:
        for frame in frames:
            writer.add(frame)
    return writer.num_frames


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    with mapped_errors(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise VideoFileError(f"{path}: the file has no video")
        container.streams.video[0].thread_type = "AUTO"
        yield container
