import subprocess
import sys
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from filmstrip.runtime.processors import Gray, OpticalFlow, Passthrough, Scribble, flow_colours, resize

SIZES = [(1, 1), (1, 300), (300, 1), (2, 3), (7, 40), (33, 64)]
PROCESSORS = [Passthrough, Gray, Scribble, OpticalFlow]

videos = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.uint8, (*shape, 3), elements=st.integers(0, 255))
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def texture(height: int, width: int) -> np.ndarray:
    """A smooth random picture, which optical flow can follow."""
    return cv2.resize(noise(height // 8, width // 8), (width, height), interpolation=cv2.INTER_CUBIC)


def discs(height: int = 240, width: int = 320, low: int = 40, high: int = 200) -> np.ndarray:
    """A bright disc on dark ground, with a little grain."""
    y, x = np.ogrid[:height, :width]
    picture = np.where((y - height // 2) ** 2 + (x - width // 2) ** 2 < (height // 4) ** 2, high, low)
    grain = np.random.default_rng(1).normal(0, 1.5, (height, width))
    return np.repeat(np.clip(picture + grain, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


# -- All of them ----------------------------------------------------------------------------------------------


def test_the_output_has_the_inputs_shape_at_every_size_and_length(subtests):
    for processor in PROCESSORS:
        for height, width in SIZES:
            for num_frames in (1, 3):
                with subtests.test(processor=processor.__name__, height=height, width=width, num_frames=num_frames):
                    frames = noise(num_frames, height, width)
                    processed = processor().process(frames)
                    assert processed.shape == frames.shape
                    assert processed.dtype == np.uint8


def test_chunk_by_chunk_equals_the_whole(subtests):
    for processor in PROCESSORS:
        with subtests.test(processor.__name__):
            ground = texture(64, 96)
            video = np.stack([np.roll(ground, (index**2 // 3, 2 * index), (0, 1)) for index in range(9)])
            chunked = processor()
            parts = [chunked.process(video[a:b]) for a, b in pairwise((0, 1, 4, 9))]
            np.testing.assert_array_equal(np.concatenate(parts), processor().process(video))


def test_the_input_is_not_changed(subtests):
    for processor in PROCESSORS:
        with subtests.test(processor.__name__):
            frames = noise(3, 40, 50)
            before = frames.copy()
            processor().process(frames)
            np.testing.assert_array_equal(frames, before)


def test_a_read_only_view_is_enough():
    frames = np.frombuffer(noise(2, 20, 30).tobytes(), np.uint8).reshape(2, 20, 30, 3)
    for processor in PROCESSORS:
        assert processor().process(frames).shape == frames.shape


def test_no_processor_needs_triton():
    command = "import sys, filmstrip.runtime.processors, filmstrip.runtime.sequences, filmstrip.runtime.sequences\n"
    command += "sys.exit('triton_python_backend_utils' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


# -- Each ------------------------------------------------------------------------------------------------------


@given(videos)
def test_passthrough_changes_no_byte(frames):
    np.testing.assert_array_equal(Passthrough().process(frames), frames)


@given(videos)
def test_gray_is_luma_to_rounding(frames):
    gray = Gray().process(frames)
    luma = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    assert (gray == gray[..., :1]).all()
    assert np.abs(gray[..., 0] - luma).max() <= 0.5 + 1e-9


def test_gray_is_luma_for_every_colour():
    """All 2**24 of them, in 16 frames."""
    for red in range(0, 256, 16):
        levels = np.arange(256, dtype=np.uint8)
        frames = np.stack(np.meshgrid(np.arange(red, red + 16, dtype=np.uint8), levels, levels, indexing="ij"), axis=-1)
        luma = 299 * frames[..., 0].astype(int) + 587 * frames[..., 1].astype(int) + 114 * frames[..., 2].astype(int)
        assert np.abs(1000 * Gray().process(frames)[..., 0].astype(int) - luma).max() <= 500


@settings(max_examples=30)
@given(videos)
def test_scribble_is_black_and_white(frames):
    scribble = Scribble().process(frames)
    assert set(np.unique(scribble)) <= {0, 255}
    assert (scribble == scribble[..., :1]).all()


@pytest.mark.parametrize(("low", "high"), [(40, 200), (5, 30), (225, 250)])
def test_scribble_draws_the_contour_and_nothing_else(low, high):
    """In full, dark and pale light alike."""
    picture = discs(low=low, high=high)
    scribble = Scribble().process(picture[None])[0, ..., 0]
    y, x = np.ogrid[:240, :320]
    radius = np.sqrt((y - 120) ** 2 + (x - 160) ** 2)
    assert (scribble[np.abs(radius - 60) > 6] == 0).all()
    angles = np.round(np.degrees(np.arctan2(y - 120, x - 160)) / 10)
    drawn = np.unique(angles[scribble == 255])
    assert len(drawn) >= 36, "gaps in the circle"


@pytest.mark.parametrize(("divisor", "offset"), [(6, 0), (8, 200)])
def test_scribble_draws_dark_and_pale_scenes_too(divisor, offset):
    picture = texture(240, 320)
    scribbles = Scribble().process(np.stack([picture, picture // divisor + offset]))
    bright, faint = (scribbles[..., 0] > 0).sum(axis=(1, 2))
    assert faint > 0.5 * bright > 0


@pytest.mark.parametrize("level", [0, 10, 128, 255])
def test_scribble_leaves_grain_out(level):
    grain = np.random.default_rng(2).normal(level, 2, (1, 240, 320, 3))
    assert Scribble().process(np.clip(grain, 0, 255).astype(np.uint8)).max() == 0


def test_scribble_leaves_specks_out():
    speck = np.zeros((1, 240, 320, 3), np.uint8)
    speck[0, 100:104, 100:104] = 255
    assert Scribble().process(speck).max() == 0


def test_still_scenes_and_first_frames_are_white():
    still = np.repeat(texture(64, 96)[None], 4, axis=0)
    assert OpticalFlow().process(still).min() == 255
    assert OpticalFlow().process(noise(1, 50, 60)).min() == 255


def test_a_new_processor_knows_no_frame():
    moving = np.stack([texture(64, 96), np.roll(texture(64, 96), 3, axis=1)])
    OpticalFlow().process(moving)
    assert OpticalFlow().process(moving[1:]).min() == 255


@pytest.mark.parametrize(
    ("right", "down", "near"),
    [(4, 0, (255, 0, 0)), (0, 4, (255, 231, 0)), (-4, 0, (0, 209, 255)), (0, -4, (78, 0, 255))],
)
def test_flow_shows_the_direction(right, down, near):
    """The four corners of the benchmark's wheel, found in a picture that moves that way."""
    ground = texture(96, 128)
    video = np.stack([ground, np.roll(ground, (down, right), (0, 1))])
    middle = OpticalFlow().process(video)[1, 24:-24, 24:-24]
    np.testing.assert_allclose(np.median(middle, axis=(0, 1)), near, atol=40)


def test_flow_is_that_from_the_frame_before():
    """A scene that moves once and then rests is white again."""
    ground = texture(64, 96)
    moved = np.roll(ground, 3, axis=1)
    shown = OpticalFlow().process(np.stack([ground, moved, moved]))
    assert shown[1].min() < 128
    assert shown[2].min() == 255


def test_flow_keeps_its_state_over_a_change_of_size():
    flow = OpticalFlow()
    flow.process(noise(2, 40, 50))
    assert flow.process(noise(1, 60, 70)).min() == 255


def reference_colours(flow: np.ndarray) -> np.ndarray:
    """The benchmark's colorcode.cpp, pixel by pixel, with our normalisation and rounding."""
    wheel = [
        *((255, 255 * i / 15, 0) for i in range(15)),
        *((255 - 255 * i / 6, 255, 0) for i in range(6)),
        *((0, 255, 255 * i / 4) for i in range(4)),
        *((0, 255 - 255 * i / 11, 255) for i in range(11)),
        *((255 * i / 13, 0, 255) for i in range(13)),
        *((255, 0, 255 - 255 * i / 6) for i in range(6)),
    ]
    longest = max(1.0, float(np.hypot(flow[..., 0], flow[..., 1]).max()))
    shown = np.zeros((*flow.shape[:2], 3))
    for y, x in np.ndindex(*flow.shape[:2]):
        u, v = flow[y, x]
        place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * 54
        share = place - int(place)
        for channel in range(3):
            hue = (1 - share) * wheel[int(place)][channel] + share * wheel[(int(place) + 1) % 55][channel]
            shown[y, x, channel] = 255 * (1 - np.hypot(u, v) / longest * (1 - hue / 255))
    return shown


@settings(max_examples=50)
@given(arrays(np.float32, (3, 4, 2), elements=st.floats(-40, 40, width=32)))
def test_colours_are_the_benchmarks(flow):
    np.testing.assert_allclose(flow_colours(flow), reference_colours(flow), atol=0.51)


def test_small_motion_stays_pale():
    """The longest motion counts as one pixel at least."""
    assert flow_colours(np.full((4, 4, 2), 0.02, np.float32)).min() >= 247


# -- Resizing --------------------------------------------------------------------------------------------------


@given(videos)
def test_the_right_size_is_not_touched(frames):
    assert resize(frames, *frames.shape[1:3]) is frames


@settings(max_examples=30)
@given(videos, st.integers(1, 50), st.integers(1, 50))
def test_resizing_gives_the_size_and_keeps_the_range(frames, height, width):
    resized = resize(frames, height, width)
    assert resized.shape == (len(frames), height, width, 3)
    assert resized.min() >= frames.min()
    assert resized.max() <= frames.max()


def test_resizing_is_bilinear():
    ramp = np.repeat(np.array([[[0], [100]]], np.uint8)[None], 3, axis=-1)  # [1, 1, 2, 3]
    np.testing.assert_array_equal(resize(ramp, 1, 4)[0, 0, :, 0], [0, 25, 75, 100])
