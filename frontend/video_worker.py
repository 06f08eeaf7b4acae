"""Encodes or decodes one video file in a process of its own.

The argument says which. The first line on stdin is the job, in JSON; answers are JSON lines on stdout. Frames lie in a
file of the store: a 20-byte header, then uint8 [F, H, W, 3].

- `encode`, run by `video_files.py`: each further line on stdin says how many frames there are by now. The file with the
  frames is open, under the number that the job names.
- `decode`, run by `video_uploads.py`: the first answer describes the video, and the second line on stdin has the path
  of the file to write. Before it writes more, the worker asks for room and waits for a line that grants it.
"""

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image

from filmstrip.geometry import MAX_DECODED_SIDE
from filmstrip.video.contact_sheet import COLUMNS, ROWS, evenly_spaced, sheet_rows, thumbnail, write_sheet
from filmstrip.video.read import Part, PartReader, Restrictions, VideoFileError
from filmstrip.video.write import Encoder, enlarged, open_encoder
from filmstrip.wire import VIDEO_HEADER_BYTES, Frame

from .preview_worker import small_webp
from .workers import DecodeJob, EncodeJob, enter_worker, limit_cpu

_LOOKAHEAD = 16
"""Frames that the encoder holds back: more compress better, take memory, and delay a video that is still growing."""
_THREADS = min(4, os.cpu_count() or 1)
_CODEC_OPTIONS = {
    "mp4": {"threads": str(_THREADS), "x264-params": f"rc-lookahead={_LOOKAHEAD}:sync-lookahead=0"},
    "webm": {"threads": str(_THREADS), "lag-in-frames": str(_LOOKAHEAD)},
    "gif": {},
}
_GROWING = {"movflags": "delay_moov+default_base_moof", "frag_duration": "250000", "flush_packets": "1"}
"""A fragmented MP4: each fragment is written as soon as it has a quarter of a second."""
_REPORTED_BYTES = 2**20


class _Frames:
    """The frames in a file."""

    def __init__(self, job: EncodeJob) -> None:
        self._fd = job.fd
        self._shape = (job.height, job.width, 3)

    def read(self, index: int) -> Frame:
        """One frame, uint8 [H, W, 3].

        Raises:
            EOFError: the file does not have it.
        """
        frame = np.empty(self._shape, np.uint8)
        left = frame.data.cast("B")
        offset = VIDEO_HEADER_BYTES + index * frame.nbytes
        while left:
            count = os.preadv(self._fd, [left], offset)
            if not count:
                raise EOFError(f"frame {index} is missing")
            left, offset = left[count:], offset + count
        return frame


def _encode(job: EncodeJob, lines: BinaryIO) -> None:
    frames = _Frames(job)
    if job.format == "png":
        *_, num_frames = _counts(lines)
        _write_png(job, frames, num_frames)
    elif job.growing_into:
        encoder = _open_encoder(job, Path(job.growing_into), _GROWING)
        _add_frames(job, encoder, frames, lines)
        _answer(grown=os.stat(job.growing_into).st_size, is_whole=True)
        _remux(Path(job.growing_into), Path(job.into))
    else:
        _add_frames(job, _open_encoder(job, Path(job.into)), frames, lines)


def _open_encoder(job: EncodeJob, path: Path, container_options: dict[str, str] | None = None) -> Encoder:
    quality = {} if job.crf is None else {"crf": str(job.crf)}
    return open_encoder(
        path,
        f".{job.format}",
        Fraction(job.fps),
        codec_options=_CODEC_OPTIONS[job.format] | quality,
        container_options=container_options,
    )


def _counts(lines: BinaryIO) -> Iterator[int]:
    """How many frames there are, each time that it is told; ends when all are there."""
    for line in lines:
        growth = json.loads(line)
        yield growth["num_frames"]
        if growth["is_finished"]:
            return
    sys.exit(1)  # the server is gone


