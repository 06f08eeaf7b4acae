"""The window's frames and slots, and the KV cache, against a slow model of it."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from filmstrip.runtime.transformer import CleanLatents, FrameWindow, KvCache, PassSpan

# -- The window ----------------------------------------------------------------------------------------------

LONGLIVE = FrameWindow(12, 3, 3)
REWARD_FORCING = FrameWindow(9, 3, 3)
SELF_FORCING = FrameWindow(21, 0, 3)
ONLY_A_SINK = FrameWindow(6, 3, 3)
ONLY_THE_CHUNK = FrameWindow(3, 0, 3)


@pytest.mark.parametrize(
    ("window", "first", "length", "seen"),
    [
        (LONGLIVE, 0, 3, []),
        (LONGLIVE, 0, 4, []),
        (LONGLIVE, 4, 3, [0, 1, 2, 3]),
        (LONGLIVE, 9, 3, [*range(9)]),
        (LONGLIVE, 12, 3, [0, 1, 2, *range(6, 12)]),
        (LONGLIVE, 13, 3, [0, 1, 2, *range(7, 13)]),
        (LONGLIVE, 13, 4, [0, 1, 2, *range(8, 13)]),  # a longer chunk leaves room for less
        (LONGLIVE, 13, 1, [0, 1, 2, *range(7, 13)]),  # a shorter one finds no more
        (LONGLIVE, 13, 9, [0, 1, 2]),
        (LONGLIVE, 13, 12, [0, 1, 2]),  # the sink is always seen
        (LONGLIVE, 2, 12, [0, 1]),
        (REWARD_FORCING, 12, 3, [0, 1, 2, 9, 10, 11]),
        (SELF_FORCING, 18, 3, [*range(18)]),
        (SELF_FORCING, 24, 3, [*range(6, 24)]),
        (ONLY_A_SINK, 9, 3, [0, 1, 2]),
        (ONLY_THE_CHUNK, 9, 3, []),
    ],
)
def test_what_a_chunk_sees(window: FrameWindow, first: int, length: int, seen: list[int]):
    assert window.chunk(first, length) == PassSpan(first, length, tuple(seen))


@pytest.mark.parametrize(
    ("window", "num_frames", "first", "seen"),
    [
        (LONGLIVE, 3, 0, []),
        (LONGLIVE, 12, 0, []),  # as many as the window holds: the sink is made anew
        (LONGLIVE, 13, 4, [0, 1, 2]),
        (LONGLIVE, 100, 91, [0, 1, 2]),
        (REWARD_FORCING, 9, 0, []),
        (REWARD_FORCING, 12, 6, [0, 1, 2]),
        (SELF_FORCING, 21, 0, []),
        (SELF_FORCING, 24, 3, []),
        (ONLY_A_SINK, 9, 6, [0, 1, 2]),
    ],
)
def test_what_a_recache_runs_and_sees(window: FrameWindow, num_frames: int, first: int, seen: list[int]):
    assert window.recache(num_frames) == PassSpan(first, num_frames - first, tuple(seen))


def test_nothing_is_recached_before_the_first_chunk():
    assert LONGLIVE.recache(0) is None


@pytest.mark.parametrize(
    ("span", "past", "own", "absolute"),
    [
        (LONGLIVE.chunk(0, 4), [0] * 9, range(4), range(4)),
        (LONGLIVE.chunk(4, 3), [0, 1, 2, 3, 0, 0, 0, 0, 0], range(4, 7), range(4, 7)),
        (LONGLIVE.chunk(9, 3), [*range(9)], range(9, 12), range(9, 12)),
        # Frames 9 and 10 have taken the slots of 3 and 4: the oldest is now 5, in the third slot of the ring.
        (LONGLIVE.chunk(11, 3), [0, 1, 2, 7, 8, 3, 4, 5, 6], range(9, 12), range(11, 14)),
        (LONGLIVE.chunk(11, 4), [0, 1, 2, 6, 7, 0, 3, 4, 5], range(8, 12), range(11, 15)),
        (LONGLIVE.recache(11), [0] * 9, range(11), range(11)),
        (LONGLIVE.recache(15), [0, 1, 2, 0, 0, 0, 0, 0, 0], range(3, 12), range(6, 15)),
    ],
)
def test_positions(span: PassSpan, past: list[int], own: range, absolute: range):
    assert list(LONGLIVE.past_positions(span)) == past
    assert span.window_positions == own
    assert span.absolute_positions == absolute


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="a sink of 3 and chunks of 3 latent frames don't fit in a window of 5"):
        FrameWindow(5, 3, 3)


# -- The KV cache --------------------------------------------------------------------------------------------

LAYERS, HEADS, TOKENS, DIM = 2, 3, 2, 4


def kv_cache(window: FrameWindow, dtype: torch.dtype = torch.float32, device: str = "cpu") -> KvCache:
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "head_dim": DIM, "tokens_per_frame": TOKENS}
    return KvCache(window, **sizes, dtype=dtype, device=device)


def frames(first_value: int, count: int) -> Tensor:
    """[layers, B, N, L, D] of numbers that occur nowhere else: a frame of value x has x.0 to x.99."""
    inside = torch.arange(LAYERS * HEADS * TOKENS * DIM) / 100
    one = inside.reshape(LAYERS, 1, HEADS, TOKENS, DIM)
    return torch.cat([one + value for value in range(first_value, first_value + count)], dim=3)


class ListModel(RuleBasedStateMachine):
    """The cache beside two plain lists, of the sink's frames and of the others, that hold each frame's value."""

    @initialize(sink=st.integers(0, 3), ring=st.integers(0, 6), size=st.integers(1, 4))
    def start(self, sink: int, ring: int, size: int) -> None:
        self.window = FrameWindow(sink + ring + size, sink, size)
        self.cache = kv_cache(self.window)
        self.ring = ring
        self.next_value = 1
        self._clear()

    def _clear(self) -> None:
        self.sink: list[int] = []
        self.others: list[int] = []
        self.made = 0

    def _values(self, count: int) -> list[int]:
        self.next_value += count
        return [*range(self.next_value - count, self.next_value)]

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.window.size))
        values = self._values(count)
        new = frames(values[0], count)
        self.cache.write(self.cache.chunk_span(count), new, -new)
        for value in values:
            if len(self.sink) < self.window.sink:
                self.sink.append(value)
            else:
                self.others = [*self.others, value][-self.ring :] if self.ring else []
        self.made += count

    @precondition(lambda self: self.made > 0)
    @rule()
    def recache(self) -> None:
        count = min(self.made, self.window.size)
        values = self._values(count)
        span = self.cache.recache_span()
        new = frames(values[0], count)[:, :, :, -span.num_frames * TOKENS :]
        self.cache.write(span, new, -new)
        if self.made <= self.window.size:
            self.sink = values[: len(self.sink)]
        if self.others:
            self.others = values[-len(self.others) :]

    @rule()
    def reset(self) -> None:
        self.cache.clear()
        self._clear()

    def _seen(self, bias: Tensor) -> dict[int, float]:
        """The values of the slots that are seen, whole and in one piece, and their biases."""
        seen = {}
        for slot in range(self.window.capacity):
            tokens = slice(slot * TOKENS, (slot + 1) * TOKENS)
            (one,) = set(bias[tokens].tolist())
            if one > -math.inf:
                value = int(self.cache.k[0, 0, 0, tokens][0, 0])
                assert torch.equal(self.cache.k[:, :, :, tokens], frames(value, 1))
                assert torch.equal(self.cache.v[:, :, :, tokens], -frames(value, 1))
                seen[value] = one
        return seen

    @rule(data=st.data(), factor=st.sampled_from([None, 1.0, 0.25]))
    def a_chunk_sees_the_same(self, data: st.DataObject, factor: float | None) -> None:
        count = data.draw(st.integers(1, self.window.size))
        room = max(0, self.window.size - count - self.window.sink)
        others = self.others[-room:] if room else []
        expected = dict.fromkeys(self.sink, 0.0) | dict.fromkeys(others, math.log(factor or 1.0))
        assert self._seen(self.cache.bias(self.cache.chunk_span(count), factor)) == pytest.approx(expected)

    @invariant()
    def the_same_is_held(self) -> None:
        assert self.cache.num_frames == self.made
        usual = self.cache.chunk_span(self.window.latent_frames_per_chunk)
        assert self._seen(self.cache.bias(usual)) == dict.fromkeys([*self.sink, *self.others], 0.0)

    @precondition(lambda self: self.made > 0)
    @rule()
    def a_recache_sees_the_sink_once_frames_have_left_the_window(self) -> None:
        expected = self.sink if self.made > self.window.size else []
        bias = self.cache.bias(self.cache.recache_span(), 0.25)
        assert self._seen(bias) == dict.fromkeys(expected, 0.0)


TestListModel = ListModel.TestCase
TestListModel.settings = settings(stateful_step_count=30)


def test_what_leaves_the_window_is_folded_into_the_sink():
    """By hand: two of sink, two of ring; a frame of value x becomes a share of the sink's frame in its place."""
    window = FrameWindow(size=6, sink=2, latent_frames_per_chunk=2)
    cache = KvCache(
        window,
        num_layers=LAYERS,
        num_heads=HEADS,
        head_dim=DIM,
        tokens_per_frame=TOKENS,
        dtype=torch.float32,
        device="cpu",
        sink_decay=0.75,
    )

    def write(first_value: int, count: int) -> None:
        new = frames(first_value, count)
        cache.write(cache.chunk_span(count), new, -new)

    def sink() -> list[Tensor]:
        return [cache.k[:, :, :, slot * TOKENS : (slot + 1) * TOKENS] for slot in range(2)]

    write(10, 2)
    write(20, 2)
    assert torch.equal(cache.k, torch.cat([frames(10, 2), frames(20, 2)], dim=3))
    write(30, 2)  # frames 20 and 21 leave
    for place, value in enumerate(sink()):
        torch.testing.assert_close(value, 0.75 * frames(10 + place, 1) + 0.25 * frames(20 + place, 1))
    torch.testing.assert_close(cache.v, -cache.k)
    before = sink()[0].clone()
    write(40, 1)  # a single frame, 30, leaves: it goes to the sink's end
    torch.testing.assert_close(sink()[0], before)
    expected = 0.75 * (0.75 * frames(11, 1) + 0.25 * frames(21, 1)) + 0.25 * frames(30, 1)
    torch.testing.assert_close(sink()[1], expected)
    # A recache beside the sink leaves it as it is.
    span = cache.recache_span()
    assert span is not None
    kept = [value.clone() for value in sink()]
    cache.write(span, frames(50, span.num_frames), -frames(50, span.num_frames))
    assert all(torch.equal(one, other) for one, other in zip(sink(), kept, strict=True))


