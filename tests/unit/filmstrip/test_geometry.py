import itertools
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.geometry import FrameRun, fit_runs, input_runs, nearest_multiples
from filmstrip.wire import VideoShape, header_holds, pack_video_header, unpack_video_header

U32 = st.integers(1, 2**32 - 1)
SMALL = st.integers(1, 40)


def frames_of(runs: list[FrameRun]) -> list[int]:
    return [frame for run in runs for frame in range(run.first, run.first + run.length)]


@given(U32, U32, U32, U32)
def test_headers_round_trip(frames, height, width, channels):
    shape = VideoShape(frames, height, width, channels)
    header = pack_video_header(shape)
    assert len(header) == 20
    assert unpack_video_header(header) == shape


def test_the_header_is_ndim_and_four_dimensions_in_little_endian():
    assert pack_video_header(VideoShape(2, 3, 258, 4)) == bytes.fromhex("04000000 02000000 03000000 02010000 04000000")


def test_other_headers_are_refused(subtests: pytest.Subtests):
    cases = [
        b"",
        bytes(19),
        bytes(21),
        struct.pack("<5I", 3, 1, 1, 1, 1),
        struct.pack("<5I", 4, 0, 1, 1, 1),
        struct.pack("<5I", 4, 1, 1, 1, 0),
        struct.pack(">5I", 4, 1, 1, 1, 1),
    ]
    for header in cases:
        with subtests.test(header=header), pytest.raises(ValueError, match="header"):
            unpack_video_header(header)


def test_num_bytes_of_a_video():
    assert VideoShape(5, 2, 3).frame_bytes == 18
    assert VideoShape(5, 2, 3, 4).num_bytes == 120


def test_what_a_header_holds(subtests: pytest.Subtests):
    cases = [(0, False), (-1, False), (1, True), (2**32 - 1, True), (2**32, False)]
    for dimension, holds in cases:
        with subtests.test(dimension=dimension):
            assert header_holds(dimension) is holds


@given(start=st.integers(0, 100), count=SMALL, num_input=SMALL, num_output=st.integers(1, 120))
def test_a_chunk_covers_the_frames_of_the_looped_and_padded_input(start, count, num_input, num_output):
    # The input as the contract tells it: looped to the generation's end where it is shorter, then its last frame.
    played = [frame % num_input for frame in range(max(num_input, num_output))]
    padded = played + played[-1:] * (start + count)

    assert frames_of(input_runs(start, count, num_input, num_output)) == padded[start : start + count]


@given(start=st.integers(0, 100), count=SMALL, num_input=SMALL, num_output=st.integers(1, 120))
def test_runs_hold_existing_frames_only_and_are_as_long_as_they_can_be(start, count, num_input, num_output):
    runs = input_runs(start, count, num_input, num_output)
    for run in runs:
        assert run.length >= 1
        assert run.first >= 0
        assert run.first + run.length <= num_input
    for before, after in itertools.pairwise(runs):
        assert before.first + before.length != after.first


def test_chunks_tile_a_long_input():
    runs = [input_runs(start, 12, 36, 36) for start in (0, 12, 24)]
    assert runs == [[FrameRun(0, 12)], [FrameRun(12, 12)], [FrameRun(24, 12)]]


def test_a_short_input_loops():
    assert input_runs(12, 12, 20, 48) == [FrameRun(12, 8), FrameRun(0, 4)]


def test_a_last_chunk_repeats_the_last_frame():
    assert input_runs(12, 4, 14, 14) == [FrameRun(12, 2), FrameRun(13, 1), FrameRun(13, 1)]


@given(count=SMALL, num_given=SMALL)
def test_an_array_of_a_chunk_is_trimmed_or_padded(count, num_given):
    assert frames_of(fit_runs(count, num_given)) == [min(frame, num_given - 1) for frame in range(count)]


@given(value=st.integers(0, 5000), granularity=st.integers(1, 64))
def test_nearest_multiples_are_the_two_neighbours_in_range(value, granularity):
    low, high = 64, 2048
    good = [side for side in range(low, high + 1) if side % granularity == 0]
    found = nearest_multiples(value, granularity, low, high)

    assert set(found) <= set(good)
    assert list(found) == sorted(set(found))
    nearest = min(abs(value - side) for side in good)
    assert min(abs(value - side) for side in found) == nearest
    if low <= value <= high and value % granularity == 0:
        assert value in found


def test_nearest_multiples_of_a_wrong_height():
    assert nearest_multiples(321, 16, 64, 2048) == (320, 336)
    assert nearest_multiples(10, 16, 64, 2048) == (64,)
    assert nearest_multiples(9999, 16, 64, 2048) == (2048,)
    assert math.gcd(*nearest_multiples(333, 48, 64, 2048)) % 48 == 0
