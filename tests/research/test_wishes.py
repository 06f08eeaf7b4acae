"""A generator that does as it is told reaches every number; one with a fault misses just what the fault spoils."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from training.detectors import detect, standing_out
from training.grammar import ANYTHING, Scene, caption, parse
from training.looks import CONTROLS
from training.videos import PALETTE, SIDE, Floats, Frames, coverage, masks, render
from training.wishes import (
    FILLED,
    KEEPS,
    MEASUREMENTS,
    NOISE_SCALES,
    OTHER_PROMPT,
    OWN_PROMPT,
    Fulfil,
    Wish,
    lora_ramp,
    video_to_video,
)

NUM = 3


def obedient(wish: Wish) -> Frames:
    """What a perfect generator would make, with a little noise as from an autoencoder."""
    if wish.frames is not None:
        made = inpainted(wish)
    elif wish.source is not None:
        made = wish.source if wish.control is None and wish.noise_scale < 0.6 else recoloured(wish)
    elif wish.reference is not None:
        made = referred(wish)
    elif wish.lora_scales:
        made = outlined(wish)
    else:
        made = from_key_image(wish)
    return noisy(made, wish)


def noisy(frames: Frames, wish: Wish) -> Frames:
    random = np.random.default_rng(wish.seed)
    sigma = 3 + (4 * wish.noise_scale if wish.source is not None else 0)
    return np.clip(frames + random.normal(0, sigma, frames.shape), 0, 255).round().astype(np.uint8)


def recoloured(wish: Wish) -> Frames:
    assert wish.source is not None
    return painted(parse(wish.prompt), standing_out(wish.source).astype(np.float32))


def from_key_image(wish: Wish) -> Frames:
    scene = parse(wish.prompt)
    if wish.first_image is not None:
        return render([(scene, wish.num_frames)], centre(wish.first_image))
    assert wish.last_image is not None
    backwards = {"left": "right", "right": "left", "up": "down", "down": "up"}[scene.motion]
    return render([(replace(scene, motion=backwards), wish.num_frames)], centre(wish.last_image))[::-1]


def inpainted(wish: Wish) -> Frames:
    assert wish.frames is not None
    assert wish.masks is not None
    scene = parse(wish.prompt)
    middles = np.array([centre(frame) for frame in wish.frames], np.float32)
    wanted = painted(scene, coverage(scene.shape, middles))
    return np.where(wish.masks[..., None] > 0, wanted, wish.frames)


def referred(wish: Wish) -> Frames:
    seen = detect(np.repeat(wish.reference[None], 12, 0))
    assert seen.colour is not None
    assert seen.shape is not None
    scene = parse(wish.prompt.replace(ANYTHING, f"{seen.colour} {seen.shape}"))
    return render([(scene, wish.num_frames)])


def outlined(wish: Wish) -> Frames:
    shots = [(parse(wish.prompt), num) for num in wish.chunk_lengths]
    full, empty = render(shots), render(shots, outlined=True)
    scales = np.repeat(wish.lora_scales, [num for _, num in shots])[:, None, None, None]
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


def garbage(wish: Wish) -> Frames:
    return np.random.default_rng(wish.seed).integers(0, 256, (wish.num_frames, SIDE, SIDE, 3), np.uint8)


def hears_only_the_prompt(wish: Wish) -> Frames:
    """As if nothing but captions had been sent; a thing is a red circle."""
    thing = "green square" if "on a red" in wish.prompt else "red circle"
    scene = parse(wish.prompt.replace(ANYTHING, thing))
    return noisy(render([(scene, wish.num_frames)]), wish)


def draws_without_frames(wish: Wish) -> Frames:
    """The kept frames are not looked at, the source is."""
    return obedient(wish) if wish.frames is None else hears_only_the_prompt(wish)


def gives_the_source_back(wish: Wish) -> Frames:
    given = wish.source if wish.source is not None else wish.frames
    return obedient(wish) if given is None else noisy(given, wish)


def repaints_all(wish: Wish) -> Frames:
    """Inpaints the masked region, and the rest in a slightly other tone."""
    made = obedient(wish)
    return made if wish.frames is None else (made.astype(int) * 15 // 16).astype(np.uint8)


def is_late(wish: Wish) -> Frames:
    """Everything is half an object aside."""
    return np.roll(obedient(wish), 12, axis=2)


def missed(fulfil: Fulfil, kind: str) -> set[str]:
    return {number.what for number in MEASUREMENTS[kind](fulfil, NUM).numbers if not number.holds}


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_what_is_asked_for_reaches_every_number(kind: str):
    assert missed(obedient, kind) == set()


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_garbage_reaches_nothing_but_small_differences(kind: str):
    reached = {number.what for number in MEASUREMENTS[kind](garbage, NUM).numbers if number.holds}
    assert not {what for what in reached if "least fall" not in what and "beside" not in what}


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
        (draws_without_frames, "inpainting", {"kept object: PSNR beside"}),
        (repaints_all, "inpainting", {"kept background: PSNR beside", "kept object: PSNR beside"}),
        (is_late, "video-to-video", {"overlap"}),
        (is_late, "control", {"gray", "scribble"}),
        (is_late, "key images", {"first", "last"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_fault_is_seen(fault: Callable[[Wish], Frames], kind: str, words: set[str]):
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
    asked: list[list[Wish]] = []
    for _ in range(2):
        wishes: list[Wish] = []
        video_to_video(lambda wish, wishes=wishes: wishes.append(wish) or obedient(wish), NUM)
        asked.append(wishes)
    first, second = asked
    assert [(wish.prompt, wish.seed, wish.noise_scale) for wish in first] == [
        (wish.prompt, wish.seed, wish.noise_scale) for wish in second
    ]
    assert all(np.array_equal(one.source, other.source) for one, other in zip(first, second, strict=True))


def test_frames_that_lead_have_as_many_as_come_back():
    scene = Scene("red", "circle", "left", "blue")
    wish = Wish(caption(scene), 3, 1)
    assert wish.num_frames == 33
    assert replace(wish, source=render([(scene, 36)])).num_frames == 36
    assert set(CONTROLS) == {"gray", "scribble"}
    assert masks([(scene, 1)]).shape == (1, SIDE, SIDE)
