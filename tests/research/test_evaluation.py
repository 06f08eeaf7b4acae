"""A generator that does as it is told reaches every number; one with a fault misses just what the fault spoils."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from research.augmentations import CONTROLS
from research.evaluation import (
    FILLED,
    KEEPS,
    MEASUREMENTS,
    NOISE_SCALES,
    OTHER_PROMPT,
    OWN_PROMPT,
    EvalCase,
    RunCase,
    lora_ramp,
    video_to_video,
)
from tests.support.toyworld.detectors import detect, standing_out
from tests.support.toyworld.grammar import ANYTHING, Scene, caption, parse
from tests.support.toyworld.videos import PALETTE, SIDE, Floats, Frames, coverage, masks, render

NUM = 3


def obedient(case: EvalCase) -> Frames:
    """What a perfect generator would make, with a little noise as from an autoencoder."""
    if case.frames is not None:
        made = inpainted(case)
    elif case.source is not None:
        made = case.source if case.control is None and case.noise_scale < 0.6 else recoloured(case)
    elif case.reference is not None:
        made = referred(case)
    elif case.lora_scales:
        made = outlined(case)
    else:
        made = from_key_image(case)
    return noisy(made, case)


def noisy(frames: Frames, case: EvalCase) -> Frames:
    random = np.random.default_rng(case.seed)
    sigma = 3 + (4 * case.noise_scale if case.source is not None else 0)
    return np.clip(frames + random.normal(0, sigma, frames.shape), 0, 255).round().astype(np.uint8)


def recoloured(case: EvalCase) -> Frames:
    assert case.source is not None
    return painted(parse(case.prompt), standing_out(case.source).astype(np.float32))


def from_key_image(case: EvalCase) -> Frames:
    scene = parse(case.prompt)
    if case.first_image is not None:
        return render([(scene, case.num_frames)], centre(case.first_image))
    assert case.last_image is not None
    backwards = {"left": "right", "right": "left", "up": "down", "down": "up"}[scene.motion]
    return render([(replace(scene, motion=backwards), case.num_frames)], centre(case.last_image))[::-1]


def inpainted(case: EvalCase) -> Frames:
    assert case.frames is not None
    assert case.masks is not None
    scene = parse(case.prompt)
    middles = np.array([centre(frame) for frame in case.frames], np.float32)
    wanted = painted(scene, coverage(scene.shape, middles))
    return np.where(case.masks[..., None] > 0, wanted, case.frames)


def referred(case: EvalCase) -> Frames:
    seen = detect(np.repeat(case.reference[None], 12, 0))
    assert seen.colour is not None
    assert seen.shape is not None
    scene = parse(case.prompt.replace(ANYTHING, f"{seen.colour} {seen.shape}"))
    return render([(scene, case.num_frames)])


def outlined(case: EvalCase) -> Frames:
    shots = [(parse(case.prompt), num) for num in case.chunk_lengths]
    full, empty = render(shots), render(shots, outlined=True)
    scales = np.repeat(case.lora_scales, [num for _, num in shots])[:, None, None, None]
    return ((1 - scales) * full + scales * empty).round().astype(np.uint8)


def painted(scene: Scene, covered: Floats) -> Frames:
    ground, colour = np.array(PALETTE[scene.background]), np.array(PALETTE[scene.colour])
    return (ground + covered[..., None] * (colour - ground)).round().astype(np.uint8)


def centre(frame: Frames) -> tuple[float, float]:
    """The middle of the object's box, found by trying every place and shape."""
    marked = standing_out(frame[None])[0]
    spots = np.array([(row, column) for row in range(SIDE) for column in range(SIDE)], np.float32)
    shape = detect(np.repeat(frame[None], 12, 0)).shape
    assert shape is not None
    drawn = coverage(shape, spots[:1])[0] > 0.5
    fits = np.fft.ifft2(np.fft.fft2(marked) * np.conj(np.fft.fft2(drawn))).real
    row, column = np.unravel_index(int(fits.argmax()), fits.shape)
    return float(row), float(column)


# -- Faults ---------------------------------------------------------------------------------------------------------


def garbage(case: EvalCase) -> Frames:
    return np.random.default_rng(case.seed).integers(0, 256, (case.num_frames, SIDE, SIDE, 3), np.uint8)


