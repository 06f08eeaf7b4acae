"""The denoising loop, and work that a GPU times, with the marks of a clock in a GPU's place."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from filmstrip.contract import ChunkParameters
from filmstrip.runtime.longlive import ChunkNoise, GpuTimings, SigmaTable, denoise
from filmstrip.runtime.sequences import Chunk, ChunkCancelled, Timings

# -- The denoising loop --------------------------------------------------------------------------------------

STEPS = (1000.0, 937.5, 833.33, 625.0)
SHAPE = (1, 4, 3, 2, 2)
SIGMAS = SigmaTable(5.0)


def chunk(is_cancelled: Callable[[], bool] = lambda: False) -> Chunk:
    return Chunk(ChunkParameters(index=0, num_frames=9, height=64, width=64), {}, is_cancelled)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [STEPS, (700, 500), (400,), (0,)])
def test_each_step_starts_from_the_clean_latents_of_the_one_before(steps):
    """The written-out loop, with a velocity that depends on all that it is given."""

    def velocity(x: Tensor, timestep: float) -> Tensor:
        return x.sin() * (1 + timestep / 100) + 0.5

    noise = ChunkNoise(1, 0, SHAPE)
    made = denoise(chunk(), normal(0), steps, velocity=velocity, noise=noise, sigmas=SIGMAS)

    drawn = torch.Generator().manual_seed(1)
    x = normal(0)
    for index, timestep in enumerate(steps):
        x0 = (x.double() - SIGMAS.at(timestep) * velocity(x, timestep).double()).float()
        if index + 1 < len(steps):
            sigma = SIGMAS.at(steps[index + 1])
            x = ((1 - sigma) * x0.double() + sigma * torch.randn(SHAPE, generator=drawn).double()).float()
    assert torch.equal(made, x0)
    assert torch.equal(noise.draw(), torch.randn(SHAPE, generator=drawn))  # one noise between two steps


def test_without_steps_the_latents_come_back():
    """As video mode has none where its noise scale is 0."""
    given = normal(0)
    assert torch.equal(
        denoise(chunk(), given, (), velocity=lambda x, _: x + 1, noise=ChunkNoise(1, 0, SHAPE), sigmas=SIGMAS), given
    )


def test_a_cancelled_chunk_stops_before_its_next_step_and_steps_are_timed():
    predicted: list[float] = []

    def velocity(x: Tensor, timestep: float) -> Tensor:
        predicted.append(timestep)
        return x

    running = chunk(lambda: len(predicted) == 2)
    with pytest.raises(ChunkCancelled):
        denoise(running, normal(0), STEPS, velocity=velocity, noise=ChunkNoise(1, 0, SHAPE), sigmas=SIGMAS)
    assert predicted == [1000.0, 937.5]
    assert running.timings.seconds["denoise"] > 0


# -- Times on a GPU ------------------------------------------------------------------------------------------


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
    timings = GpuTimings(Timings(), queue.mark)
    waited = []
    for _ in range(5):
        with timings.measure("denoise"):
            waited.append(queue.done_ms)
            queue.queued_ms += 100
    assert waited == [0, 0, 100, 200, 300]


def test_the_time_is_that_of_the_work_and_not_of_its_queueing():
    before, queue = Timings(), Queue()
    before.seconds["read"] = 0.5
    timings = GpuTimings(before, queue.mark)
    for name, took_ms in [("denoise", 100), ("cache", 40), ("denoise", 200)]:
        with timings.measure(name):
            queue.queued_ms += took_ms
        queue.queued_ms += 7  # between stages
    assert timings.seconds == {"read": 0.5}
    timings.settle()
    timings.settle()
    assert timings.seconds == pytest.approx({"read": 0.5, "denoise": 0.3, "cache": 0.04})
