"""One pass over clean and noisy frames against the sampler with its cache."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from export.config import CheckpointConfig
from export.modules.transformer import CausalTransformer, Rope
from filmstrip.runtime.transformer import FrameWindow, KvCache, rope_tables
from research.layouts import Layout, after_switch, from_afar, from_start
from research.one_pass import velocities
from research.rollout import Rollout
from tests.models.export.configs import tiny
from tests.models.export.networks import HEIGHT, TOKENS, WIDTH, normal, transformer

WINDOW = FrameWindow(12, 3, 3)
NUM_FRAMES = 24


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


class Cached:
    """The runtime's own cache around a network; frames have the numbers that are their positions."""

    def __init__(self, config: CheckpointConfig, network: CausalTransformer, latents: Tensor) -> None:
        self.config, self.network, self.latents = config, network, latents
        self.kv = KvCache(
            WINDOW,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens_per_frame=TOKENS,
            dtype=torch.float32,
            device="cpu",
        )

    def run(self, plan, latents: Tensor, timestep: float, text, hints: Tensor | None = None):
        tables = rope_tables(self.config.head_dim, torch.tensor(plan.absolute_positions), HEIGHT // 2, WIDTH // 2)
        timesteps = torch.full((1, plan.num_frames), timestep)
        return self.network(latents, timesteps, *text, Rope(*tables), self.kv.k, self.kv.v, self.kv.bias(plan), hints)

    def clean(self, num_frames: int, text) -> None:
        plan = self.kv.chunk_span(num_frames)
        _, k, v = self.run(plan, self.latents[:, :, plan.first_frame : plan.end], 0.0, text)
        self.kv.write(plan, k, v)

    def recache(self, text) -> None:
        plan = self.kv.recache_span()
        assert plan is not None
        _, k, v = self.run(plan, self.latents[:, :, plan.first_frame : plan.end], 0.0, text)
        self.kv.write(plan, k, v)

    def velocity(self, noisy: Tensor, timestep: float, text, hints: Tensor | None = None) -> Tensor:
        plan = self.kv.chunk_span(noisy.shape[2])
        return self.run(plan, noisy, timestep, text, hints)[0]


def setting(**changed):
    config = tiny(position_embedding=True, **changed)
    network, text_kv, _ = transformer(config)
    texts = [text_kv(normal(1, 6, 20, seed=seed)) for seed in (1, 2)]
    return config, network, texts, normal(1, 4, NUM_FRAMES, HEIGHT, WIDTH)


def predicted(network: CausalTransformer, layout: Layout, clip: Tensor, texts) -> dict[int, list[tuple]]:
    """By the first frame of each noisy chunk: its noisy latents, its timestep, its velocity."""
    latents = clip[:, :, list(layout.frames)].clone()
    timesteps = torch.zeros(1, len(layout.frames))
    for number, one in enumerate(layout.noisy):
        latents[:, :, one.first : one.end] += normal(1, 4, one.num_frames, HEIGHT, WIDTH, seed=number + 5)
        timesteps[:, one.first : one.end] = 900 - 100 * number
    made = velocities(network, layout, latents, timesteps, texts)
    found: dict[int, list[tuple]] = {}
    for one in layout.noisy:
        places = slice(one.first, one.end)
        told = (latents[:, :, places], float(timesteps[0, one.first]), made[:, :, places])
        found.setdefault(layout.positions[one.first], []).append(told)
    return found


@pytest.mark.parametrize("lengths", [[3] * 7, [4, 3, 3, 3]])
def test_chunks_from_the_start_equal_the_cached_samplers(lengths: list[int]):
    config, network, texts, clip = setting()
    found = predicted(network, from_start(WINDOW, lengths), clip, texts)
    cached = Cached(config, network, clip)
    assert len(found) == len(lengths)
    for length, first in zip(lengths, found, strict=True):
        for noisy, timestep, velocity in found[first]:
            expected = cached.velocity(noisy, timestep, texts[0])
            torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)
        cached.clean(length, texts[0])


