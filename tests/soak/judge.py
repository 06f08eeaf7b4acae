"""Judges every response, event stream and video, and computes the frames that a generation must produce."""

import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.errors import ERRORS
from filmstrip.wire import VIDEO_HEADER_BYTES, unpack_video_header

Frames = npt.NDArray[np.uint8]

RECOVERY_S = 30.0
"""How long after a fault Triton may be unavailable."""
END_AFTER_KILL_S = 15.0
"""How long a generation may continue after its Triton was killed."""
FAULT_CODES = frozenset({"triton_unavailable", "sequence_lost", "model_died", "chunk_timeout", "load_failed"})
"""Error codes of generations during a fault."""
_MAX_CHARACTERS = 1500


@dataclass(frozen=True)
class StreamEvent:
    """One event of a stream: its name and data."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class ExpectedOutcome:
    """The expected outcome of a generation.

    Attributes:
        num_frames: frames of the complete video.
        size: height and width.
        codes: error codes that the request provokes; if there are any, it must fail.
    """

    num_frames: int
    size: tuple[int, int]
    codes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Failure:
    """Something that must not happen.

    Attributes:
        at_s: seconds since the start.
        kind: kind of the action.
        sent: what was sent.
        wrong: what is wrong with the response.
    """

    at_s: float
    kind: str
    sent: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.at_s:.1f} s, {self.kind}: {self.wrong}\n    sent: {self.sent}"


class Judge:
    """Counts what happens and keeps the failures; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._faults: list[float] = []
        self._kills: list[float] = []
        self.actions: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.failures: list[Failure] = []

    def count(self, counter: Counter[Any], key: object) -> None:
        """Add one to a counter."""
        with self._lock:
            counter[key] += 1

    def fail(self, kind: str, sent: object, wrong: str) -> None:
        """Record a failure."""
        at_s = time.monotonic() - self._began
        with self._lock:
            self.failures.append(Failure(at_s, kind, str(sent)[:_MAX_CHARACTERS], wrong[:_MAX_CHARACTERS]))

    def note_fault(self, name: str, *, kills_triton: bool = False) -> None:
        """Record a fault that begins now."""
        with self._lock:
            self.faults[name] += 1
            self._faults.append(time.monotonic())
            if kills_triton:
                self._kills.append(time.monotonic())

    def prolong_fault(self) -> None:
        """Record that a fault has lasted until now."""
        with self._lock:
            self._faults.append(time.monotonic())

    def met_fault(self, began: float) -> bool:
        """Whether a fault may affect what began at this monotonic time."""
        return any(fault > began - RECOVERY_S for fault in self._faults)

    def kill_since(self, began: float) -> float | None:
        """When Triton was first killed after this monotonic time."""
        return next((kill for kill in self._kills if kill >= began), None)


def wrong_answer(status: int, body: bytes, expected: Collection[int], *, met_fault: bool) -> str | None:
    """What is wrong with a response that is no stream: its status or the format of its error."""
    allowed = status in expected or (status == 503 and met_fault)
    if not allowed:
        return f"status {status}, expected {sorted(expected)}: {body[:400]!r}"
    return wrong_error(status, body) if status >= 400 else None