def test_a_recache_of_all_frames_folds_those_that_no_longer_fit():
    window = FrameWindow(size=6, sink=2, latent_frames_per_chunk=2)
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "head_dim": DIM, "tokens_per_frame": TOKENS}
    cache = KvCache(window, **sizes, dtype=torch.float32, device="cpu", sink_decay=0.75)
    for first_value in (10, 20, 30):
        new = frames(first_value, 2)
        cache.write(cache.chunk_span(2), new, -new)
    span = cache.recache_span()
    assert (span.first_frame, span.num_frames) == (0, 6)
    cache.write(span, frames(50, 6), -frames(50, 6))
    kept = torch.cat([0.75 * frames(50, 2) + 0.25 * frames(52, 2), frames(54, 2)], dim=3)
    torch.testing.assert_close(cache.k, kept)
    torch.testing.assert_close(cache.v, -kept)


def test_the_sizes_of_longlive():
    cache = KvCache(
        FrameWindow(12, 3, 3),
        num_layers=30,
        num_heads=12,
        head_dim=128,
        tokens_per_frame=1560,
        dtype=torch.bfloat16,
        device="meta",
    )
    assert cache.k.shape == cache.v.shape == (30, 1, 12, 9 * 1560, 128)
    assert cache.k.dtype == cache.v.dtype == torch.bfloat16
    bias = cache.bias(cache.chunk_span(3))
    assert (bias.shape, bias.dtype) == ((9 * 1560,), torch.float32)


