from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from filmstrip.contract import ChunkParameters
from filmstrip.runtime.longlive import denoise
from filmstrip.runtime.sequences import Cancelled, Chunk

STEPS = (1000.0, 937.5, 833.33, 625.0)


def sigma_at(timestep: float) -> float:
    return (timestep / 1000) ** 0.5


def x0_from_velocity(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    return x - sigma * velocity


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    return (1 - sigma) * x0 + sigma * noise


SCHEDULE = {"sigma_at": sigma_at, "x0_from_velocity": x0_from_velocity, "renoise": renoise}


def chunk(is_cancelled: Callable[[], bool] = lambda: False) -> Chunk:
    return Chunk(ChunkParameters(index=0, num_frames=9, height=64, width=64), {}, is_cancelled)


def normal(seed: int) -> Tensor:
    return torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [STEPS, (700, 500), (400,), (0,)])
def test_each_step_starts_from_the_clean_latents_of_the_one_before(steps):
    """The written-out loop, with a prediction that depends on all it is given."""

    def predict(x: Tensor, timestep: float) -> Tensor:
        return x.sin() * (1 + timestep / 100) + 0.5

    draws = iter(range(1, 10))
    made = denoise(chunk(), normal(0), steps, predict=predict, draw_noise=lambda: normal(next(draws)), **SCHEDULE)

    x = normal(0)
    for place, timestep in enumerate(steps):
        x0 = x - (timestep / 1000) ** 0.5 * predict(x, timestep)
        if place + 1 < len(steps):
            sigma = (steps[place + 1] / 1000) ** 0.5
            x = (1 - sigma) * x0 + sigma * normal(place + 1)
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-12)
    assert next(draws) == len(steps)  # one noise between two steps


def test_without_steps_the_latents_come_back():
    """As video mode has none where its noise scale is 0."""
    given = normal(0)
    made = denoise(chunk(), given, (), predict=lambda x, _: x + 1, draw_noise=lambda: normal(1), **SCHEDULE)
    assert torch.equal(made, given)


def test_a_cancelled_chunk_stops_before_its_next_step_and_steps_are_timed():
    predicted: list[float] = []

    def predict(x: Tensor, timestep: float) -> Tensor:
        predicted.append(timestep)
        return x

    running = chunk(lambda: len(predicted) == 2)
    with pytest.raises(Cancelled):
        denoise(running, normal(0), STEPS, predict=predict, draw_noise=lambda: normal(1), **SCHEDULE)
    assert predicted == [1000.0, 937.5]
    assert running.stages.seconds["denoise"] > 0
