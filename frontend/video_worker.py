"""Encodes one video file in a process of its own.

`video_files.py` runs this module. The first line on stdin is the job, in JSON; each further line says how many frames
there are by now. Answers are JSON lines on stdout. Frames are read from an open file, inherited under the number that
the job names: a 20-byte header, then uint8 [T, H, W, 3].
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image

from filmstrip.video.contact_sheet import COLUMNS, ROWS, evenly_spaced, sheet_rows, thumbnail, write_sheet
from filmstrip.video.write import Encoder, enlarged, open_encoder
from filmstrip.wire import VIDEO_HEADER_BYTES, Frame

from .video_jobs import EncodeJob
from .workers import enter_worker

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


def main() -> None:
    """Encode a video for the process that started this one."""
    enter_worker()
    sys.stdout = sys.stderr  # keep what libraries print out of the answers
    job = EncodeJob(**json.loads(sys.stdin.buffer.readline()))
    try:
        _encode(job, sys.stdin.buffer)
        _answer(done=_digest(job.into), written=os.stat(job.into).st_size)
    except (av.FFmpegError, OSError) as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _answer(failed="disk_full" if is_full else f"{type(error).__name__}: {error.strerror or error}")
    except MemoryError:
        _answer(failed="not enough memory")
    except EOFError as error:
        _answer(failed=str(error))


if __name__ == "__main__":
    main()