def test_the_buffers_do_not_move_and_the_bias_is_computed_once():
    cache = kv_cache(FrameWindow(5, 1, 2))
    where = cache.k.data_ptr(), cache.v.data_ptr()
    for _ in range(4):
        span = cache.chunk_span(2)
        bias = cache.bias(span, 0.5)
        assert cache.bias(cache.chunk_span(2), 0.5) is bias
        assert cache.bias(span, 0.5) is bias
        cache.write(span, frames(1, 2), frames(1, 2))
    assert (cache.k.data_ptr(), cache.v.data_ptr()) == where


def test_a_reset_leaves_nothing_of_what_went_wrong():
    """A bias of -inf hides no NaN: 0 times it is NaN."""
    cache = kv_cache(FrameWindow(5, 1, 2))
    cache.write(cache.chunk_span(2), frames(1, 2) * math.nan, frames(1, 2) * math.inf)
    cache.clear()
    assert cache.k.isfinite().all()
    assert cache.v.isfinite().all()


@pytest.mark.parametrize(
    ("k", "v"),
    [
        (frames(5, 1), frames(5, 2)),
        (frames(5, 2), frames(5, 3)),
        (frames(5, 2), frames(5, 2)[:1]),
        (frames(5, 2), frames(5, 2).to("meta")),
    ],
)
def test_keys_and_values_that_do_not_fit_are_refused_and_nothing_is_written(k: Tensor, v: Tensor):
    cache = kv_cache(FrameWindow(5, 1, 2))
    cache.write(cache.chunk_span(2), frames(1, 2), frames(1, 2))
    before = cache.k.clone(), cache.v.clone()
    with pytest.raises(ValueError, match=r"must be \[2, 1, 3, 4, 4\] on cpu, got"):
        cache.write(cache.chunk_span(2), k, v)
    assert torch.equal(cache.k, before[0])
    assert torch.equal(cache.v, before[1])
    assert cache.num_frames == 2