def _add_frames(job: EncodeJob, encoder: Encoder, frames: _Frames, lines: BinaryIO) -> None:
    num_added = reported = 0
    path = job.growing_into or job.into
    for num_frames in _counts(lines):
        for index in range(num_added, num_frames):
            encoder.add(enlarged(frames.read(index), job.scale))
            written = _size(path)
            if written >= reported + (1 if job.growing_into else _REPORTED_BYTES):
                reported = written
                _answer(**{"grown" if job.growing_into else "written": written})
        num_added = num_frames
        if job.growing_into:
            _answer(grown=_size(path), is_waiting=True)
    encoder.finish()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _remux(source: Path, target: Path) -> None:
    """Copy the packets of a fragmented MP4 into one with its index at the front."""
    with (
        av.open(f"file:{source}") as fragmented,
        av.open(f"file:{target}", "w", format="mp4", options={"movflags": "+faststart"}) as whole,
    ):
        stream = fragmented.streams.video[0]
        copy = whole.add_stream_from_template(stream)
        for packet in fragmented.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                whole.mux(packet)


def _write_png(job: EncodeJob, frames: _Frames, num_frames: int) -> None:
    if job.frame is not None:
        Image.fromarray(enlarged(frames.read(job.frame), job.scale)).save(job.into, "PNG")
        return
    picks = evenly_spaced(num_frames, COLUMNS * ROWS)
    write_sheet(sheet_rows([thumbnail(frames.read(index), index) for index in picks], COLUMNS), job.into)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _answer(**message: Any) -> None:
    _answers.write(json.dumps(message) + "\n")
    _answers.flush()


_answers = sys.stdout


# -- Decoding --------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """The video is not decoded; the text is for the client."""


class _TooLarge(_Refused):
    """The frames exceed the limit."""


