"""Sigmas, the steps of a chunk and the arithmetic of one step."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import Mode
from filmstrip.runtime.schedule import SigmaTable, chunk_steps, renoise, x0_from_velocity

LONGLIVE = SigmaTable(5)
VIDEO_STEPS = (1000, 750, 500, 250)
steps = st.lists(st.integers(1, 1000), unique=True, max_size=8).map(lambda some: tuple(sorted(some, reverse=True)))


# -- Sigmas ---------------------------------------------------------------------------------------------------


def test_the_table_of_shift_5():
    s = torch.linspace(1, 0.001, 1000, dtype=torch.float64)
    expected = 5 * s / (1 + 4 * s)
    torch.testing.assert_close(torch.tensor(LONGLIVE.sigmas, dtype=torch.float64), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shift", [1, 3, 5, 8])
def test_the_table_is_that_of_diffusers(shift: float):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    torch.testing.assert_close(torch.tensor(SigmaTable(shift).sigmas), scheduler.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("timestep", "index"),
    [
        (1000, 0),
        (937.5, 250),  # s = 0.75, and the warped timesteps of LongLive's release are entries
        (833.33, 500),
        (625, 750),
        (0, 999),
        (1, 999),  # the last entry is 4.98
        (4.9, 999),
        (7.44, 999),
        (7.5, 998),  # between 4.98 and 9.92
        (2000, 0),
    ],
)
def test_the_sigma_of_a_timestep_is_the_nearest(timestep: float, index: int):
    s = (1000 - index) / 1000
    assert LONGLIVE.at(timestep) == pytest.approx(5 * s / (1 + 4 * s), rel=1e-14)


@given(st.floats(0, 1000))
def test_no_sigma_is_nearer(timestep: float):
    distances = (1000 * torch.tensor(LONGLIVE.sigmas, dtype=torch.float64) - timestep).abs()
    assert abs(1000 * LONGLIVE.at(timestep) - timestep) == distances.min()


# -- Steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise_scale", "offset", "expected"),
    [
        (1.0, 0, (1000, 750, 500, 250)),
        (0.7, 0, (700, 500, 250)),
        (0.75, 0, (750, 500, 250)),
        (0.25, 0, (250,)),
        (0.2, 0, (200,)),
        (0.29, 0, (290, 250)),
        (0.2999, 0, (299, 250)),
        (1 - 0.9, 0, (100,)),  # 0.09999999999999998
        (0.0009, 0, ()),
        (0.0, 0, ()),
        (0.7, 100, (600, 500, 250)),
        (1.0, 100, (900, 750, 500, 250)),
        (0.1, 100, ()),
        (0.05, 100, ()),
        (0.0, 100, ()),
    ],
)
def test_steps_of_a_video_chunk(noise_scale: float, offset: int, expected: tuple[int, ...]):
    assert chunk_steps(Mode.VIDEO, VIDEO_STEPS, noise_scale, offset) == expected


def test_a_noise_scale_that_is_off_by_rounding_is_its_own_timestep():
    for whole in range(1, 1001):
        for noise_scale in (whole / 1000, 1 - (1 - whole / 1000), 0.1 * (whole / 100)):
            assert chunk_steps(Mode.VIDEO, (), noise_scale) == (whole,)


@given(steps, st.floats(0, 1), st.integers(0, 200))
def test_steps_of_a_video_fall_from_the_first_one(given_steps: tuple[int, ...], noise_scale: float, offset: int):
    made = chunk_steps(Mode.VIDEO, given_steps, noise_scale, offset)
    assert all(earlier > later for earlier, later in pairwise(made))
    assert set(made[1:]) == {step for step in given_steps if made and step < made[0]}
    first = made[0] if made else 0
    assert abs(max(0, 1000 * noise_scale - offset) - first) < 1.001


@given(steps, st.floats(0, 1))
def test_steps_in_text_mode_are_those_asked_for(given_steps: tuple[int, ...], noise_scale: float):
    assert chunk_steps(Mode.TEXT, given_steps, noise_scale, offset=100) == given_steps
    assert chunk_steps(Mode.TEXT, (1000, 937.5, 833.33), 0.0) == (1000, 937.5, 833.33)


# -- One step -------------------------------------------------------------------------------------------------


def test_x0_and_renoise_by_hand():
    x_t, velocity = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    assert x0_from_velocity(x_t, velocity, 0.25).tolist() == [0.875, -3.0]
    assert renoise(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0]), 0.25).tolist() == [1.5, -1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_and_back_is_the_same(dtype: "torch.dtype"):
    """The velocity is noise - x0, whatever sigma is."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    for sigma in (0.0, 0.004, 0.3, 0.9375, 1.0):
        x_t = renoise(x0, noise, sigma)
        assert x_t.dtype == torch.float64
        assert x0_from_velocity(x_t, noise - x0, sigma).sub(x0).abs().max() < 1e-15
        back = x0_from_velocity(x_t.to(dtype), (noise - x0).to(dtype), sigma)
        assert back.dtype == dtype
        assert back.double().sub(x0).abs().max() < 8 * torch.finfo(dtype).eps


def test_a_step_is_computed_in_float64():
    """In float32 the product 0.1 * 3 would be rounded once more before it is taken away."""
    values = torch.linspace(-3, 3, 1001)
    exact = (values.double() - LONGLIVE.at(625) * values.double().flip(0)).float()
    assert torch.equal(x0_from_velocity(values, values.flip(0), LONGLIVE.at(625)), exact)
    assert not torch.equal(values - LONGLIVE.at(625) * values.flip(0), exact)
