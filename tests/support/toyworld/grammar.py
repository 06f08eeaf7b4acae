"""What the small model can be asked for: scenes, their captions, and the tokenizer of the captions' words.

One sentence is the whole language, and a vague one where something else shows what the object is:

    a {colour} {shape} moving {motion} on a {background} background
    a thing moving {motion} on a {background} background

An object never has the colour of its background. One scene in ten is held out: no training video shows it, so that a
score on it tells what the model makes of a combination that it has not seen.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("left", "right", "up", "down")
ATTRIBUTES = ("background", "colour", "shape", "motion")

UNKNOWN, PADDING, END = "<unk>", "<pad>", "</s>"  # the last two as `filmstrip.runtime.text` needs them
ANYTHING = "thing"
VOCABULARY = (PADDING, END, UNKNOWN, "a", "moving", "on", "background", *COLOURS, *SHAPES, *MOTIONS, ANYTHING)
MAX_TOKENS = 24
"""Tokens of a prompt, the end and the padding included; a caption has ten."""

_HELD_OUT_OF_GROUP = 2
_CAPTION = re.compile(
    rf"an? (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) moving (?P<motion>{'|'.join(MOTIONS)}) "
    rf"on an? (?P<background>{'|'.join(COLOURS)}) background\.?",
    re.IGNORECASE,
)


class BadCaption(ValueError):
    """A text is no sentence of the grammar."""


@dataclass(frozen=True)
class Scene:
    """What a video shows until its prompt changes; each attribute is the word that the caption has for it."""

    colour: str
    shape: str
    motion: str
    background: str


def caption(scene: Scene) -> str:
    """The one sentence for a scene."""
    return f"a {scene.colour} {scene.shape} moving {scene.motion} on a {scene.background} background"


def vague_caption(scene: Scene) -> str:
    """A sentence for a scene that leaves colour and shape open: a reference image is to tell them."""
    return f"a {ANYTHING} moving {scene.motion} on a {scene.background} background"


def parse(text: str) -> Scene:
    """The scene that a sentence describes; capitals, `an`, wider spaces and a full stop are forgiven.

    Raises:
        BadCaption: it is no sentence of the grammar, or object and background have one colour.
    """
    found = _CAPTION.fullmatch(" ".join(text.split()))
    if found is None:
        raise BadCaption(f"{text!r} is not of the form '{caption(Scene('red', 'circle', 'left', 'blue'))}'")
    scene = Scene(**{name: word.lower() for name, word in found.groupdict().items()})
    if scene.colour == scene.background:
        raise BadCaption(f"{text!r}: object and background are both {scene.colour}")
    return scene


# -- Which scenes there are -----------------------------------------------------------------------------------------


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene of the grammar."""
    return tuple(
        Scene(colour, shape, motion, background)
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
        for background in COLOURS
        if background != colour
    )


@cache
def held_out_scenes() -> tuple[Scene, ...]:
    """The scenes of no training video: of each colour and motion the two, of 21, whose captions hash lowest."""
    groups: dict[tuple[str, str], list[Scene]] = {}
    for scene in all_scenes():
        groups.setdefault((scene.colour, scene.motion), []).append(scene)
    return tuple(scene for group in groups.values() for scene in sorted(group, key=_hash)[:_HELD_OUT_OF_GROUP])


@cache
def training_scenes() -> tuple[Scene, ...]:
    """The scenes that training videos may show."""
    return tuple(scene for scene in all_scenes() if not is_held_out(scene))


def is_held_out(scene: Scene) -> bool:
    """Whether no training video may show the scene."""
    return scene in held_out_scenes()


def _hash(scene: Scene) -> bytes:
    return hashlib.sha256(caption(scene).encode()).digest()


def random_scene(rng: np.random.Generator) -> Scene:
    """One of the training scenes, each as likely as the others."""
    return _pick(training_scenes(), rng)


def next_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """The training scene that a switch of the prompt leads to.

    How many attributes change is drawn first, one to four alike, so that small changes are as frequent as new scenes.
    """
    num_changes = int(rng.integers(1, len(ATTRIBUTES) + 1))
    return _pick(_at_distance(scene, num_changes), rng)


def recoloured(scene: Scene, rng: np.random.Generator) -> Scene:
    """A training scene of the same shape and motion in which both colours are others."""
    return _pick(_other_colours(scene), rng)


@cache
def _other_colours(scene: Scene) -> tuple[Scene, ...]:
    return tuple(
        other
        for other in training_scenes()
        if (other.shape, other.motion) == (scene.shape, scene.motion) and num_changed(scene, other) == 2
    )


@cache
def _at_distance(scene: Scene, num_changes: int) -> tuple[Scene, ...]:
    return tuple(other for other in training_scenes() if num_changed(scene, other) == num_changes)


def num_changed(scene: Scene, other: Scene) -> int:
    """In how many attributes two scenes differ, 0 to 4."""
    return sum(getattr(scene, name) != getattr(other, name) for name in ATTRIBUTES)


def _pick(scenes: Sequence[Scene], rng: np.random.Generator) -> Scene:
    return scenes[int(rng.integers(len(scenes)))]


# -- Words to numbers -----------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> Path:
    """Write the `tokenizer.json` that `filmstrip.runtime.text` reads; gives its path.

    A token is a word. Capitals and punctuation are dropped, `an` is `a`, any other word is `<unk>`.
    """
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\w\s]"), " "),
            normalizers.Replace(Regex(r"\ban\b"), "a"),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, numbers[END])])
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path