def wrong_error(status: int, body: bytes) -> str | None:
    """What is wrong with the body of an error."""
    try:
        response = json.loads(body)
        error = response["error"]
        code, message = error["code"], error["message"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without an error in our format: {body[:400]!r}"
    if (
        response.keys() != {"error", "detail"}
        or response["detail"] != message
        or error.keys() - {"code", "message", "field"}
    ):
        return f"{status} with an error in another format: {body[:400]!r}"
    if code not in ERRORS or (ERRORS[code].status != status and code != "bad_request"):
        return f"{status} with the code {code}"
    if "Traceback" in message or "/tmp/" in message or "site-packages" in message:
        return f"a message that exposes internals of the server: {message}"
    return None


def wrong_events(events: Sequence[StreamEvent], outcome: ExpectedOutcome, *, met_fault: bool) -> str | None:
    """What is wrong with the events of a complete stream."""
    if not events or events[-1].name not in {"complete", "cancelled", "error"}:
        return f"the stream ended without a last event, after {len(events)}"
    *progress, last = events
    if any(event.name != "progress" for event in progress):
        return f"events after the last one: {[event.name for event in events]}"
    if [event.data["chunk"] for event in progress] != list(range(1, len(progress) + 1)):
        return f"chunks are numbered {[event.data['chunk'] for event in progress]}"
    num_frames = sum(event.data["frames"] for event in progress)
    if last.name == "error":
        code = last.data["code"]
        allowed = outcome.codes | (FAULT_CODES if met_fault else frozenset())
        return None if code in allowed else f"error {last.data}, expected {sorted(allowed) or 'none'}"
    if outcome.codes and last.name == "complete":
        return f"complete, expected an error of {sorted(outcome.codes)}"
    return _wrong_ending(last, len(progress), num_frames, outcome)


def _wrong_ending(last: StreamEvent, num_chunks: int, num_frames: int, outcome: ExpectedOutcome) -> str | None:
    shape = [num_frames, *outcome.size, 3]
    data = dict(last.data)
    name = data.pop("output_path", None)
    seed = data.pop("seed", None)
    if type(seed) is not int or data.pop("unused", None) != []:  # no action sends a field without effect
        return f"{last.name} {last.data}, expected a seed and no unused fields"
    if last.name == "cancelled":
        expected: dict[str, Any] = {
            "chunk": num_chunks,
            "total_chunks": data.get("total_chunks"),
            "frames_completed": num_frames,
        }
        if num_frames:
            expected["video_shape"] = shape
    else:
        expected = {
            "video_shape": [outcome.num_frames, *outcome.size, 3],
            "num_frames": outcome.num_frames,
            "num_chunks": num_chunks,
            "chunk_size": 12,
        }
        if num_frames != outcome.num_frames:
            return f"complete after {num_frames} frames of {outcome.num_frames}"
    if data != expected or (name is not None) != (num_frames > 0):
        return f"{last.name} {last.data}, expected {expected}"
    return None


def wrong_video(data: bytes, shape: Sequence[int], frames: Frames | None) -> str | None:
    """What is wrong with a downloaded video; without `frames` only its shape is checked."""
    try:
        header = unpack_video_header(data[:VIDEO_HEADER_BYTES])
    except ValueError as error:
        return str(error)
    if list(header) != list(shape):
        return f"the header says {list(header)}, expected {list(shape)}"
    if len(data) != VIDEO_HEADER_BYTES + header.num_bytes:
        return f"{len(data)} bytes of a video of {VIDEO_HEADER_BYTES + header.num_bytes}"
    if frames is None:
        return None
    got = np.frombuffer(data, np.uint8, offset=VIDEO_HEADER_BYTES).reshape(shape)
    different = np.flatnonzero((got != frames).any(axis=(1, 2, 3)))
    return f"frames {different[:20].tolist()} differ from what was expected" if different.size else None


CHUNK = 12
PROBE_SIZE = (64, 96)


def looped(video: Frames, num_frames: int) -> Frames:
    """The input frame of each output frame, [F, H, W, 3], for frame processors in video mode."""
    return np.asarray(video[np.arange(num_frames) % len(video)], np.uint8)


def with_own_videos(whole: Frames | None, own: Mapping[int, Frames], num_frames: int) -> Frames:
    """The looped input, replaced by the chunks' own videos where they have one."""
    size = (whole if whole is not None else next(iter(own.values()))).shape[1:]
    frames = np.zeros((num_frames, *size), np.uint8) if whole is None else looped(whole, num_frames).copy()
    for index, video in own.items():
        first = index * CHUNK
        count = min(CHUNK, num_frames - first)
        frames[first : first + count] = video[np.minimum(np.arange(count), len(video) - 1)]
    return frames


def gray(frames: Frames) -> Frames:
    """BT.601 luma, rounded: what the `gray` model returns."""
    luma = (frames.astype(np.uint32) @ np.array([299, 587, 114], np.uint32) + 500) // 1000
    return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=-1)


def probe_pattern(seeds: Sequence[int], counts: Sequence[int]) -> Frames:
    """What the probe model returns in text mode.

    Args:
        seeds: seed of each chunk.
        counts: frames that each chunk added to the output, from its progress event.
    """
    chunks = [_probe_chunk(index, seeds[index], count) for index, count in enumerate(counts)]
    return np.concatenate(chunks) if chunks else np.zeros((0, *PROBE_SIZE, 3), np.uint8)


def _probe_chunk(index: int, seed: int, count: int) -> Frames:
    height, width = PROBE_SIZE
    frame, y, x, channel = np.ogrid[:count, :height, :width, :3]
    return np.asarray((seed + 31 * index + 7 * frame + y + x + 85 * channel) % 256, np.uint8)
