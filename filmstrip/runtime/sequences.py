"""A chunk as a model gets it, and the states of sequences, which a model keeps from chunk to chunk. No Triton here.

Triton never tells a model that a sequence was dropped: not when it was idle for too long, not when a second START came
with the same correlation id, not when a queued request was cancelled. So the rules here do not rely on it: START
replaces a state; END, a chunk that fails or is cancelled, and our own idle limit free it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from filmstrip.contract import INPUT_VIDEO, ChunkParameters, TensorSpec, numpy_dtype
from filmstrip.errors import BadModelOutput, InvalidField, ModelError, SequenceLost
from filmstrip.runtime.processors import FrameProcessor, Frames, resize

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]


# -- One chunk ----------------------------------------------------------------------------------------------


class ChunkCancelled(Exception):
    """The client has cancelled the request; raised between two steps of a model's work."""


class Timings:
    """Seconds spent in each part of the work on a chunk; the report and the metrics call a part a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time a `with` block; several blocks of one name add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass
class Chunk:
    """What a model gets for one chunk.

    Attributes:
        parameters: see `ChunkParameters`.
        tensors: its arrays, by the names of `filmstrip.contract`; views that are valid for this chunk only.
        is_cancelled: whether the client has cancelled the request, to be called between steps (13 us a call).
        timings: where the model times its work.
        report: whatever else the model reports.
    """

    parameters: ChunkParameters
    tensors: Tensors
    is_cancelled: Callable[[], bool]
    timings: Timings = field(default_factory=Timings)
    report: dict[str, Any] = field(default_factory=dict)

    def stop_if_cancelled(self) -> None:
        """Raise `ChunkCancelled` if the client has cancelled the request."""
        if self.is_cancelled():
            raise ChunkCancelled

    def tensor(self, spec: TensorSpec) -> npt.NDArray[Any]:
        """A tensor that this chunk needs.

        Raises:
            InvalidField: it is missing.
        """
        if spec.name not in self.tensors:
            raise invalid(self.parameters.index, spec, "is missing")
        return self.tensors[spec.name]


class SequenceState(Protocol):
    """What a model keeps from one chunk of a sequence to the next; created at START."""

    def chunk(self, chunk: Chunk) -> Frames:
        """Generate the next chunk: [F, H, W, 3] uint8, with the number and size of frames in its parameters.

        Raises:
            ChunkCancelled: the client has cancelled the request.
            FilmstripError: the client gets its message; any other exception becomes 'the model failed'.
        """
        ...


def invalid(index: int, spec: TensorSpec, problem: str) -> InvalidField:
    """The error for a tensor that can't be used, naming its chunk and field."""
    return InvalidField(f"chunk {index}: {spec.name} {problem}", f"chunk_specs[chunk={index}].{spec.name}")


def read_parameters(texts: npt.NDArray[np.object_]) -> ChunkParameters:
    """The CHUNK tensor's parameters.

    Raises:
        ModelError: they can't be read; the frontend and the model are of different versions.
    """
    try:
        (text,) = texts
        return ChunkParameters.from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model cannot read the chunk's parameters: {error}") from error


def check_tensor(index: int, spec: TensorSpec, array: npt.NDArray[Any]) -> None:
    """Check an array against its declaration; floats must be finite.

    Raises:
        InvalidField: it has another type or shape, is empty, or contains NaN or infinity.
    """
    if array.dtype != numpy_dtype(spec):
        raise invalid(index, spec, f"is {array.dtype}, must be {spec.dtype}")
    if not spec.accepts(array.shape):
        raise invalid(index, spec, f"has shape {list(array.shape)}, must be {list(spec.dims)}")
    if array.size == 0:
        raise invalid(index, spec, f"is empty: its shape is {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise invalid(index, spec, "contains NaN or infinity")


def check_frames(parameters: ChunkParameters, frames: Frames) -> None:
    """Check a model's frames against the parameters of their chunk.

    Raises:
        BadModelOutput: they have another type or shape.
    """
    expected = (parameters.num_frames, parameters.height, parameters.width, 3)
    if frames.shape != expected or frames.dtype != np.uint8:
        found = f"{frames.dtype} {list(frames.shape)}"
        raise BadModelOutput(f"chunk {parameters.index}: the model returned {found}, expected uint8 {list(expected)}")


class FrameProcessorState:
    """The state of a frame processor's sequence: it resizes the input video and processes it."""

    def __init__(self, processor: FrameProcessor) -> None:
        self._processor = processor

    def chunk(self, chunk: Chunk) -> Frames:
        """See `SequenceState`."""
        with chunk.timings.measure("resize"):
            frames = resize(chunk.tensor(INPUT_VIDEO), chunk.parameters.height, chunk.parameters.width)
        with chunk.timings.measure("process"):
            return self._processor.process(frames)


State = TypeVar("State")


@dataclass
class _Entry(Generic[State]):
    state: State
    used_at: float
    in_use: bool = False


class Sequences(Generic[State]):
    """The states of the open sequences, by correlation id.

    Args:
        start: creates the state of a new sequence.
        max_sequences: states held at once; one more START drops the one that has been idle longest.
        idle_s: `drop_idle` drops a state that was unused for longer.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        start: Callable[[], State],
        *,
        max_sequences: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._max_sequences = max_sequences
        self._idle_s = idle_s
        self._clock = clock
        self._entries: dict[int | str, _Entry[State]] = {}
        # Requests come one at a time, but `drop_idle` runs in another thread. Held for look-ups only, never for work.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def use(self, id: int | str, *, start: bool, end: bool) -> Iterator[State]:
        """The state for one request; afterwards it is dropped if the sequence ends or the request failed.

        Raises:
            SequenceLost: the sequence isn't open, and this is not its start.
        """
        entry = self._open(id) if start else self._find(id)
        keep = False
        try:
            yield entry.state
            keep = not end
        finally:
            with self._lock:
                entry.used_at, entry.in_use = self._clock(), False
                if not keep:
                    self._entries.pop(id, None)

    def end(self, id: int | str) -> None:
        """Drop a sequence's state, if there is one."""
        with self._lock:
            self._entries.pop(id, None)

    def clear(self) -> None:
        """Drop every state."""
        with self._lock:
            self._entries.clear()

    def drop_idle(self) -> None:
        """Drop the states that were unused for longer than the idle limit."""
        with self._lock:
            oldest = self._clock() - self._idle_s
            self._entries = {
                key: entry for key, entry in self._entries.items() if entry.in_use or entry.used_at >= oldest
            }

    def _open(self, id: int | str) -> _Entry[State]:
        with self._lock:
            self._entries.pop(id, None)
            while len(self._entries) >= self._max_sequences:
                del self._entries[min(self._entries, key=lambda key: self._entries[key].used_at)]
        # Created only now, when the state that it replaces has been freed.
        entry = _Entry(self._start(), self._clock(), in_use=True)
        with self._lock:
            self._entries[id] = entry
        return entry

    def _find(self, id: int | str) -> _Entry[State]:
        with self._lock:
            entry = self._entries.get(id)
            if entry is None:
                raise SequenceLost(
                    "the model no longer holds this sequence: it failed, was cancelled or was idle for too long"
                )
            entry.in_use = True
            return entry


class IdleTimer:
    """A daemon thread that frees idle sequences, also when no requests come."""

    def __init__(self, sequences: Sequences[State], period_s: float) -> None:
        self._sequences = sequences
        self._period_s = period_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="idle-timer", daemon=True).start()

    def stop(self) -> None:
        """Tell the thread to end; returns at once."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._sequences.drop_idle()
