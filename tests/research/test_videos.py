"""What is drawn is what the caption says: form, place, colour, course, and the place after a switch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toyworld.grammar import SHAPES, Scene, all_scenes
from tests.support.toyworld.videos import (
    CHUNK_FRAMES,
    FIRST_CHUNK_FRAMES,
    MIDDLE,
    PALETTE,
    SIDE,
    SIZE,
    THICKNESS,
    centres,
    chunk_lengths,
    coverage,
    masks,
    outline,
    render,
    shots,
    split_chunks,
)

SCENES = st.sampled_from(all_scenes())
PLACES = st.tuples(st.floats(0, 63.9), st.floats(0, 63.9))
AREAS = {"circle": np.pi * 144, "square": 576.0, "triangle": 288.0}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


@given(st.sampled_from(SHAPES), PLACES)
def test_a_shape_covers_its_area_wherever_it_is(shape: str, place: tuple[float, float]):
    covered = coverage(shape, np.array([place], np.float32))[0]
    assert covered.sum() == pytest.approx(AREAS[shape], rel=0.01)
    assert (covered.min(), covered.max()) == (0, 1)


@given(st.sampled_from(SHAPES), PLACES)
def test_a_shape_lies_within_its_box_around_its_place(shape: str, place: tuple[float, float]):
    covered = coverage(shape, np.array([place], np.float32))[0]
    for axis in (0, 1):
        touched = np.nonzero(covered.max(axis=1 - axis) > 0.3)[0] + 0.5
        distances = np.abs((touched - place[axis] + SIDE / 2) % SIDE - SIDE / 2)
        assert SIZE / 2 - 1.5 <= distances.max() <= SIZE / 2 + 1


@given(st.sampled_from(SHAPES), PLACES)
def test_an_outline_is_a_line_of_one_thickness_within_the_shape(shape: str, place: tuple[float, float]):
    middles = np.array([place], np.float32)
    line, whole = outline(shape, middles)[0], coverage(shape, middles)[0]
    assert (line <= whole + 1e-6).all()
    lengths = {"circle": np.pi * (SIZE - THICKNESS), "square": 4 * (SIZE - THICKNESS)}
    if shape in lengths:
        assert line.sum() == pytest.approx(lengths[shape] * THICKNESS, rel=0.02)
    else:  # what is left within is a triangle that has each of its sides as far inside
        inside = SIZE - THICKNESS * (1 + np.sqrt(5))
        assert whole.sum() - line.sum() == pytest.approx(inside**2 / 2, rel=0.04)


def test_an_outlined_scene_shows_its_background_through_the_object():
    scene = Scene("red", "square", "left", "blue")
    frame, filled = (render([(scene, 1)], outlined=outlined)[0] for outlined in (True, False))
    assert tuple(frame[32, 32]) == PALETTE["blue"]
    assert tuple(filled[32, 32]) == tuple(frame[32, 21]) == PALETTE["red"]


def test_each_shape_has_its_form():
    for shape, filled in {
        "circle": {(32, 32), (22, 32), (32, 22)},
        "square": {(21, 21), (42, 42), (21, 42), (42, 21)},
        "triangle": {(42, 21), (42, 42), (24, 32)},
    }.items():
        drawn = coverage(shape, np.array([MIDDLE], np.float32))[0]
        corners = {(21, 21), (42, 42), (21, 42), (42, 21), (32, 32), (22, 32), (32, 22), (24, 32)}
        within = {place for place in corners if drawn[place] > 0.5}
        assert filled <= within, shape
        assert ((21, 21) in within) == (shape == "square")
        assert ((42, 42) in within) == (shape != "circle")


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_smooth(shape: str):
    drawn = coverage(shape, np.array([(32.3, 31.8)], np.float32))[0]
    assert ((drawn > 0.05) & (drawn < 0.95)).sum() > 40


@given(SCENES, st.integers(2, 140), PLACES)
@settings(max_examples=30)
def test_an_object_moves_evenly_and_comes_back(scene: Scene, num_frames: int, start: tuple[float, float]):
    course = centres([(scene, num_frames)], start)
    expected = [
        [(place + frame * step) % SIDE for place, step in zip(start, DIRECTIONS[scene.motion], strict=True)]
        for frame in range(num_frames)
    ]
    apart = np.abs((course - expected + SIDE / 2) % SIDE - SIDE / 2)
    assert apart.max() < 1e-3
    assert (course >= 0).all()
    assert (course <= SIDE).all()


@given(SCENES, st.integers(0, 63), st.integers(0, 63))
@settings(max_examples=20)
def test_the_frame_is_a_torus(scene: Scene, down: int, across: int):
    there = render([(scene, 3)], (MIDDLE[0] + down, MIDDLE[1] + across))
    np.testing.assert_array_equal(there, np.roll(render([(scene, 3)]), (down, across), (1, 2)))


@given(SCENES, SCENES)
@settings(max_examples=20)
def test_a_switch_keeps_the_place(before: Scene, after: Scene):
    frames = render(shots([before, after]))
    course = centres(shots([before, after]))
    assert frames.shape == (FIRST_CHUNK_FRAMES + CHUNK_FRAMES, SIDE, SIDE, 3)
    np.testing.assert_allclose(course[9] - course[8], DIRECTIONS[after.motion], atol=1e-5)
    np.testing.assert_array_equal(frames[:9], render([(before, 9)]))
    np.testing.assert_array_equal(frames[9:], render([(after, 12)], (float(course[9, 0]), float(course[9, 1]))))


@given(SCENES)
@settings(max_examples=20)
def test_colours_are_those_of_the_words(scene: Scene):
    frames = render([(scene, 9)])
    covered = masks([(scene, 9)])
    assert (frames[covered == 1] == PALETTE[scene.colour]).all()
    assert (frames[covered == 0] == PALETTE[scene.background]).all()
    low, high = np.sort([PALETTE[scene.colour], PALETTE[scene.background]], axis=0)
    assert ((low <= frames) & (frames <= high)).all()


def test_rendering_is_deterministic():
    scenes = shots(list(all_scenes()[::97]))
    np.testing.assert_array_equal(render(scenes), render(scenes))


@pytest.mark.parametrize(("num_chunks", "lengths"), [(0, []), (1, [9]), (3, [9, 12, 12])])
def test_chunks_tile_a_video(num_chunks: int, lengths: list[int]):
    assert chunk_lengths(num_chunks) == lengths
    frames = np.arange(sum(lengths), dtype=np.uint8)
    assert [len(chunk) for chunk in split_chunks(frames)] == lengths
    np.testing.assert_array_equal(np.concatenate([*split_chunks(frames), frames[:0]]), frames)


def test_leftover_frames_are_not_a_chunk():
    assert [len(chunk) for chunk in split_chunks(np.zeros(32, np.uint8))] == [9, 12]
    assert split_chunks(np.zeros(8, np.uint8)) == []
