"""What reading and writing video files share: the error they raise, and how a path becomes text."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av


class VideoFileError(Exception):
    """A file that cannot be read or written; the message names it."""


def display_path(path: str | Path) -> str:
    """A path as text that any terminal or log can print: bytes that are not text, and control characters, escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextmanager
def mapped_errors(path: str | Path) -> Iterator[None]:
    """The boundary where errors of FFmpeg and of the operating system become `VideoFileError`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoFileError(f"{display_path(path)}: {error.strerror or error}") from error
