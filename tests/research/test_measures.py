"""Shares are those of generators whose faults are known, and each fault misses its own target alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from research.measures import (
    ALL,
    FIRST,
    LONG,
    SECOND,
    SWITCHED,
    WHOLE,
    Generate,
    Plan,
    Row,
    measure,
    prompts,
    score_frames,
    shares,
    switches,
    targets,
)
from tests.support.toyworld.grammar import (
    ATTRIBUTES,
    SHAPES,
    BadCaption,
    Scene,
    caption,
    held_out_scenes,
    is_held_out,
    num_changed,
    parse,
)
from tests.support.toyworld.videos import Frames, chunk_lengths, render, shots

SCENE = Scene("red", "circle", "left", "blue")
PLAN = Plan(num_prompts=3, num_chunks=4, num_switches=2, num_long=1, long_chunks=12)
EVERY = (*ATTRIBUTES, ALL)


def true(captions: Sequence[str], seed: int) -> Frames:
    return render(shots([parse(text) for text in captions]))


# -- One video ------------------------------------------------------------------------------------------------------


def test_each_chunk_is_judged_by_its_own_caption():
    scenes = [SCENE, SCENE, replace(SCENE, colour="green", motion="up")]
    captions = [caption(scene) for scene in scenes]
    assert score_frames(render(shots(scenes)), captions).tolist() == [[True] * 4] * 3
    late = score_frames(render(shots([SCENE] * 3)), captions)
    assert late.tolist() == [[True] * 4, [True] * 4, [True, False, True, False]]


def test_a_video_and_its_captions_must_be_as_long():
    with pytest.raises(ValueError, match="zip"):
        score_frames(render(shots([SCENE] * 2)), [caption(SCENE)] * 3)
    with pytest.raises(BadCaption):
        score_frames(render(shots([SCENE])), ["a cat"])


def test_shares_are_of_chunks_and_all_four_at_once():
    rights = np.array([[[1, 1, 1, 1], [1, 0, 1, 1]], [[1, 1, 0, 1], [0, 1, 1, 1]]], np.bool_)
    assert shares(rights) == {"background": 0.75, "colour": 0.75, "shape": 0.75, "motion": 1.0, ALL: 0.25}


# -- What is asked --------------------------------------------------------------------------------------------------


def test_sixty_four_prompts_are_all_that_is_held_out():
    assert set(prompts(64)) == set(held_out_scenes())
    assert prompts(70)[64:] == prompts(6)
    assert len({scene.colour for scene in prompts(16)}) > 5


def test_a_switch_leaves_nothing_as_it_was():
    pairs = switches(100)
    assert all(num_changed(*pair) == len(ATTRIBUTES) for pair in pairs)
    assert all(is_held_out(scene) for pair in pairs for scene in pair)
    assert len(set(pairs)) == 100


def test_every_clip_has_a_seed_of_its_own():
    asked = []

    def generate(captions: Sequence[str], seed: int) -> Frames:
        asked.append((tuple(captions), seed))
        return true(captions, seed)

    measure(generate, replace(PLAN, seed=50))
    assert len(asked) == PLAN.num_clips
    assert [(len(captions), len(set(captions)), seed) for captions, seed in asked] == [
        *((4, 1, seed) for seed in (50, 51, 52)),
        *((5, 2, seed) for seed in (50, 51)),
        (12, 1, 50),
    ]


# -- What comes out -------------------------------------------------------------------------------------------------


def fades(captions: Sequence[str], seed: int) -> Frames:
    """The object is gone after two chunks."""
    frames = true(captions, seed)
    frames[sum(chunk_lengths(2)) :] = frames[0, 0, 0]
    return frames


def stays(captions: Sequence[str], seed: int) -> Frames:
    """Knows the first caption only."""
    return true([captions[0]] * len(captions), seed)


def draws_other_shapes(captions: Sequence[str], seed: int) -> Frames:
    other = dict(zip(SHAPES, (*SHAPES[1:], SHAPES[0]), strict=True))
    scenes = [parse(text) for text in captions]
    return render(shots([replace(scene, shape=other[scene.shape]) for scene in scenes]))


def collapses(captions: Sequence[str], seed: int) -> Frames:
    frames = true(captions, seed)
    frames[sum(chunk_lengths(5)) :] = 128
    return frames


def late_by_a_chunk(captions: Sequence[str], seed: int) -> Frames:
    return true([captions[0], *captions[:-1]], seed)


FAULTS: list[tuple[Generate, set[tuple[str, str]]]] = [
    (true, set()),
    (late_by_a_chunk, set()),
    (stays, {(SWITCHED, name) for name in ATTRIBUTES}),
    (collapses, {(LONG, name) for name in EVERY}),
    (
        fades,
        {(what, name) for what in (WHOLE, SECOND, SWITCHED, LONG) for name in ("colour", "shape", "motion")}
        | {(SECOND, ALL), (LONG, ALL), (SWITCHED, "background")},
    ),
    (draws_other_shapes, {(WHOLE, "shape"), (WHOLE, ALL), (SWITCHED, "shape"), (LONG, "shape"), (LONG, ALL)}),
]


@pytest.mark.parametrize(("generate", "missed"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_misses_its_targets(generate: Generate, missed: set[tuple[str, str]]):
    rows = measure(generate, PLAN)
    assert [row.what for row in rows] == [WHOLE, FIRST, SECOND, SWITCHED, LONG]
    assert all(row.true == dict.fromkeys(EVERY, 1.0) for row in rows)
    assert {(target.what, target.name) for target in targets(rows) if not target.holds} == missed


def test_only_what_was_asked_for_is_measured():
    assert [row.what for row in measure(true, Plan(0, 4, 1, 0))] == [SWITCHED]
    assert {target.what for target in targets(measure(true, Plan(0, 4, 1, 0)))} == {SWITCHED}
    assert measure(true, Plan(0, 4, 0, 0)) == []


def test_a_second_half_may_be_a_tenth_worse_and_no_more():
    def rows(second: float) -> list[Row]:
        whole = dict.fromkeys(EVERY, 1.0)
        return [Row(FIRST, dict.fromkeys(EVERY, 0.9), whole), Row(SECOND, dict.fromkeys(EVERY, second), whole)]

    assert all(target.holds for target in targets(rows(0.81)))
    assert not any(target.holds for target in targets(rows(0.79)))
