"""A chunk's noise depends on the seed and its place alone, and so do the latents that it begins with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import NUM_SEEDS
from filmstrip.runtime.schedule import ChunkNoise, initial_latents

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


def test_noise_leaves_the_global_generator_alone():
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_noise_of_another_type_is_the_rounded_noise(dtype: "torch.dtype"):
    noise = ChunkNoise(42, 3, SHAPE, dtype=dtype).draw()
    assert noise.dtype == dtype
    assert torch.equal(noise, draws(42, 3)[0].to(dtype))


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
