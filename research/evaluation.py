"""How a generator follows every kind of conditioning other than a prompt: the requests and their measurements.

Each kind of request stays within what the small model was trained on, over several held-out scenes and seeds; what
counts is the mean. `tests.support.toyworld.metrics` has the numbers of single videos.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from research.augmentations import CONTROLS
from research.measures import prompts
from tests.support.toyworld.grammar import ATTRIBUTES, COLOURS, SHAPES, Scene, caption, recoloured, vague_caption
from tests.support.toyworld.metrics import fill_share, place_overlap, psnr, right_shares, video_chunks
from tests.support.toyworld.videos import (
    CHUNK_FRAMES,
    MIDDLE,
    PALETTE,
    SIDE,
    SIZE,
    Floats,
    Frames,
    chunk_lengths,
    masks,
    render,
    split_chunks,
)

NOISE_SCALES = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
KEEPS, RECOLOURS = 0.3, 0.7
"""The noise scale that keeps a source, and the one that takes the prompt's colours and keeps the motion."""
LORA_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""One a chunk."""
OWN_PROMPT, OTHER_PROMPT = "the source's own prompt", "a prompt with other colours"
FILLED = "share of the object that is filled"

LEAST_CODED_DB = 22.0
"""PSNR at noise scale 0, which shows what the autoencoder alone makes of a source."""
LEAST_FALL_DB = 0.0
"""That the PSNR against the source loses from each noise scale to the next, on average over both kinds of prompts."""
MAX_KEPT_LOSS_DB = 6.0
"""That it may have lost at `KEEPS` since noise scale 0, whatever colours the prompt has."""
LEAST_KEPT = 0.7
"""Share of chunks in which each attribute is still the source's at `KEEPS`, whatever colours the prompt has."""
LEAST_RECOLOURED = 0.7
"""Share of chunks in which each attribute is the prompt's at `RECOLOURS`; the motion is also the source's."""
LEAST_OVERLAP = 0.6
"""Intersection over union of the object and its place in what leads it."""
MAX_UNMASKED_LOSS_DB = 2.0
"""That the kept region may lose against the autoencoder's own picture of it."""
LEAST_INPAINTED = 0.7
"""Share of chunks in which object and background of the masked region are the prompt's."""
LEAST_REFERRED = 0.7
"""Share of chunks in which colour and shape are the reference image's."""
LEAST_LORA_FALL = -0.02
"""Of the share of the object that is filled, from each LoRA scale to the next: a little may be chance."""
LEAST_LORA_CHANGE = 0.5
"""The same from the first scale to the last."""

_FORMS = ("band", "rectangle", "half")
_MASK_MARGIN = 4
_LEAST_LUMA_STEP = 40.0


@dataclass(frozen=True)
class EvalCase:
    """One generation and all that leads it.

    Attributes:
        prompt: of all chunks.
        num_chunks: 12 frames each; the first has 9 where neither a video nor VACE frames lead it.
        seed: of the generation.
        source: an input video [F, SIDE, SIDE, 3], 12 frames a chunk.
        noise_scale: how much noise hides the source.
        control: the frame processor whose picture of the source leads the generation, in place of the source itself.
        frames: VACE frames, [F, SIDE, SIDE, 3], 12 a chunk.
        masks: 1 where the frames are to be generated, [F, SIDE, SIDE].
        first_image: that the first chunk begins with, [SIDE, SIDE, 3].
        last_image: that it ends with.
        reference: what the object of every chunk looks like.
        lora_scales: of `outlines`, one a chunk; none for none.
    """

    prompt: str
    num_chunks: int
    seed: int
    source: Frames | None = None
    noise_scale: float = RECOLOURS
    control: str | None = None
    frames: Frames | None = None
    masks: Floats | None = None
    first_image: Frames | None = None
    last_image: Frames | None = None
    reference: Frames | None = None
    lora_scales: Sequence[float] = ()

    @property
    def chunk_lengths(self) -> list[int]:
        """Pixel frames of each chunk that come back."""
        by_frames = self.source is not None or self.frames is not None
        return [CHUNK_FRAMES] * self.num_chunks if by_frames else chunk_lengths(self.num_chunks)

    @property
    def num_frames(self) -> int:
        """Of all chunks."""
        return sum(self.chunk_lengths)


