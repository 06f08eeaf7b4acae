"""What a model keeps for each open sequence, and when it lets go of it.

Triton never tells a model that a sequence was dropped: not when it sat idle too long, not when a second START
came with the same correlation id, not when a queued request was cancelled. So the rules here stand on their own:
START replaces, END frees, a chunk that fails or is cancelled frees, and so does our own idle limit.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from filmstrip.errors import SequenceLost

State = TypeVar("State")


@dataclass
class _Entry(Generic[State]):
    state: State
    used_at: float
    in_use: bool = False


class Sequences(Generic[State]):
    """The states of the open sequences, by correlation id.

    Args:
        start: makes the state of a new sequence.
        max_sequences: states held at once; one more START drops the one that has been idle longest.
        idle_s: a state unused for longer is dropped by `drop_idle`.
        clock: seconds, never falling.
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
        # Requests come one at a time, but `drop_idle` runs beside them. Held for look-ups only, never for work.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def use(self, id: int | str, *, start: bool, end: bool) -> Iterator[State]:
        """The state for one request; it is dropped afterwards at the sequence's end or when the request fails.

        Raises:
            SequenceLost: the sequence isn't open and this is not its start.
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
        """Drop a sequence's state, if there is any."""
        with self._lock:
            self._entries.pop(id, None)

    def clear(self) -> None:
        """Drop every state."""
        with self._lock:
            self._entries.clear()

    def drop_idle(self) -> None:
        """Drop the states that nobody has used for longer than the idle limit."""
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
        # Made only now, so that the state that it replaces has given its memory back.
        entry = _Entry(self._start(), self._clock(), in_use=True)
        with self._lock:
            self._entries[id] = entry
        return entry

    def _find(self, id: int | str) -> _Entry[State]:
        with self._lock:
            entry = self._entries.get(id)
            if entry is None:
                raise SequenceLost("the model no longer holds this sequence: it failed, was cancelled or sat idle")
            entry.in_use = True
            return entry


class IdleTimer:
    """A daemon thread that frees idle sequences while no request comes."""

    def __init__(self, sequences: Sequences[State], period_s: float) -> None:
        self._sequences = sequences
        self._period_s = period_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="idle-timer", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end; it is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._sequences.drop_idle()
