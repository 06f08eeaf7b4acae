import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.runtime.transformer import FrameWindow, PassPlan

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
    assert window.chunk(first, length) == PassPlan(first, length, tuple(seen))


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
    assert window.recache(num_frames) == PassPlan(first, num_frames - first, tuple(seen))


def test_nothing_is_recached_before_the_first_chunk():
    assert LONGLIVE.recache(0) is None


@pytest.mark.parametrize(
    ("plan", "past", "own", "absolute"),
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
def test_positions(plan: PassPlan, past: list[int], own: range, absolute: range):
    assert list(LONGLIVE.past_positions(plan)) == past
    assert plan.window_positions == own
    assert plan.absolute_positions == absolute


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="a sink of 3 and chunks of 3 latent frames don't fit in a window of 5"):
        FrameWindow(5, 3, 3)