RunCase: TypeAlias = Callable[[EvalCase], Frames]
"""Makes the video [F, SIDE, SIDE, 3] that a case describes."""


@dataclass(frozen=True)
class Number:
    """One mean, and the least that it should be; a loss is given as what is gained, below 0."""

    what: str
    value: float
    least: float

    @property
    def holds(self) -> bool:
        """Whether it is reached; NaN never is."""
        return self.value >= self.least


@dataclass(frozen=True)
class Measured:
    """What was measured of one kind of request.

    Attributes:
        numbers: what is to be reached.
        curves: by name, a mean for each of some values that were gone through, such as noise scales.
    """

    numbers: tuple[Number, ...]
    curves: Mapping[str, Mapping[float, float]] = field(default_factory=dict)


# -- Scenes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Led:
    """A true video that leads a generation: its scene, its place, its seed."""

    scene: Scene
    start: tuple[float, float]
    seed: int
    num_chunks: int

    @property
    def shots(self) -> list[tuple[Scene, int]]:
        return [(self.scene, CHUNK_FRAMES * self.num_chunks)]

    @property
    def frames(self) -> Frames:
        return render(self.shots, self.start)

    @property
    def covered(self) -> Floats:
        return masks(self.shots, self.start)

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng((1, self.seed))


def _anywhere(num: int, num_chunks: int, *, seed: int) -> list[_Led]:
    """True videos of held-out scenes whose objects start in any place."""
    rng = np.random.default_rng(seed)
    places = rng.integers(SIDE, size=(num, 2))
    return [
        _Led(scene, (float(row), float(column)), seed + number, num_chunks)
        for number, (scene, (row, column)) in enumerate(zip(prompts(num), places, strict=True))
    ]


# -- Video to video -------------------------------------------------------------------------------------------------


def video_to_video(run_case: RunCase, num: int, *, num_chunks: int = 3, seed: int = 100) -> Measured:
    """Little noise keeps the source, whatever its prompt; more takes the prompt's colours and keeps the motion."""
    same, other, kept, taken, places = [], [], [], [], []
    for led in _anywhere(num, num_chunks, seed=seed):
        source, target = led.frames, recoloured(led.scene, led.rng)
        own, made = (_by_noise(run_case, led, source, scene) for scene in (led.scene, target))
        same.append([psnr(frames, source) for frames in own.values()])
        other.append([psnr(frames, source) for frames in made.values()])
        kept.append(right_shares(video_chunks(made[KEEPS]), led.scene))
        taken.append(right_shares(video_chunks(made[RECOLOURS]), target))
        places.append(place_overlap(made[RECOLOURS], led.covered))
    curves = {name: _curve(NOISE_SCALES, found) for name, found in ((OWN_PROMPT, same), (OTHER_PROMPT, other))}
    lost = curves[OTHER_PROMPT][0.0] - curves[OTHER_PROMPT][KEEPS]
    fall = min(earlier - later for earlier, later in pairwise(_curve(NOISE_SCALES, same + other).values()))
    numbers = [
        Number("noise scale 0: PSNR, dB", curves[OWN_PROMPT][0.0], LEAST_CODED_DB),
        Number("least fall of the PSNR from noise scale to noise scale, dB", fall, LEAST_FALL_DB),
        Number(f"noise scale {KEEPS}: PSNR relative to 0's, dB", -lost, -MAX_KEPT_LOSS_DB),
        *_shares(f"noise scale {KEEPS}: the source's", kept, ATTRIBUTES, LEAST_KEPT),
        *_shares(f"noise scale {RECOLOURS}: the prompt's", taken, ATTRIBUTES, LEAST_RECOLOURED),
        Number(f"noise scale {RECOLOURS}: overlap with the source's object", float(np.mean(places)), LEAST_OVERLAP),
    ]
    return Measured(tuple(numbers), curves)


def _by_noise(run_case: RunCase, led: _Led, source: Frames, scene: Scene) -> dict[float, Frames]:
    case = EvalCase(caption(scene), led.num_chunks, led.seed, source)
    return {scale: run_case(replace(case, noise_scale=scale)) for scale in NOISE_SCALES}


