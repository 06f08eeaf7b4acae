"""The detectors tell what true videos show, even through an autoencoder's blur, and are not to be fooled."""

from collections.abc import Callable
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toyworld.detectors import Seen, detect
from tests.support.toyworld.grammar import ATTRIBUTES, COLOURS, MOTIONS, SHAPES, Scene, all_scenes
from tests.support.toyworld.videos import PALETTE, SIDE, Frames, coverage, render

PAIRS = [(colour, background) for colour in COLOURS for background in COLOURS if colour != background]
NEAR = [("yellow", "orange"), ("red", "orange"), ("purple", "blue"), ("white", "yellow"), ("black", "blue")]
SCENE = Scene("red", "square", "left", "blue")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def shown(scene: Scene, num_frames: int = 12, start: tuple[float, float] = (32, 32)) -> Frames:
    return render([(scene, num_frames)], start)


def by_pair(number: int, colour: str, background: str) -> Scene:
    return Scene(colour, SHAPES[number % 3], MOTIONS[number % 4], background)


def blurred(frames: Frames, sigma: float) -> Frames:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def noisy(frames: Frames, sigma: float, tint: float = 0, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    values = frames + rng.normal(0, sigma, frames.shape) + rng.uniform(-tint, tint, 3)
    return np.clip(values, 0, 255).round().astype(np.uint8)


def faded(frames: Frames, share: float) -> Frames:
    """The object has only this share of its contrast."""
    ground = frames[:, :1, :1].astype(float)  # the object is in the middle
    return (ground + share * (frames - ground)).round().astype(np.uint8)


def painted(*layers: tuple[np.ndarray, str | tuple[int, int, int]]) -> Frames:
    """Masks [F, H, W] of any form on blue, each in a colour of the palette or of its own."""
    frames = np.broadcast_to(np.array(PALETTE["blue"], float), (12, SIDE, SIDE, 3))
    for mask, colour in layers:
        paint = PALETTE[colour] if isinstance(colour, str) else colour
        frames = frames + mask[..., None] * (np.array(paint) - frames)
    return frames.round().astype(np.uint8)


def course(*, step: tuple[float, float]) -> np.ndarray:
    return np.array([[32 + step[0] * number, 32 + step[1] * number] for number in range(12)], np.float32)


# -- What is true ---------------------------------------------------------------------------------------------------


@given(st.sampled_from(all_scenes()), st.sampled_from([9, 12]), st.tuples(st.floats(0, 63.9), st.floats(0, 63.9)))
@settings(max_examples=40, deadline=None)
def test_a_true_chunk_is_seen_as_it_is_anywhere(scene: Scene, num_frames: int, start: tuple[float, float]):
    assert asdict(detect(shown(scene, num_frames, start))) == asdict(scene)


def test_an_object_across_the_edges_is_one_object(subtests: pytest.Subtests):
    for shape in SHAPES:
        for start in ((0, 0), (63.5, 31.5), (31.5, 0.5), (4, 60)):
            with subtests.test(shape=shape, start=start):
                for motion in MOTIONS:
                    scene = Scene("yellow", shape, motion, "orange")
                    assert asdict(detect(shown(scene, 12, start))) == asdict(scene)


def test_all_pairs_of_colours_hold_through_an_autoencoders_blur():
    hits, psnr = [], []
    for number, (colour, background) in enumerate(PAIRS):
        scene = by_pair(number, colour, background)
        true = shown(scene, 9, (7.0 * number % SIDE, 11.0 * number % SIDE))
        soft = noisy(blurred(true, 1.2), 5, tint=10, seed=number)
        psnr.append(10 * np.log10(255**2 / np.mean((soft.astype(float) - true) ** 2)))
        hits.append([getattr(detect(soft), name) == getattr(scene, name) for name in ATTRIBUTES])
    assert 25 < np.mean(psnr) < 29
    assert (np.mean(hits, axis=0) >= 0.98).all(), np.mean(hits, axis=0)


def test_similar_colours_are_distinguished(subtests: pytest.Subtests):
    for colour, background in (*NEAR, *(pair[::-1] for pair in NEAR)):
        with subtests.test(colour=colour, background=background):
            seen = detect(noisy(shown(Scene(colour, "circle", "up", background)), 8))
            assert (seen.colour, seen.background) == (colour, background)


# -- What is not ----------------------------------------------------------------------------------------------------


@given(st.sampled_from(all_scenes()), st.integers(0, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_another_word_is_another_sight(scene: Scene, attribute: int, data: st.DataObject):
    name = ATTRIBUTES[attribute]
    taken = {scene.colour, scene.background}
    words = {"shape": SHAPES, "motion": MOTIONS}.get(name, COLOURS)
    word = data.draw(st.sampled_from([word for word in words if word not in {getattr(scene, name), *taken}]))
    seen = detect(shown(replace(scene, **{name: word}), 9))
    wrong = [other for other in ATTRIBUTES if getattr(seen, other) != getattr(scene, other)]
    assert wrong == [name]


def test_time_that_runs_backward_is_the_opposite_motion():
    for motion, opposite in OPPOSITE.items():
        assert detect(shown(replace(SCENE, motion=motion))[::-1]).motion == opposite


STILL = course(step=(0, 0))
LEFT = course(step=(0, -1))
JUMPS = np.random.default_rng(2).uniform(0, SIDE, (12, 2)).astype(np.float32)
SWAYS = course(step=(0, -0.4)) + 6 * np.sin(np.arange(12))[:, None].astype(np.float32)
RIGHT_PART = np.repeat(np.arange(SIDE) >= 36, SIDE).reshape(1, SIDE, SIDE).swapaxes(1, 2).astype(np.float32)
SQUARES, CIRCLES = coverage("square", LEFT), coverage("circle", LEFT)
BLUE = np.tile(np.array(PALETTE["blue"], np.uint8), (12, SIDE, SIDE, 1))
NOISE = np.random.default_rng(1).integers(0, 256, BLUE.shape, np.uint8)

SIGHTS = {
    "no object": (BLUE, Seen("blue", None, None, None)),
    "nothing but noise": (NOISE, Seen(None, None, None, None)),
    "grey": (np.full_like(BLUE, 128), Seen(None, None, None, None)),
    "stands still": (painted((coverage("square", STILL), "red")), Seen("blue", "red", "square", None)),
    "too slow": (
        painted((coverage("square", course(step=(0, -0.15))), "red")),
        Seen("blue", "red", "square", None),
    ),
    "slow enough": (
        painted((coverage("square", course(step=(0, -0.25))), "red")),
        Seen("blue", "red", "square", "left"),
    ),
    "aslant": (painted((coverage("square", course(step=(-1, -1))), "red")), Seen("blue", "red", "square", None)),
    "jumps": (painted((coverage("square", JUMPS), "red")), Seen("blue", "red", "square", None)),
    "sways": (painted((coverage("square", SWAYS), "red")), Seen("blue", "red", "square", None)),
    "there in half of the frames": (
        np.concatenate([painted((SQUARES, "red"))[:6], BLUE[:6]]),
        Seen("blue", None, None, None),
    ),
    "a circle in half of the frames": (
        np.concatenate([painted((SQUARES, "red"))[:6], painted((CIRCLES, "red"))[6:]]),
        Seen("blue", "red", None, "left"),
    ),
    "green in half of the frames": (
        np.concatenate([painted((SQUARES, "red"))[:6], painted((SQUARES, "green"))[6:]]),
        Seen("blue", None, "square", "left"),
    ),
    "two of them": (
        painted((SQUARES, "red"), (coverage("square", LEFT + np.float32(32)), "red")),
        Seen("blue", None, None, None),
    ),
    "a speck beside it": (
        painted((SQUARES, "red"), (coverage("circle", LEFT + np.float32(32), 8), "white")),
        Seen("blue", "red", "square", "left"),
    ),
    "tiny": (painted((coverage("square", LEFT, 8), "red")), Seen("blue", None, None, None)),
    "huge": (painted((coverage("square", LEFT, 40), "red")), Seen("blue", None, None, None)),
    "a bar": (
        painted((coverage("square", LEFT + np.float32([8, 0])) * coverage("square", LEFT - np.float32([8, 0])), "red")),
        Seen("blue", "red", None, "left"),
    ),
    "a ring": (
        painted((SQUARES, "red"), (coverage("square", LEFT, 14), "blue")),
        Seen("blue", "red", None, "left"),
    ),
    "two grounds": (painted((RIGHT_PART, "green")), Seen(None, None, None, None)),
    "grey on a ground": (painted((SQUARES, (128, 128, 128))), Seen("blue", None, "square", "left")),
}


def test_strange_sights_are_not_taken_for_others(subtests: pytest.Subtests):
    for name, (frames, seen) in SIGHTS.items():
        with subtests.test(name):
            assert detect(frames) == seen


def test_a_faded_object_has_not_its_colour():
    for number, (colour, background) in enumerate(PAIRS):
        scene = by_pair(number, colour, background)
        true = shown(scene, 9)
        assert detect(faded(true, 0.9)).colour == colour
        assert detect(faded(true, 0.4)).colour != colour


@pytest.mark.parametrize(
    "spoil",
    [lambda frames: blurred(frames, 12), lambda frames: noisy(frames, 90), lambda frames: faded(frames, 0.1)],
    ids=["blurred", "noisy", "faded"],
)
def test_what_is_spoilt_is_wrong(spoil: Callable[[Frames], Frames]):
    for number, (colour, background) in enumerate(PAIRS):
        scene = by_pair(number, colour, background)
        seen = detect(spoil(shown(scene, 9)))
        assert seen.shape != scene.shape or seen.colour != scene.colour
