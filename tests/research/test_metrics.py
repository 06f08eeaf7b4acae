"""The numbers of single videos: what they are of true ones, and that blur does not change them and faults do."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.support.toyworld.detectors import standing_out
from tests.support.toyworld.grammar import COLOURS, SHAPES, Scene
from tests.support.toyworld.metrics import (
    colour_way,
    fill_share,
    overlap,
    place_overlap,
    psnr,
    right_shares,
    video_chunks,
)
from tests.support.toyworld.videos import Frames, masks, render

SCENE = Scene("red", "square", "left", "blue")
STARTS = [(32.0, 32.0), (2.0, 61.0)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def blurred(frames: Frames) -> Frames:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in frames])


def noise() -> Frames:
    return np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)


def test_psnr_is_of_the_pixels_that_are_named():
    one, other = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 5, np.uint8)
    other[:, :2] = 0
    assert psnr(one, other) == pytest.approx(10 * math.log10(255**2 / 12.5))
    lower = np.zeros((2, 4, 4), np.bool_)
    lower[:, 2:] = True
    assert psnr(one, other, lower) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(one, other, ~lower) == math.inf


def test_overlap_is_the_mean_of_frames():
    one, other = np.zeros((3, 4, 4), np.bool_), np.zeros((3, 4, 4), np.bool_)
    one[0, :2] = other[0, :2] = True
    one[1, :2] = other[1, 1:3] = True
    assert overlap(one, other) == pytest.approx((1 + 1 / 3 + 0) / 3)


@shapes
@pytest.mark.parametrize("start", STARTS)
def test_an_object_is_found_in_its_place(shape: str, start: tuple[float, float]):
    shots = [(replace(SCENE, shape=shape), 12)]
    assert place_overlap(blurred(render(shots, start)), masks(shots, start)) > 0.9
    assert place_overlap(render(shots, (start[0], start[1] + 12)), masks(shots, start)) < 0.45
    outlined = render(shots, start, outlined=True)
    assert place_overlap(outlined, masks(shots, start, outlined=True)) > 0.9


def test_what_shows_nothing_overlaps_nothing():
    covered = masks([(SCENE, 12)])
    assert place_overlap(np.full_like(noise(), 90), covered) == 0
    assert place_overlap(noise(), covered) < 0.2
    assert not standing_out(np.full_like(noise(), 90)).any()


@shapes
@pytest.mark.parametrize("start", STARTS)
def test_an_outline_is_empty_and_an_object_full(shape: str, start: tuple[float, float]):
    scene = replace(SCENE, shape=shape)
    full, empty = (render([(scene, 12)], start, outlined=outlined) for outlined in (False, True))
    assert fill_share(full, scene) == fill_share(blurred(full), scene) == 1
    assert fill_share(empty, scene) == 0
    assert fill_share(blurred(empty), scene) < 0.15
    half = (full.astype(int) + empty) // 2
    assert fill_share(half.astype(np.uint8), scene) == pytest.approx(0.5, abs=0.05)


def test_what_has_no_object_has_no_filling_and_no_colour():
    empty = np.full_like(noise(), 90)
    assert math.isnan(fill_share(empty, SCENE))
    assert math.isnan(colour_way(empty, "red", "yellow"))
    half = np.concatenate([render([(SCENE, 6)]), empty[:6]])
    assert math.isnan(fill_share(half, SCENE))


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_a_colour_is_somewhere_on_the_way(share: float):
    one, other = (render([(replace(SCENE, colour=colour), 9)]) for colour in ("red", "yellow"))
    between = np.rint((1 - share) * one + share * other).astype(np.uint8)
    assert colour_way(blurred(between), "red", "yellow") == pytest.approx(share, abs=0.03)


def test_shares_are_of_chunks():
    chunks = video_chunks(np.concatenate([render([(SCENE, 12)]), render([(replace(SCENE, colour="green"), 24)])]))
    assert [len(chunk) for chunk in chunks] == [12, 12, 12]
    assert right_shares(chunks, SCENE) == {"background": 1, "colour": 1 / 3, "shape": 1, "motion": 1}
    assert set(right_shares([noise()], SCENE).values()) == {0}


def test_no_colour_stands_out_less_than_it_must():
    for colour in COLOURS:
        for background in COLOURS:
            if colour != background:
                shots = [(Scene(colour, "triangle", "up", background), 2)]
                assert place_overlap(render(shots), masks(shots)) > 0.95
