"""Server-sent events from the bytes of a stream. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import FilmstripError

LAST_EVENTS = ("complete", "cancelled", "error")
"""Every generation ends with one of these."""

_NEEDED = {
    "progress": ("chunk", "total_chunks", "frames", "latency", "fps"),
    "complete": ("output_path", "video_shape", "num_frames", "num_chunks", "chunk_size"),
    "cancelled": ("frames_completed",),
    "error": ("error", "code"),
}


@dataclass(frozen=True)
class Event:
    """One event: its name and the object that it carries."""

    name: str
    data: dict[str, Any]


class EventReader:
    """Reads the events of a generation as the bytes of its stream come, cut anywhere."""

    def __init__(self) -> None:
        self._pending = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes; give the events that they complete. Names that this version doesn't know are left out.

        Raises:
            FilmstripError: the stream is none of Filmstrip's.
        """
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode(errors="replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> Event | None:
        if not line:
            name, data = self._name, "\n".join(self._data)
            self._name, self._data = "", []
            return _read(name, data) if name in _NEEDED else None
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            self._name = value
        elif key == "data":
            self._data.append(value)
        return None  # a comment, an id, or part of an event


def _read(name: str, data: str) -> Event:
    try:
        raw = json.loads(data)
        missing = [key for key in _NEEDED[name] if key not in raw]
    except (ValueError, TypeError):
        missing = ["JSON"]
        raw = None
    if not isinstance(raw, dict) or missing:
        raise FilmstripError(
            f"a {name} event of another version of Filmstrip, or of no Filmstrip: {data[:80]!r}", "not_filmstrip"
        )
    return Event(name, raw)
