"""The causal transformer with the runtime's KV cache: as with a cache of lists, and as in one pass under a mask."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from export.config import CheckpointConfig
from export.modules.transformer import CausalTransformer
from filmstrip.runtime.transformer import CleanLatents, FrameWindow, KvCache, PassSpan
from tests.models.export.configs import tiny
from tests.models.export.networks import HEIGHT, TOKENS, WIDTH, normal, rope, transformer
from tests.models.export.references import (
    AveragingCache,
    ListCache,
    Text,
    block_causal_bias,
    chunk_by_chunk,
    one_pass,
    tables_at,
)

CHUNKS = [4] + [3] * 11  # as in video mode
NUM_FRAMES = sum(CHUNKS)

WINDOWS = pytest.mark.parametrize(("window", "sink"), [(12, 3), (9, 3), (21, 0), (6, 3)])
POSITIONS = pytest.mark.parametrize("rope_positions", ["absolute", "window"])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


class Streaming:
    """Chunks and recaches as the runtime makes them: every pass has the whole buffer as its past."""

    def __init__(self, config: CheckpointConfig, ours: CausalTransformer) -> None:
        self.config, self.ours = config, ours
        self.window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk, config.global_sink)
        self.cache = KvCache(
            self.window,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens_per_frame=TOKENS,
            dtype=torch.float32,
            device="cpu",
            sink_decay=config.sink_decay,
        )
        self.clean = CleanLatents(self.window)

    def chunk(self, latents: Tensor, timesteps: Tensor, text: Text, factor: float | None = None) -> Tensor:
        velocity = self._run(self.cache.chunk_span(latents.shape[2]), latents, timesteps, text, factor)
        self.clean.append(latents)
        return velocity

    def recache(self, text: Text) -> None:
        span = self.cache.recache_span()
        assert span is not None
        self._run(span, self.clean.latest(span.num_frames), torch.zeros(1, span.num_frames), text)

    def _run(
        self, span: PassSpan, latents: Tensor, timesteps: Tensor, text: Text, factor: float | None = None
    ) -> Tensor:
        absolute = self.config.rope_positions == "absolute"
        own = span.absolute_positions if absolute else span.window_positions
        tables = tables_at(self.config, own, self.window.past_positions(span))
        past = self.cache.k, self.cache.v, self.cache.bias(span, factor)
        velocity, k, v = self.ours(latents, timesteps, *text, tables, *past)
        self.cache.write(span, k, v)
        return velocity


@WINDOWS
@pytest.mark.parametrize("factor", [None, 0.3])
def test_chunk_by_chunk_equals_a_cache_of_lists_and_one_pass(window: int, sink: int, factor: float | None):
    config = tiny(local_attn_size=window, sink_size=sink)
    ours, text_kv, _ = transformer(config)
    latents, text = normal(1, 4, NUM_FRAMES, HEIGHT, WIDTH), text_kv(normal(1, 6, 20, seed=1))
    timesteps = normal(1, NUM_FRAMES, seed=2).abs() * 300

    streaming = Streaming(config, ours)
    parts = zip(latents.split(CHUNKS, dim=2), timesteps.split(CHUNKS, dim=1), strict=True)
    streamed = torch.cat([streaming.chunk(*part, text, factor) for part in parts], dim=2)

    lists = chunk_by_chunk(config, ours, latents, timesteps, text, CHUNKS, factor or 1.0)
    torch.testing.assert_close(streamed, lists, atol=5e-6, rtol=0)
    bias = block_causal_bias(config, CHUNKS, factor or 1.0)
    once = one_pass(ours, latents, timesteps, text, rope(config, 0, NUM_FRAMES), bias)
    torch.testing.assert_close(streamed, once, atol=5e-6, rtol=0)


@WINDOWS
@POSITIONS
@pytest.mark.parametrize(("first", "global_sink"), [(3, True), (4, True), (3, False)])
def test_recaches_equal_the_window_run_again_on_lists(
    window: int, sink: int, rope_positions: str, first: int, global_sink: bool
):
    """Another prompt from now on, before the window is full and after; sink made anew, then left as it is or not."""
    config = tiny(local_attn_size=window, sink_size=sink, rope_positions=rope_positions, global_sink=global_sink)
    ours, text_kv, _ = transformer(config)
    lengths = [first, *CHUNKS[1:]]
    latents = normal(1, 4, sum(lengths), HEIGHT, WIDTH)
    timesteps = normal(1, sum(lengths), seed=2).abs() * 300
    texts = [text_kv(normal(1, 6, 20, seed=seed)) for seed in range(10, 16)]
    text = texts.pop()

    streaming, lists, unaware = Streaming(config, ours), ListCache(config, ours), ListCache(config, ours)
    parts = zip(latents.split(lengths, dim=2), timesteps.split(lengths, dim=1), strict=True)
    for place, part in enumerate(parts):
        recached = place in (1, 3, 4, 7, 9)
        if recached:
            text = texts.pop()
            streaming.recache(text)
            lists.recache(latents, text)
        velocity = streaming.chunk(*part, text)
        torch.testing.assert_close(velocity, lists.chunk(*part, text), atol=5e-6, rtol=0)
        if recached:  # and it matters
            assert (unaware.chunk(*part, text) - velocity).abs().max() > 1e-3
        else:
            unaware.chunk(*part, text)


@pytest.mark.parametrize("decay", [0.999, 0.6])
def test_a_sink_that_takes_up_what_leaves_the_window_equals_reward_forcings_cache(
    decay: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(AveragingCache, "DECAY", decay)
    config = tiny(local_attn_size=9, sink_size=3, rope_positions="window", sink_decay=decay)
    ours, text_kv, _ = transformer(config)
    text = text_kv(normal(1, 6, 20, seed=1))
    averaging, released = Streaming(config, ours), AveragingCache(config, ours)
    fixed = Streaming(tiny(local_attn_size=9, sink_size=3, rope_positions="window"), ours)
    for index in range(14):
        latents, timesteps = normal(1, 4, 3, HEIGHT, WIDTH, seed=index), torch.full((1, 3), 300.0)
        velocity = averaging.chunk(latents, timesteps, text)
        torch.testing.assert_close(velocity, released.chunk(latents, timesteps, text), atol=5e-6, rtol=0)
        # From the fourth chunk on frames have left; before, nothing differs.
        difference = (fixed.chunk(latents, timesteps, text) - velocity).abs().max()
        assert (difference > 1e-5) == (index >= 3)


def test_a_reset_starts_a_sequence_anew():
    config = tiny()
    ours, text_kv, _ = transformer(config)
    text = text_kv(normal(1, 6, 20, seed=1))
    chunks = [normal(1, 4, 3, HEIGHT, WIDTH, seed=seed) for seed in range(4)]
    timesteps = torch.full((1, 3), 500.0)
    used, fresh = Streaming(config, ours), Streaming(config, ours)
    for chunk in chunks:
        used.chunk(chunk, timesteps, text)
    used.cache.clear()
    for chunk in chunks:
        assert torch.equal(used.chunk(chunk, timesteps, text), fresh.chunk(chunk, timesteps, text))