def _curve(values: Sequence[float], found: Sequence[Sequence[float]]) -> dict[float, float]:
    """The mean at each value of what was found there, [videos, values]."""
    return dict(zip(values, np.mean(found, axis=0).tolist(), strict=True))


def _shares(what: str, found: Sequence[Mapping[str, float]], names: Sequence[str], least: float) -> Iterator[Number]:
    for name in names:
        yield Number(f"{what} {name}", float(np.mean([shares[name] for shares in found])), least)


# -- Inpainting -----------------------------------------------------------------------------------------------------


def inpainting(run_case: RunCase, num: int, *, seed: int = 200) -> Measured:
    """Another object where the source's was, and the rest of the picture as it was; then an object next to a mask."""
    background, right = [], []
    for number, scene in enumerate(prompts(num)):
        form = _FORMS[number % len(_FORMS)]
        led = _Led(scene, MIDDLE, seed + number, num_chunks=1 if form == "rectangle" else 3)
        other = _other_object(scene, led.rng)
        kept, made = _inpainted(run_case, led, other, _mask(form, scene.motion))
        background.append(kept)
        right.append(right_shares(video_chunks(made), other))
    unmasked = [_inpainted(run_case, led, led.scene, _far_half(led))[0] for led in _anywhere(num, 3, seed=seed)]
    numbers = []
    for what, found in (("background", background), ("object", unmasked)):
        coded_db, loss_db = np.mean(found, axis=0).tolist()
        numbers.append(Number(f"kept {what}: the autoencoder's own PSNR, dB", coded_db, LEAST_CODED_DB))
        numbers.append(Number(f"kept {what}: PSNR relative to the autoencoder's, dB", -loss_db, -MAX_UNMASKED_LOSS_DB))
    return Measured((*numbers, *_shares("masked region: the prompt's", right, ATTRIBUTES, LEAST_INPAINTED)))


def _inpainted(run_case: RunCase, led: _Led, target: Scene, mask: Floats) -> tuple[tuple[float, float], Frames]:
    """In the kept region the autoencoder's PSNR and the loss against it, in dB; and the frames that were made."""
    source = led.frames
    area = np.array(np.broadcast_to(mask, source.shape[:3]))
    made = run_case(EvalCase(caption(target), led.num_chunks, led.seed, frames=source, masks=area))
    coded = run_case(EvalCase(caption(led.scene), led.num_chunks, led.seed, source, noise_scale=0.0))
    coded_db = psnr(coded, source, area == 0)
    return (coded_db, coded_db - psnr(made, source, area == 0)), made


