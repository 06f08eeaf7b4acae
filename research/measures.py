"""What is measured of a generator: which clips it makes, which of their chunks are right, and what is to be reached.

The rule-based detectors of `tests.support.toyworld` judge each chunk. Their own score on true videos of the same
captions stands next to the generator's, so that nobody takes the one for the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tests.support.toyworld.detectors import detect
from tests.support.toyworld.grammar import ATTRIBUTES, Scene, caption, held_out_scenes, num_changed, parse
from tests.support.toyworld.videos import Frames, render, shots, split_chunks

Rights: TypeAlias = npt.NDArray[np.bool_]
"""Whether a chunk shows what its caption says, [..., attributes] in the order of `ATTRIBUTES`."""

Generate: TypeAlias = Callable[[Sequence[str], int], Frames]
"""Makes a video [F, 64, 64, 3] of one caption a chunk, and a seed."""

ALL = "all four"
WANTED = {"background": 0.95, "colour": 0.9, "shape": 0.7, "motion": 0.8, ALL: 0.5}
MAX_FADING = 0.1
WANTED_AFTER_SWITCH = 0.7

WHOLE, FIRST, SECOND = "whole clips", "first half", "second half"
SWITCHED = "second chunk after a switch"
LONG = "end of long clips"

_END_CHUNKS = 5
_CHUNKS_BEFORE_SWITCH = 3
_CHUNKS_AFTER_SWITCH = 2


def score_frames(frames: Frames, captions: Sequence[str]) -> Rights:
    """Judge a video: what is right in each chunk, [chunks, attributes].

    Args:
        frames: [F, 64, 64, 3] of a generation from text: 9 pixel frames, then 12 a chunk.
        captions: one a chunk.

    Raises:
        BadCaption: a caption is no sentence of the grammar.
        ValueError: there are more or fewer chunks than captions.
    """
    chunks = zip(split_chunks(frames), captions, strict=True)
    return np.array([_rights(chunk, parse(text)) for chunk, text in chunks])


def _rights(chunk: Frames, scene: Scene) -> list[bool]:
    seen = detect(chunk)
    return [getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES]


def shares(rights: Rights) -> dict[str, float]:
    """In which share of the chunks, of any number of clips, each attribute is right, and all four at once."""
    chunks = rights.reshape(-1, len(ATTRIBUTES))
    return {**dict(zip(ATTRIBUTES, chunks.mean(axis=0).tolist(), strict=True)), ALL: float(chunks.all(axis=1).mean())}


# -- The clips ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which clips are made; all of them are of held-out scenes.

    Attributes:
        num_prompts: clips of one caption each; 64 take every held-out scene once.
        num_chunks: of each of these, two at least.
        num_switches: short clips whose caption changes, to one that has no attribute in common with the first.
        num_long: clips of one caption each that go on for long.
        long_chunks: of each of these.
        seed: of the first clip of each kind; every further one has the next.
    """

    num_prompts: int = 64
    num_chunks: int = 8
    num_switches: int = 32
    num_long: int = 8
    long_chunks: int = 40
    seed: int = 1000

    @property
    def num_clips(self) -> int:
        """Of all kinds."""
        return self.num_prompts + self.num_switches + self.num_long


def prompts(num: int) -> list[Scene]:
    """Held-out scenes in a mixed order that is always the same, from the first again after the last."""
    scenes = held_out_scenes()
    order = np.random.default_rng(0).permutation(len(scenes))
    return [scenes[order[number % len(scenes)]] for number in range(num)]


def switches(num: int) -> list[tuple[Scene, Scene]]:
    """Pairs of held-out scenes that have nothing in common."""
    every = prompts(len(held_out_scenes()))
    partners = [[other for other in every if num_changed(scene, other) == len(ATTRIBUTES)] for scene in every]
    return [(every[at % len(every)], _turn(partners[at % len(every)], at)) for at in range(num)]


def _turn(scenes: Sequence[Scene], number: int) -> Scene:
    return scenes[number % len(scenes)]


@dataclass(frozen=True)
class Row:
    """One line of the result: the generator's shares, and the detectors' on true videos of the same captions."""

    what: str
    shares: dict[str, float]
    true: dict[str, float]


def measure(generate: Generate, plan: Plan) -> list[Row]:
    """Have the clips made and judge them; gives a row, or three, for each kind that the plan has clips of."""
    rows = []
    if plan.num_prompts:
        both = _judged(generate, ([scene] * plan.num_chunks for scene in prompts(plan.num_prompts)), plan.seed)
        half = plan.num_chunks // 2
        rows += [_row(WHOLE, both), _row(FIRST, both[:, :, :half]), _row(SECOND, both[:, :, -half:])]
    if plan.num_switches:
        clips = (
            [old] * _CHUNKS_BEFORE_SWITCH + [new] * _CHUNKS_AFTER_SWITCH for old, new in switches(plan.num_switches)
        )
        rows += [_row(SWITCHED, _judged(generate, clips, plan.seed)[:, :, -1:])]
    if plan.num_long:
        both = _judged(generate, ([scene] * plan.long_chunks for scene in prompts(plan.num_long)), plan.seed)
        rows += [_row(LONG, both[:, :, -_END_CHUNKS:])]
    return rows


def _judged(generate: Generate, clips: Iterable[Sequence[Scene]], seed: int) -> Rights:
    """Of made and of true videos: [2, clips, chunks, attributes]."""
    both = []
    for number, scenes in enumerate(clips):
        captions = [caption(scene) for scene in scenes]
        videos = (generate(captions, seed + number), render(shots(scenes)))
        both.append([score_frames(video, captions) for video in videos])
    return np.array(both).swapaxes(0, 1)


def _row(what: str, both: Rights) -> Row:
    made, true = both
    return Row(what, shares(made), shares(true))


# -- What is to be reached ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The least value that one share of one row must reach."""

    what: str
    name: str
    share: float
    threshold: float

    @property
    def holds(self) -> bool:
        """Whether it is reached."""
        return self.share >= self.threshold


def targets(rows: Sequence[Row]) -> list[Target]:
    """What the rows that there are should reach.

    Whole clips: `WANTED`. Their second half, and the end of long clips, at most `MAX_FADING` less than the first half
    and than `WANTED`: nothing fades or collapses. After a switch: each attribute, all of which are new.
    """
    found = {row.what: row.shares for row in rows}
    thresholds = {
        WHOLE: WANTED,
        SECOND: {name: share - MAX_FADING for name, share in found.get(FIRST, {}).items()},
        SWITCHED: dict.fromkeys(ATTRIBUTES, WANTED_AFTER_SWITCH),
        LONG: {name: share - MAX_FADING for name, share in WANTED.items()},
    }
    return [
        Target(what, name, found[what][name], least)
        for what, names in thresholds.items()
        if what in found
        for name, least in names.items()
    ]
