"""Motion and the noise scale that follows it, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.runtime.schedule import controlled_noise_scale, motion


def frames(*levels: float) -> "torch.Tensor":
    """One even frame for each level."""
    return torch.tensor(levels, dtype=torch.float32).reshape(1, 1, -1, 1, 1).expand(1, 3, -1, 4, 6)


@pytest.mark.parametrize(
    ("levels", "num_last", "previous", "expected"),
    [
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
    ],
)
def test_motion(levels: tuple[float, ...], num_last: int, previous: float | None, expected: float):
    before = None if previous is None else frames(previous)
    assert motion(frames(*levels), num_last, before) == pytest.approx(expected, abs=1e-6)


def test_motion_is_the_root_of_the_mean_square():
    moved = frames(0, 0).clone()
    moved[0, 0, 1, 0, 0] = 0.6  # one of 72 numbers
    assert motion(moved, 3) == pytest.approx((0.6**2 / 72) ** 0.5 / 0.2)


def test_motion_of_16_bit_frames_is_computed_in_32():
    small = frames(0, 1e-3).half()
    assert motion(small, 3) == pytest.approx(1e-3 / 0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("moved", "asked", "expected"),
    [(0, 0.7, 0.79), (1, 0.7, 0.61), (0.5, 0.7, 0.70), (0, 0, 0.72), (1, 1, 0.64), (0, 1, 0.82)],
)
def test_noise_scale(moved: float, asked: float, expected: float):
    assert controlled_noise_scale(moved, asked) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_more_motion_is_less_noise_within_bounds(less: float, more: float, asked: float):
    less, more = sorted((less, more))
    assert 0.54 - 1e-9 <= controlled_noise_scale(more, asked) <= controlled_noise_scale(less, asked) <= 0.82 + 1e-9
