"""Animated WebP, which FFmpeg does not decode."""

from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageSequence

from filmstrip.video_integrity import FileBytes

_ANIMATION_FLAG = 0x02
_CLOCK = Fraction(1, 1000)
_MAX_IGNORED_MS, _DEFAULT_STEP_MS = 10, 100  # browsers show a frame of up to 10 ms for 100 ms


def is_animated_webp(file: FileBytes) -> bool:
    """Whether a file is a WebP with several frames."""
    head = file.read(0, 21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & _ANIMATION_FLAG)


class AnimatedWebp:
    """Frames of an animated WebP, with their times."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def rate(self) -> Fraction | None:
        """Frames a second by the shortest frame; None if there is only one."""
        steps = [frame.duration for frame in self.frames()]
        return 1 / (min(steps) * _CLOCK) if len(steps) > 1 else None

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in RGBA, whole ones: each with what it leaves of those before.

        Raises:
            OSError: the file is damaged.
        """
        self._file.seek(0)
        with Image.open(self._file, formats=["WEBP"]) as animation:
            pts = 0
            for image in ImageSequence.Iterator(animation):
                frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), format="rgba")
                frame.pts, frame.time_base = pts, _CLOCK
                duration = int(image.info.get("duration", 0))
                frame.duration = duration if duration > _MAX_IGNORED_MS else _DEFAULT_STEP_MS
                pts += frame.duration
                yield frame