def hears_only_the_prompt(case: EvalCase) -> Frames:
    """As if nothing but captions had been sent; a thing is a red circle."""
    thing = "green square" if "on a red" in case.prompt else "red circle"
    scene = parse(case.prompt.replace(ANYTHING, thing))
    return noisy(render([(scene, case.num_frames)]), case)


def draws_without_frames(case: EvalCase) -> Frames:
    """The kept frames are not looked at, the source is."""
    return obedient(case) if case.frames is None else hears_only_the_prompt(case)


def gives_the_source_back(case: EvalCase) -> Frames:
    given = case.source if case.source is not None else case.frames
    return obedient(case) if given is None else noisy(given, case)


def repaints_all(case: EvalCase) -> Frames:
    """Inpaints the masked region, and the rest in a slightly other tone."""
    made = obedient(case)
    return made if case.frames is None else (made.astype(int) * 15 // 16).astype(np.uint8)


def is_late(case: EvalCase) -> Frames:
    """Everything is half an object aside."""
    return np.roll(obedient(case), 12, axis=2)


def missed(run_case: RunCase, kind: str) -> set[str]:
    return {number.what for number in MEASUREMENTS[kind](run_case, NUM).numbers if not number.holds}


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_what_is_asked_for_reaches_every_number(kind: str):
    assert missed(obedient, kind) == set()


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_garbage_reaches_nothing_but_small_differences(kind: str):
    reached = {number.what for number in MEASUREMENTS[kind](garbage, NUM).numbers if number.holds}
    assert not {what for what in reached if "least fall" not in what and "relative to" not in what}


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (hears_only_the_prompt, "video-to-video", {"noise scale 0:", "source's colour", "overlap"}),
        (hears_only_the_prompt, "control", {"gray", "scribble"}),
        (hears_only_the_prompt, "reference", {"colour", "shape"}),
        (hears_only_the_prompt, "key images", {"first", "last"}),
        (hears_only_the_prompt, "LoRA", {"from the first scale"}),
        (gives_the_source_back, "video-to-video", {"the prompt's colour", "the prompt's background"}),
        (gives_the_source_back, "inpainting", {"the prompt's colour", "the prompt's shape"}),
        (hears_only_the_prompt, "inpainting", {"kept object: the autoencoder's own"}),
        (draws_without_frames, "inpainting", {"kept object: PSNR relative to"}),
        (repaints_all, "inpainting", {"kept background: PSNR relative to", "kept object: PSNR relative to"}),
        (is_late, "video-to-video", {"overlap"}),
        (is_late, "control", {"gray", "scribble"}),
        (is_late, "key images", {"first", "last"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_fault_is_seen(fault: Callable[[EvalCase], Frames], kind: str, words: set[str]):
    found = missed(fault, kind)
    assert all(any(word in what for what in found) for word in words), found


def test_a_curve_has_a_mean_for_each_value():
    curves = video_to_video(obedient, NUM).curves
    assert [tuple(curve) for curve in curves.values()] == [NOISE_SCALES] * 2
    assert all(curve[0.0] > curve[KEEPS] > curve[1.0] for curve in curves.values())
    assert curves[OTHER_PROMPT][1.0] < 10
    assert curves[OWN_PROMPT][1.0] > 25
    filled = list(lora_ramp(obedient, NUM).curves[FILLED].values())
    assert filled == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=0.06)


def test_the_same_scenes_are_asked_for_each_time():
    asked: list[list[EvalCase]] = []
    for _ in range(2):
        cases: list[EvalCase] = []
        video_to_video(lambda case, cases=cases: cases.append(case) or obedient(case), NUM)
        asked.append(cases)
    first, second = asked
    assert [(case.prompt, case.seed, case.noise_scale) for case in first] == [
        (case.prompt, case.seed, case.noise_scale) for case in second
    ]
    assert all(np.array_equal(one.source, other.source) for one, other in zip(first, second, strict=True))


def test_frames_that_lead_have_as_many_as_come_back():
    scene = Scene("red", "circle", "left", "blue")
    case = EvalCase(caption(scene), 3, 1)
    assert case.num_frames == 33
    assert replace(case, source=render([(scene, 36)])).num_frames == 36
    assert set(CONTROLS) == {"gray", "scribble"}
    assert masks([(scene, 1)]).shape == (1, SIDE, SIDE)