def _other_object(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with an object of another colour and another shape, on the same background."""
    others = [name for name in COLOURS if name not in (scene.colour, scene.background)]
    shapes = [name for name in SHAPES if name != scene.shape]
    return Scene(str(rng.choice(others)), str(rng.choice(shapes)), scene.motion, scene.background)


def _mask(form: str, motion: str) -> Floats:
    """A mask that stands still and hides all of an object that starts in the middle, [SIDE, SIDE].

    A band and a half reach along its course from side to side. A rectangle holds what it passes in one chunk.
    """
    half = SIZE / 2 + _MASK_MARGIN
    across = slice(0 if form == "half" else int(SIDE / 2 - half), int(SIDE / 2 + half))
    along = slice(None)
    if form == "rectangle":
        back = motion in ("left", "up")
        before, after = half + CHUNK_FRAMES * back, half + CHUNK_FRAMES * (not back)
        along = slice(int(SIDE / 2 - before), int(SIDE / 2 + after))
    area = np.zeros((SIDE, SIDE), np.float32)
    area[across, along] = 1
    return area if motion in ("left", "right") else np.ascontiguousarray(area.T)


def _far_half(led: _Led) -> Floats:
    """A mask on the side of the picture that a video's object does not come to, [SIDE, SIDE]."""
    upright = led.scene.motion in ("left", "right")
    place = led.start[0 if upright else 1]
    rows = np.arange(SIDE)
    away = np.abs((rows + 0.5 - place + SIDE / 2) % SIDE - SIDE / 2) > SIZE / 2 + _MASK_MARGIN
    area = np.zeros((SIDE, SIDE), np.float32)
    area[away & ((rows < SIDE / 2) == (place >= SIDE / 2))] = 1
    return area if upright else np.ascontiguousarray(area.T)


# -- Control --------------------------------------------------------------------------------------------------------


def control(run_case: RunCase, num: int, *, num_chunks: int = 2, seed: int = 300) -> Measured:
    """Grey or scribbled frames of another video lead the object's place; the caption has its colours."""
    numbers = []
    for name in CONTROLS:
        places = []
        for led in _visible(_anywhere(4 * num, num_chunks, seed=seed), num):
            made = run_case(EvalCase(caption(led.scene), num_chunks, led.seed, led.frames, control=name))
            places.append(place_overlap(made, led.covered))
        numbers.append(Number(f"{name}: overlap with the object that leads", float(np.mean(places)), LEAST_OVERLAP))
    return Measured(tuple(numbers))


def _visible(those: Sequence[_Led], num: int) -> list[_Led]:
    """So many videos whose object can be distinguished from its background without colours."""
    return [led for led in those if abs(_luma(led.scene.colour) - _luma(led.scene.background)) > _LEAST_LUMA_STEP][:num]


def _luma(colour: str) -> float:
    return float(np.dot(PALETTE[colour], (0.299, 0.587, 0.114)))


# -- Images ---------------------------------------------------------------------------------------------------------


def reference(run_case: RunCase, num: int, *, num_chunks: int = 3, seed: int = 400) -> Measured:
    """An image tells the object's colour and shape, which the prompt leaves open."""
    right = []
    for number, scene in enumerate(prompts(num)):
        rng = np.random.default_rng((2, seed + number))
        grounds = ["white", *COLOURS] if number % 2 else ["white"]
        ground = str(rng.choice([name for name in grounds if name != scene.colour] or ["black"]))
        image = render([(Scene(scene.colour, scene.shape, scene.motion, ground), 1)], MIDDLE)[0]
        made = run_case(EvalCase(vague_caption(scene), num_chunks, seed + number, reference=image))
        right.append(right_shares(split_chunks(made), scene))
    return Measured(tuple(_shares("the image's", right, ("colour", "shape"), LEAST_REFERRED)))


def key_images(run_case: RunCase, num: int, *, seed: int = 500) -> Measured:
    """The first chunk begins with an image, or ends with one; the objects may be anywhere in them."""
    first, last = [], []
    for led in _anywhere(num, 1, seed=seed):
        case, image, covered = EvalCase(caption(led.scene), 1, led.seed), led.frames[0], led.covered[:1]
        made = run_case(replace(case, first_image=image))
        first.append(place_overlap(made[:1], covered))
        made = run_case(replace(case, last_image=image))
        last.append(place_overlap(made[-1:], covered))
    return Measured(
        (
            Number("first frame: overlap with the image's object", float(np.mean(first)), LEAST_OVERLAP),
            Number("last frame: overlap with the image's object", float(np.mean(last)), LEAST_OVERLAP),
        )
    )


# -- LoRA -----------------------------------------------------------------------------------------------------------


def lora_ramp(run_case: RunCase, num: int, *, seed: int = 600) -> Measured:
    """The scale of `outlines` grows from chunk to chunk, and of the objects less and less is filled."""
    filled = []
    for number, scene in enumerate(prompts(num)):
        made = run_case(EvalCase(caption(scene), len(LORA_SCALES), seed + number, lora_scales=LORA_SCALES))
        filled.append([fill_share(chunk, scene) for chunk in split_chunks(made)])
    curve = _curve(LORA_SCALES, filled)
    falls = [earlier - later for earlier, later in pairwise(curve.values())]
    return Measured(
        (
            Number("least fall of what is filled from scale to scale", float(np.min(falls)), LEAST_LORA_FALL),
            Number("fall from the first scale to the last", float(np.sum(falls)), LEAST_LORA_CHANGE),
        ),
        {FILLED: curve},
    )


MEASUREMENTS: Mapping[str, Callable[[RunCase, int], Measured]] = MappingProxyType(
    {
        "video-to-video": video_to_video,
        "inpainting": inpainting,
        "control": control,
        "reference": reference,
        "key images": key_images,
        "LoRA": lora_ramp,
    }
)
"""Of each kind of request, by a generator and a number of scenes."""
