"""Video files: any that FFmpeg reads in, H.264 in MP4 out, one frame in memory at a time."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

from filmstrip.video_file import VideoFileError
from filmstrip.video_input import VideoInfo, count_frames, probe, read_frames
from filmstrip.video_output import open_mp4
from filmstrip.video_stream import Frame

__all__ = ["VideoFileError", "VideoInfo", "Writer", "count_frames", "probe", "read_frames", "write"]


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
