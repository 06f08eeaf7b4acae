"""Stages of work that is queued on a GPU, timed by the GPU itself: the host only says what is to be done.

Not run yet: no GPU was there when this was written. It is tested with events of a clock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from filmstrip.runtime.chunks import Stages

_MILLISECONDS = 1000


class Event(Protocol):
    """A mark in the queue of a GPU: `torch.cuda.Event`."""

    def record(self) -> None:
        """Put it behind what is queued so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the GPU has come to it."""
        ...

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this mark to a later one, both of which the GPU has passed."""
        ...


def gpu_event() -> Event:
    """A mark in the current stream of the current GPU."""
    make: Callable[..., Any] = torch.cuda.Event
    event: Event = make(enable_timing=True)
    return event


class DeviceStages(Stages):
    """Seconds that the device works on each stage; the host is never more than a stage ahead of it.

    So a client that goes away saves the device all steps but the one at work and the next, and the device never waits.

    Args:
        stages: that were timed before, whose seconds go on here.
        new_event: makes a mark.
    """

    def __init__(self, stages: Stages, new_event: Callable[[], Event] = gpu_event) -> None:
        super().__init__()
        self.seconds = stages.seconds
        self._new_event = new_event
        self._spans: list[tuple[str, Event, Event]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See `Stages`; the time is known after `settle`."""
        if len(self._spans) > 1:
            _, _, end_of_last_but_one = self._spans[-2]
            end_of_last_but_one.synchronize()
        begin, end = self._new_event(), self._new_event()
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._spans.append((name, begin, end))

    def settle(self) -> None:
        """Wait for the last stage, and add up the times of all."""
        for name, begin, end in self._spans:
            end.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + begin.elapsed_time(end) / _MILLISECONDS
        self._spans.clear()
