"""Stages that a GPU times, with the marks of a clock in a GPU's place."""

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.runtime.longlive import DeviceStages
from filmstrip.runtime.sequences import Stages


class Queue:
    """Work that is queued at once and done later; a mark's time is known when the queue has been waited for."""

    def __init__(self) -> None:
        self.queued_ms = 0.0
        self.done_ms = 0.0

    def mark(self) -> "Mark":
        return Mark(self)


class Mark:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.at_ms = 0.0

    def record(self) -> None:
        self.at_ms = self.queue.queued_ms

    def synchronize(self) -> None:
        self.queue.done_ms = max(self.queue.done_ms, self.at_ms)

    def elapsed_time(self, end_event: "Mark") -> float:
        assert self.queue.done_ms >= end_event.at_ms, "asked before the work was done"
        return end_event.at_ms - self.at_ms


def test_the_host_is_never_more_than_a_stage_ahead():
    queue = Queue()
    stages = DeviceStages(Stages(), queue.mark)
    waited = []
    for _ in range(5):
        with stages.stage("denoise"):
            waited.append(queue.done_ms)
            queue.queued_ms += 100
    assert waited == [0, 0, 100, 200, 300]


def test_the_time_is_that_of_the_work_and_not_of_its_queueing():
    before, queue = Stages(), Queue()
    before.seconds["read"] = 0.5
    stages = DeviceStages(before, queue.mark)
    for name, took_ms in [("denoise", 100), ("cache", 40), ("denoise", 200)]:
        with stages.stage(name):
            queue.queued_ms += took_ms
        queue.queued_ms += 7  # between stages
    assert stages.seconds == {"read": 0.5}
    stages.settle()
    stages.settle()
    assert stages.seconds == pytest.approx({"read": 0.5, "denoise": 0.3, "cache": 0.04})