def test_a_plan_of_another_time_is_refused():
    cache = kv_cache(FrameWindow(5, 1, 2))
    for count in (2, 2):
        cache.write(cache.chunk_span(count), frames(1, count), frames(1, count))
    chunk, recache = cache.chunk_span(2), cache.recache_span()
    assert recache is not None
    cache.write(cache.chunk_span(3), frames(1, 3), frames(1, 3))
    for stale, count in ((chunk, 2), (recache, 4)):
        with pytest.raises(ValueError, match="don't follow 7 cached ones"):
            cache.write(stale, frames(1, count), frames(1, count))


class _StaysOnDevice(TorchDispatchMode):
    """Refuses what would wait for a device: reading a number of it, or a copy to or from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = torch.utils._pytree.tree_leaves((args, kwargs))
        result = func(*args, **(kwargs or {}))
        devices = {str(leaf.device) for leaf in (*given, result) if isinstance(leaf, Tensor)}
        assert devices <= {"meta"}, f"{func} touches {devices}"
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_waits_for_the_device(dtype: torch.dtype):
    """On the meta device, which has no numbers to read; a copy from the host would show in the dispatched calls."""
    cache = kv_cache(FrameWindow(12, 3, 3), dtype, "meta")
    new = {count: frames(1, count).to("meta", dtype) for count in range(1, 13)}
    with _StaysOnDevice():
        for count in (4, 3, 3, 3, 3):
            span = cache.chunk_span(count)
            cache.bias(span, 0.5)
            cache.write(span, new[count], new[count])
            recache = cache.recache_span()
            cache.bias(recache)
            cache.write(recache, new[recache.num_frames], new[recache.num_frames])
        cache.clear()
    with pytest.raises(AssertionError, match="cpu"), _StaysOnDevice():
        new[1].copy_(frames(1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_waits_for_a_gpu(dtype: torch.dtype):
    cache = kv_cache(FrameWindow(12, 3, 3), dtype, "cuda")
    new = frames(1, 3).to("cuda", dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            span = cache.chunk_span(3)
            cache.bias(span, 0.5)
            cache.write(span, new, new)
        cache.clear()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def latents(first: int, count: int) -> Tensor:
    """[1, 2, T, 2, 3], each frame filled with its number."""
    return torch.arange(first, first + count).float()[None, None, :, None, None].expand(1, 2, count, 2, 3).clone()


def test_the_latest_clean_latents_are_kept():
    clean = CleanLatents(FrameWindow(12, 3, 3))
    made = 0
    for count in (4, 3, 3, 3, 3):
        chunk = latents(made, count)
        clean.append(chunk)
        chunk.fill_(-1)  # whoever made it may use its memory again
        made += count
        kept = min(made, 12)
        assert torch.equal(clean.latest(kept), latents(made - kept, kept))
        assert torch.equal(clean.latest(1), latents(made - 1, 1))
        with pytest.raises(ValueError, match=f"{kept + 1} latent frames requested, {kept} kept"):
            clean.latest(kept + 1)
    clean.clear()
    with pytest.raises(ValueError, match="1 latent frames requested, 0 kept"):
        clean.latest(1)
    clean.append(latents(7, 3))
    assert torch.equal(clean.latest(3), latents(7, 3))
