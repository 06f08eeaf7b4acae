"""The events of a generation as a client sees them."""

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from filmstrip.errors import ERRORS, FilmstripError, ModelError, UnexpectedAnswer
from filmstrip.wire import VideoShape


@dataclass(frozen=True)
class Progress:
    """A chunk is done.

    Attributes:
        chunk: the chunk's number, from 1.
        total_chunks: chunks of the whole generation, resets of the cache counted.
        frames: pixel frames that this chunk added to the output.
        latency: seconds that it took.
        fps: frames / latency.
    """

    chunk: int
    total_chunks: int
    frames: int
    latency: float
    fps: float


@dataclass(frozen=True)
class Complete:
    """The video is whole; the last event.

    Attributes:
        output_path: where it can be downloaded.
        video_shape: [F, H, W, C].
        num_frames: F.
        num_chunks: chunks made.
        chunk_size: pixel frames of one of the pipeline's chunks.
        seed: the request that names this seed gives the same video again; None from a server that does not send it.
        unused: fields of the request that the pipeline has no use for, sorted.
    """

    output_path: str
    video_shape: VideoShape
    num_frames: int
    num_chunks: int
    chunk_size: int
    seed: int | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cancelled:
    """The generation was cancelled; the last event.

    Attributes:
        chunk: index, from 0, of the chunk that was not started.
        total_chunks: chunks that the whole video would have had; 0 where that was not known yet.
        frames_completed: pixel frames made so far.
        output_path: where these can be downloaded, None when there are none.
        video_shape: their shape, None when there are none.
        seed: as in Complete.
        unused: as in Complete.
    """

    chunk: int
    total_chunks: int
    frames_completed: int
    output_path: str | None = None
    video_shape: VideoShape | None = None
    seed: int | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErrorEvent:
    """The generation failed; the last event."""

    error: str
    code: str

    def exception(self) -> FilmstripError:
        """This failure as the exception of its code; ModelError for a code that this version doesn't know."""
        return ERRORS.get(self.code, ModelError)(self.error)


Event = Progress | Complete | Cancelled | ErrorEvent
LAST_EVENTS = (Complete, Cancelled, ErrorEvent)
"""Every stream ends with one of these, and nothing follows it."""

_EventT = TypeVar("_EventT", Progress, Complete, Cancelled, ErrorEvent)


def parse_event(name: str, data: str) -> Event | None:
    """Read one server-sent event; None for a name that this version doesn't know.

    httpx-sse makes an empty event named "message" of a comment that follows an event with an id: None too.

    Raises:
        UnexpectedAnswer: the data are not the JSON that an event of this name carries.
    """
    match name:
        case "progress":
            return _read(Progress, name, data)
        case "complete":
            return _read(Complete, name, data)
        case "cancelled":
            return _read(Cancelled, name, data)
        case "error":
            return _read(ErrorEvent, name, data)
        case _:
            return None


def _read(event: type[_EventT], name: str, data: str) -> _EventT:
    try:
        raw = json.loads(data)
    except ValueError:
        raise UnexpectedAnswer(f"the data of a {name} event are not JSON: {data[:80]!r}") from None
    if not isinstance(raw, dict):
        raise UnexpectedAnswer(f"the data of a {name} event are not an object: {data[:80]!r}")
    missing = [known.name for known in fields(event) if known.default is MISSING and known.name not in raw]
    if missing:
        raise UnexpectedAnswer(f"a {name} event has no {', '.join(missing)}")
    known_values: dict[str, Any] = {known.name: raw[known.name] for known in fields(event) if known.name in raw}
    if known_values.get("video_shape") is not None:
        known_values["video_shape"] = read_shape(known_values["video_shape"])
    if "unused" in known_values:
        known_values["unused"] = _read_names(known_values["unused"])
    return event(**known_values)


def _read_names(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(name, str) for name in raw):
        raise UnexpectedAnswer(f"not a list of field names: {raw!r}")
    return tuple(raw)


def read_shape(raw: Any) -> VideoShape:
    """The shape [F, H, W, C] of an answer.

    Raises:
        UnexpectedAnswer: it is no list of four positive integers.
    """
    if not isinstance(raw, list) or len(raw) != 4 or not all(isinstance(size, int) and size > 0 for size in raw):
        raise UnexpectedAnswer(f"not the shape of a video: {raw!r}")
    return VideoShape(*raw)
