"""The training videos, on disk: planned from a seed, drawn in parallel, read without being loaded.

A folder holds `clips.json`, which says what all the clips are, and `frames-0000.npy` and so on, each with the frames of
up to 64 clips. Such a file appears when it is whole, so that a run that was cut off goes on with the next one.
"""

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Self

import numpy as np

from training.grammar import Scene, caption, next_scene, random_scene
from training.videos import SIDE, Frames, chunk_lengths, render, shots

CLIPS_A_FILE = 64

_FACTS = "clips.json"
_CHANCES_OF_SWITCHES = (0.5, 0.35, 0.15)
"""Of none, one and two switches of the prompt in a clip."""


class OtherClips(ValueError):
    """A folder holds other clips than those asked for."""


@dataclass(frozen=True)
class Facts:
    """What the clips of a folder are; the same facts, the same bytes.

    Attributes:
        num: of clips.
        num_chunks: of each clip.
        seed: that they were planned from.
        first_clip: a hash of the first clip's frames, which are others when the code plans or draws otherwise.
    """

    num: int
    num_chunks: int
    seed: int
    first_clip: str

    @classmethod
    def of(cls, num: int, num_chunks: int, seed: int) -> Self:
        """The facts of clips that are drawn as the code draws today."""
        frames = render(shots(plan(seed, 0, num_chunks)))
        return cls(num, num_chunks, seed, hashlib.sha256(frames.tobytes()).hexdigest()[:16])


class Clips:
    """The clips of a folder, as a sequence of frames and captions.

    Args:
        folder: that `make_clips` has filled.

    Raises:
        FileNotFoundError: it isn't, or not yet to the end.
    """

    def __init__(self, folder: Path) -> None:
        self.facts = Facts(**json.loads((folder / _FACTS).read_text()))
        self._files = [np.load(path, mmap_mode="r") for path in _paths(folder, self.facts)]

    def __len__(self) -> int:
        return self.facts.num

    def __getitem__(self, index: int) -> tuple[Frames, list[str]]:
        """A clip's frames, [F, SIDE, SIDE, 3], mapped and not to be written to, and the caption of each chunk."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        frames = self._files[index // CLIPS_A_FILE][index % CLIPS_A_FILE]
        return frames, [caption(scene) for scene in self.scenes(index)]

    def scenes(self, index: int) -> list[Scene]:
        """The scene of each chunk."""
        return plan(self.facts.seed, index, self.facts.num_chunks)


def plan(seed: int, index: int, num_chunks: int) -> list[Scene]:
    """The scenes of a clip, one a chunk; none of them is held out.

    A scene lasts until the prompt switches: in half of the clips never, in the others once or twice.
    """
    rng = np.random.default_rng((seed, index))
    num_switches = int(rng.choice(len(_CHANCES_OF_SWITCHES), p=_CHANCES_OF_SWITCHES))
    places = rng.permutation(np.arange(1, num_chunks))[:num_switches]
    scenes = [random_scene(rng)]
    for chunk in range(1, num_chunks):
        scenes.append(next_scene(scenes[-1], rng) if chunk in places else scenes[-1])
    return scenes


def make_clips(folder: Path, num: int, num_chunks: int, seed: int, processes: int) -> Clips:
    """Draw clips, or what a run that was cut off has left to draw.

    Args:
        folder: made where it is missing.
        num: of clips.
        num_chunks: of each clip: 9 pixel frames, then 12 a chunk.
        seed: the same one, the same clips.
        processes: that draw at the same time; 1 draws in this one.

    Raises:
        OtherClips: the folder holds clips with other facts.
    """
    facts = Facts.of(num, num_chunks, seed)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, facts)
    missing = [number for number, path in enumerate(_paths(folder, facts)) if not path.exists()]
    draw = partial(_draw_file, folder, facts)
    if processes == 1:
        for number in missing:
            draw(number)
    elif missing:
        # Not forked: a process that has run torch may hold locks that a fork would never release.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(draw, missing))
    return Clips(folder)


def _claim(folder: Path, facts: Facts) -> None:
    path = folder / _FACTS
    if not path.exists():
        _write_whole(path, json.dumps(asdict(facts), indent=2).encode() + b"\n")
    elif (found := json.loads(path.read_text())) != asdict(facts):
        raise OtherClips(f"{folder} holds the clips {found}, not {asdict(facts)}: name another folder, or delete it")


def _paths(folder: Path, facts: Facts) -> list[Path]:
    return [folder / f"frames-{number:04d}.npy" for number in range(-(-facts.num // CLIPS_A_FILE))]


def _draw_file(folder: Path, facts: Facts, number: int) -> None:
    first = number * CLIPS_A_FILE
    indices = range(first, min(first + CLIPS_A_FILE, facts.num))
    frames = np.empty((len(indices), sum(chunk_lengths(facts.num_chunks)), SIDE, SIDE, 3), np.uint8)
    for place, index in enumerate(indices):
        frames[place] = render(shots(plan(facts.seed, index, facts.num_chunks)))
    path = _paths(folder, facts)[number]
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.save(file, frames)
    draft.rename(path)


def _write_whole(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(data)
    draft.rename(path)
