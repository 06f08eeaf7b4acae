"""Makes previews in a process of its own: small WebP images of single frames.

`previews.py` runs this module. A job is a JSON line on stdin and the answer a JSON line on stdout. A job names a file
and the place in it of a frame, uint8 [H, W, 3].
"""

import base64
import io
import json
import os
import sys
from typing import Any, BinaryIO

from PIL import Image

from .workers import enter_worker, limit_cpu

READY = b"ready\n"
MAX_URL_BYTES = 32 * 2**10
_HEAD = "data:image/webp;base64,"
_QUALITIES = (80, 60, 40, 20, 0)
_METHOD = 1  # of 6: half the time of the default for about a tenth more bytes


def preview_size(height: int, width: int, max_width: int) -> tuple[int, int]:
    """(height, width) of a small image of a frame: at most `max_width` wide, never enlarged."""
    small = min(width, max_width)
    return max(1, round(height * small / width)), small


def small_webp(frame: Image.Image, max_width: int) -> tuple[str, int, int]:
    """A small WebP of a frame as a data URL of at most 32 KiB, with its height and width.

    If the lowest quality is still too large, so is the image, and it gets half as wide.
    """
    while True:
        height, width = preview_size(frame.height, frame.width, max_width)
        small = frame.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        for quality in _QUALITIES:
            file = io.BytesIO()
            small.save(file, "WEBP", quality=quality, method=_METHOD)
            url = _HEAD + base64.b64encode(file.getvalue()).decode()
            if len(url) <= MAX_URL_BYTES:
                return url, height, width
        max_width = width // 2


def _make(job: dict[str, Any]) -> tuple[str, int, int]:
    size = job["width"], job["height"]
    fd = os.open(job["path"], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.pread(fd, 3 * size[0] * size[1], job["offset"])
    finally:
        os.close(fd)
    return small_webp(Image.frombytes("RGB", size, data), job["max_width"])


def _serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Do jobs until stdin ends, as it does when the server is gone."""
    limits, _ = enter_worker()
    small_webp(Image.new("RGB", (16, 16)), 16)  # so that the first job does not have to load libraries
    answers.write(READY)
    answers.flush()
    for line in jobs:
        limit_cpu(limits)
        try:
            image, height, width = _make(json.loads(line))
            answer: dict[str, Any] = {"image": image, "height": height, "width": width}
        except (OSError, ValueError) as error:  # the file is gone, or was truncated
            answer = {"failed": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Make previews for the process that started this one."""
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # keep what libraries print out of the answers
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
