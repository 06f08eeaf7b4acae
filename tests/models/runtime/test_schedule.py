"""Timesteps, noise and the noise controller, by hand: a chunk's noise depends on the seed and its place alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import NUM_SEEDS, Mode
from filmstrip.runtime.longlive import (
    ChunkNoise,
    SigmaTable,
    chunk_steps,
    controlled_noise_scale,
    initial_latents,
    motion,
    renoise,
    x0_from_velocity,
)

# -- Timesteps -----------------------------------------------------------------------------------------------

LONGLIVE = SigmaTable(5)
VIDEO_STEPS = (1000, 750, 500, 250)
steps = st.lists(st.integers(1, 1000), unique=True, max_size=8).map(lambda some: tuple(sorted(some, reverse=True)))


# -- Sigmas ---------------------------------------------------------------------------------------------------


def test_the_table_of_shift_5():
    s = torch.linspace(1, 0.001, 1000, dtype=torch.float64)
    expected = 5 * s / (1 + 4 * s)
    torch.testing.assert_close(torch.tensor(LONGLIVE.sigmas, dtype=torch.float64), expected, rtol=1e-13, atol=0)


def test_the_table_is_that_of_diffusers(subtests: pytest.Subtests):
    for shift in (1, 3, 5, 8):
        with subtests.test(shift=shift):
            diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
            torch.testing.assert_close(torch.tensor(SigmaTable(shift).sigmas), scheduler.sigmas, rtol=1e-6, atol=0)


TIMESTEPS = [
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
]


def test_the_sigma_of_a_timestep_is_the_nearest(subtests: pytest.Subtests):
    for timestep, index in TIMESTEPS:
        with subtests.test(timestep=timestep):
            s = (1000 - index) / 1000
            assert LONGLIVE.at(timestep) == pytest.approx(5 * s / (1 + 4 * s), rel=1e-14)


@given(st.floats(0, 1000))
def test_no_sigma_is_nearer(timestep: float):
    distances = (1000 * torch.tensor(LONGLIVE.sigmas, dtype=torch.float64) - timestep).abs()
    assert abs(1000 * LONGLIVE.at(timestep) - timestep) == distances.min()


# -- Steps ----------------------------------------------------------------------------------------------------


VIDEO_CHUNK_STEPS = [
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
]


def test_steps_of_a_video_chunk(subtests: pytest.Subtests):
    for noise_scale, offset, expected in VIDEO_CHUNK_STEPS:
        with subtests.test(noise_scale=noise_scale, offset=offset):
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


# -- Noise ---------------------------------------------------------------------------------------------------

SHAPE = (1, 4, 3, 5, 6)
seeds = st.integers(0, NUM_SEEDS - 1)


def draws(seed: int, latent_index: int, count: int = 3) -> list["torch.Tensor"]:
    noise = ChunkNoise(seed, latent_index, SHAPE)
    return [noise.draw() for _ in range(count)]


@given(seeds, st.integers(0, 3000), st.integers(0, 2**32), st.integers(0, 5))
def test_noise_is_the_same_whatever_came_before(seed: int, latent_index: int, other: int, others_drawn: int):
    expected = draws(seed, latent_index)
    torch.manual_seed(other)
    torch.randn(7)
    between = ChunkNoise(other, latent_index + 3, SHAPE)
    again = ChunkNoise(seed, latent_index, SHAPE)
    for wanted in expected:
        for _ in range(others_drawn):
            between.draw()
        assert torch.equal(again.draw(), wanted)


def test_noise_does_not_change_the_global_generator():
    before = torch.random.get_rng_state()
    draws(42, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_generator_is_seeded_with_the_sum_and_drawn_in_order():
    generator = torch.Generator().manual_seed(42 + 7)
    for noise in draws(42, 7):
        assert torch.equal(noise, torch.randn(SHAPE, generator=generator))


def test_draws_chunks_and_seeds_differ():
    all_draws = [noise for place in ((42, 0), (42, 3), (43, 3)) for noise in draws(*place)]
    flat = torch.stack(all_draws).flatten(1)
    assert len({tuple(row.tolist()) for row in flat}) == len(all_draws)


def test_noise_is_drawn_on_the_cpu_whatever_the_device():
    """The device `meta` has no values to draw, but takes what is moved to it."""
    assert ChunkNoise(42, 3, SHAPE, device="meta").draw().device.type == "meta"


def test_noise_is_normal():
    noise = ChunkNoise(42, 0, (1, 16, 3, 40, 72)).draw()
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01


def test_the_highest_seed_has_room_for_the_longest_generation():
    assert draws(NUM_SEEDS - 1, 10_000)[0].isfinite().all()


def test_latents_begin_as_noise_in_text_mode():
    noise = draws(42, 0)[0]
    assert initial_latents(noise, None, 0.7) is noise


def test_latents_begin_as_noise_and_video_in_their_shares():
    noise, source = torch.tensor([2.0, -4.0]), torch.tensor([1.0, 8.0])
    assert initial_latents(noise, source, 0.25).tolist() == [1.25, 5.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_noise_scale_of_0_is_the_video_and_of_1_the_noise(dtype: "torch.dtype"):
    noise, source = (tensor.to(dtype) for tensor in draws(1, 2, count=2))
    assert torch.equal(initial_latents(noise, source, 0.0), source)
    assert torch.equal(initial_latents(noise, source, 1.0), noise)


# -- The noise controller ------------------------------------------------------------------------------------


def frames(*levels: float) -> "torch.Tensor":
    """One even frame for each level."""
    return torch.tensor(levels, dtype=torch.float32).reshape(1, 1, -1, 1, 1).expand(1, 3, -1, 4, 6)


MOTIONS = [
    ((0.5, 0.5, 0.5, 0.5), 3, None, 0),
    ((0, 0, 0, 0.1), 3, None, 0.5),
    ((0, 0, 0, -0.1), 3, None, 0.5),
    ((0, 0.02, 0.12, 0.13), 3, None, 0.5),  # the strongest one
    ((0, 0.1, 0.1, 0.1), 3, None, 0.5),  # towards the first of the last three
    ((-1, 0, 0, 0, 0), 3, None, 0),  # before them
    ((0, 0, 0, 1), 3, None, 1),
    ((0, 0, 0, 0.2), 3, None, 1),
    ((0, 0, 0), 3, 0.1, 0.5),
    ((0, 0, 0), 3, None, 0),
    ((0, 0, 0, 0), 3, 1.0, 0),  # the chunk is long enough without it
    ((0,), 3, 0.05, 0.25),
    ((0,), 3, None, 0),
    ((0, 0.1, 0.1, 0.1), 2, None, 0),
]


def test_motion(subtests: pytest.Subtests):
    for levels, num_last, previous, expected in MOTIONS:
        with subtests.test(levels=levels, num_last=num_last, previous=previous):
            before = None if previous is None else frames(previous)
            assert motion(frames(*levels), num_last, before) == pytest.approx(expected, abs=1e-6)


def test_motion_is_the_root_of_the_mean_square():
    moved = frames(0, 0).clone()
    moved[0, 0, 1, 0, 0] = 0.6  # one of 72 numbers
    assert motion(moved, 3) == pytest.approx((0.6**2 / 72) ** 0.5 / 0.2)


def test_motion_of_16_bit_frames_is_computed_in_32():
    small = frames(0, 1e-3).half()
    assert motion(small, 3) == pytest.approx(1e-3 / 0.2, rel=1e-3)


def test_the_controlled_noise_scale(subtests: pytest.Subtests):
    for moved, asked, expected in (
        (0, 0.7, 0.79),
        (1, 0.7, 0.61),
        (0.5, 0.7, 0.70),
        (0, 0, 0.72),
        (1, 1, 0.64),
        (0, 1, 0.82),
    ):
        with subtests.test(moved=moved, asked=asked, expected=expected):
            assert controlled_noise_scale(moved, asked) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_more_motion_is_less_noise_within_bounds(less: float, more: float, asked: float):
    less, more = sorted((less, more))
    assert 0.54 - 1e-9 <= controlled_noise_scale(more, asked) <= controlled_noise_scale(less, asked) <= 0.82 + 1e-9