RESTRICTIONS = Restrictions(
    formats=frozenset(("mov", "matroska")),
    decoders=frozenset(
        ("h264", "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "prores"),
    ),
    max_side=MAX_DECODED_SIDE,
)
_ROOM_BYTES = 16 * 2**20
_POSTER_WIDTH = 256


def _decode(job: DecodeJob, lines: BinaryIO) -> None:
    part = Part(Fraction(job.start), _fraction(job.end), _fraction(job.fps), job.max_frames)
    reader = PartReader(job.path, part, RESTRICTIONS)
    fitting = Fitting.of(reader.height, reader.width, job.height, job.width, job.fit)
    sizes = _Sizes(fitting.height, fitting.width, reader.num_frames, job.limit_bytes)
    sizes.check(reader.num_frames or 1, slack=2)  # of what a file says of its length
    output: BinaryIO | None = None
    room = num_frames = expected_bytes = 0
    try:
        for frame in reader.frames(fitting.inner):
            fitted = fitting.apply(frame)
            sizes.check(num_frames + 1)
            if output is None:
                expected_bytes = min((reader.num_frames or 0) * fitted.nbytes, job.limit_bytes)
                _answer(
                    height=fitting.height,
                    width=fitting.width,
                    fps=float(reader.fps),
                    expected_bytes=expected_bytes,
                    poster=small_webp(Image.fromarray(fitted), _POSTER_WIDTH)[0],
                )
                output = _opened_for_writing(_line(lines)["into"])
            num_frames += 1
            needed = num_frames * fitted.nbytes
            if needed > room:
                more = min(needed, _ROOM_BYTES)
                room = max(needed, min(needed + more, expected_bytes or needed + more))
                _answer(room=room)
                _line(lines)
            output.write(fitted.data)
        if output is None:
            raise _Refused("there is no frame in the selected part of the video")
        output.flush()
        _answer(num_frames=num_frames)
    finally:
        if output is not None:
            output.close()


def _fraction(text: str) -> Fraction | None:
    return Fraction(text) if text else None


def _line(lines: BinaryIO) -> Any:
    line = lines.readline()
    if not line:
        sys.exit(1)  # the server is gone
    return json.loads(line)


def _opened_for_writing(path: str) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.lseek(fd, VIDEO_HEADER_BYTES, os.SEEK_SET)
    return open(fd, "wb", buffering=_REPORTED_BYTES)


@dataclass(frozen=True)
class Fitting:
    """How frames are brought to a size.

    Attributes:
        height: of the result.
        width: likewise.
        inner: (height, width) to scale to first, before the frame is cropped or put on black.
    """

    height: int
    width: int
    inner: tuple[int, int]

    @classmethod
    def of(cls, own_height: int, own_width: int, height: int | None, width: int | None, fit: str) -> "Fitting":
        """For frames of a size; if only one side is given, the other one keeps the proportions."""
        if height is None and width is None:
            height, width = own_height, own_width
        elif height is None:
            assert width is not None
            height = max(1, round(own_height * width / own_width))
        elif width is None:
            width = max(1, round(own_width * height / own_height))
        if max(height, width) > MAX_DECODED_SIDE:
            raise _Refused(f"{width}x{height} is too large; at most {MAX_DECODED_SIDE} pixels per side are supported")
        if fit == "fill":
            return cls(height, width, (height, width))
        scales = Fraction(height, own_height), Fraction(width, own_width)
        scale = max(scales) if fit == "cover" else min(scales)
        inner = max(1, round(own_height * scale)), max(1, round(own_width * scale))
        if max(inner) > 2 * MAX_DECODED_SIDE:
            raise _Refused(f"a video of {own_width}x{own_height} cannot cover {width}x{height}; use fit=contain")
        return cls(height, width, inner)

    def apply(self, frame: Frame) -> Frame:
        """The frame cropped about its centre, or centred on black."""
        if frame.shape[:2] == (self.height, self.width):
            return frame
        inner_height, inner_width, _ = frame.shape
        top, left = (inner_height - self.height) // 2, (inner_width - self.width) // 2
        if top >= 0 and left >= 0:
            return np.ascontiguousarray(frame[top : top + self.height, left : left + self.width])
        fitted = np.zeros((self.height, self.width, 3), np.uint8)
        fitted[-top : inner_height - top, -left : inner_width - left] = frame
        return fitted


@dataclass(frozen=True)
class _Sizes:
    """The limit on the bytes of frames, and what would fit."""

    height: int
    width: int
    num_frames: int | None
    limit_bytes: int

    def check(self, num_frames: int, slack: int = 0) -> None:
        frame_bytes = self.height * self.width * 3
        if (num_frames - slack) * frame_bytes <= self.limit_bytes and frame_bytes <= self.limit_bytes:
            return
        fits = []
        if num_fitting := self.limit_bytes // frame_bytes:
            fits.append(f"max_frames={num_fitting}")
        if total := max(self.num_frames or 0, num_frames):
            scale = math.sqrt(self.limit_bytes / (total * frame_bytes))
            height, width = (max(1, int(side * scale)) for side in (self.height, self.width))
            if total * height * width * 3 <= self.limit_bytes:
                fits.append(f"width={width}&height={height}")
        remedy = f"; {' or '.join(fits)} fits" if fits else ""
        known = f"{self.num_frames} frames" if self.num_frames else "the frames"
        raise _TooLarge(f"{known} of {self.width}x{self.height} exceed the limit of {self.limit_bytes} bytes{remedy}")


def main() -> None:
    """Do one job for the process that started this one."""
    limits, (kind,) = enter_worker()
    sys.stdout = sys.stderr  # keep what libraries print out of the answers
    lines = sys.stdin.buffer
    try:
        if kind == "decode":
            limit_cpu(limits)
            decode_job = DecodeJob(**_line(lines))
            _decode(decode_job, lines)
        else:
            job = EncodeJob(**_line(lines))
            _encode(job, lines)
            _answer(done=_digest(job.into), written=os.stat(job.into).st_size)
    except VideoFileError as error:
        _answer(refused=str(error).replace(decode_job.path, "the file"))
    except _Refused as error:
        _answer(refused=str(error), is_too_large=isinstance(error, _TooLarge))
    except (av.FFmpegError, OSError) as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _answer(failed="disk_full" if is_full else f"{type(error).__name__}: {error.strerror or error}")
    except MemoryError:
        _answer(failed="memory")
    except EOFError as error:
        _answer(failed=str(error))


if __name__ == "__main__":
    main()
