from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from filmstrip.contract import ChunkParameters
from filmstrip.runtime.longlive import denoise
from filmstrip.runtime.schedule import ChunkNoise, SigmaTable
from filmstrip.runtime.sequences import Chunk, ChunkCancelled

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
    assert running.stages.seconds["denoise"] > 0