def test_hints_are_added_at_the_noisy_places_of_a_chunk():
    config, network, texts, clip = setting(vace_layers=[0, 2])
    layout = from_start(WINDOW, [4, 3])
    hints = normal(2, 1, len(layout.frames) * TOKENS, config.dim, seed=9)
    hints[:, :, : layout.num_clean * TOKENS] = 0
    cached = Cached(config, network, clip)
    for one, timestep in zip(layout.noisy, (900.0, 400.0), strict=True):
        places, tokens = slice(one.first, one.end), slice(one.first * TOKENS, one.end * TOKENS)
        latents = clip[:, :, list(layout.frames)]
        timesteps = torch.zeros(1, len(layout.frames))
        timesteps[:, places] = timestep
        made = velocities(network, layout, latents, timesteps, texts, hints=hints)
        expected = cached.velocity(latents[:, :, places], timestep, texts[0], hints[:, :, tokens])
        torch.testing.assert_close(made[:, :, places], expected, atol=1e-5, rtol=0)
        assert (expected - cached.velocity(latents[:, :, places], timestep, texts[0])).abs().max() > 0.01
        cached.clean(one.num_frames, texts[0])


@pytest.mark.parametrize("num_chunks", [1, 2, 4, 5])
def test_chunks_after_a_switch_equal_the_cached_samplers(num_chunks: int):
    config, network, texts, clip = setting()
    layout = after_switch(WINDOW, num_chunks, 0, (2, 1))
    found = predicted(network, layout, clip, texts)
    cached = Cached(config, network, clip)
    for _ in range(num_chunks):
        cached.clean(3, texts[0])
    cached.recache(texts[1])
    assert [len(chunks) for chunks in found.values()] == [2, 1]
    for chunks in found.values():
        for noisy, timestep, velocity in chunks:
            torch.testing.assert_close(velocity, cached.velocity(noisy, timestep, texts[1]), atol=1e-5, rtol=0)
        cached.clean(3, texts[1])


def test_a_far_sink_keeps_its_frames_and_loses_what_lies_between():
    layout = from_afar(WINDOW, 6, 300, num_clean=4, num_noisy=3)
    assert layout.frames[:6] == (0, 1, 2, 6, 7, 8)
    assert layout.positions[:6] == (0, 1, 2, 306, 307, 308)
    last = layout.noisy[-1]
    assert layout.frames[last.first : last.end] == (18, 19, 20)
    seen = [layout.frames[place] for first, end in last.sees for place in range(first, end)]
    assert seen == [0, 1, 2, 12, 13, 14, 15, 16, 17, 18, 19, 20]


def test_a_rollout_is_the_sampler():
    """Against the runtime's cache: the same noise, the same latents."""
    config, network, texts, _ = setting()
    steps = [(1000.0, 1.0), (625.0, 0.625)]
    rollout = Rollout(network, WINDOW, steps, torch.Generator().manual_seed(3))
    noises, made = torch.Generator().manual_seed(3), torch.zeros(1, 4, 0, HEIGHT, WIDTH)
    cached = Cached(config, network, made)
    for index in range(6):
        text = texts[index >= 5]
        if index == 5:
            rollout.recache(text)
            cached.latents = made
            cached.recache(text)
        rollout.make((1, 4, 3, HEIGHT, WIDTH), text)
        x0 = torch.zeros(1, 4, 3, HEIGHT, WIDTH)
        for timestep, sigma in steps:
            noisy = (1 - sigma) * x0 + sigma * torch.randn(x0.shape, generator=noises)
            x0 = noisy - sigma * cached.velocity(noisy, timestep, text)
        made = cached.latents = torch.cat([made, x0], dim=2)
        cached.clean(3, text)
    torch.testing.assert_close(rollout.latents, made, atol=5e-5, rtol=0)
