"""Clips as the generator is trained on them: latents, where their objects are, and the tokens of their captions."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.modules.tae import TaeEncoder
from filmstrip.runtime.text import Tokenizer
from research.autoencoder import to_channels_last, to_pixels
from research.settings import ClipSettings
from tests.support.toyworld.grammar import (
    Scene,
    caption,
    next_scene,
    random_scene,
    recoloured,
    training_scenes,
    vague_caption,
    write_tokenizer,
)
from tests.support.toyworld.videos import MIDDLE, SIDE, masks, paint, shots

Array: TypeAlias = npt.NDArray[Any]


_WORKERS = 2


class Kind(IntEnum):
    """What a clip is good for."""

    PLAIN = 0
    """One caption, from the middle: what text alone asks for."""
    PLAIN_ANYWHERE = 1
    """One caption; the object starts in a place that no caption tells."""
    SWITCHED = 2
    SWITCHED_ANYWHERE = 3
    RECOLOURED = 4
    """As `PLAIN_ANYWHERE`, in pairs: both move alike and share no colour."""


@dataclass(frozen=True)
class Clip:
    """What is drawn: a scene for each chunk, and where the object starts."""

    kind: Kind
    scenes: tuple[Scene, ...]
    start: tuple[float, float]
    switch: int
    """The first chunk of the second caption; 0 where there is none."""


@dataclass(frozen=True)
class EncodedClips:
    """All clips, memory-mapped.

    Attributes:
        latents: float16 [clips, C, T, H, W].
        objects: how much of a latent pixel the object covers, float16 [clips, 1, T, H, W].
        captions: token ids and masks of both captions, int64 [clips, 2, 2, Lt].
        vague: the same of captions that tell neither colour nor shape.
        kinds: of each clip, [clips].
        switches: the first chunk under the second caption, 0 for none, [clips].
    """

    latents: Array
    objects: Array
    captions: Array
    vague: Array
    kinds: Array
    switches: Array

    def partners(self, chosen: Array) -> Array:
        """For each of these recoloured clips, the other clip of its pair."""
        first = int(np.flatnonzero(self.kinds == Kind.RECOLOURED)[0])
        return first + ((chosen - first) ^ 1)


def all_clips(settings: ClipSettings, seed: int) -> Iterator[Clip]:
    """The clips of the settings; plain ones from the middle are all training scenes in turn."""
    rng = np.random.default_rng(seed)
    counts = (settings.plain, settings.plain_anywhere, settings.switched, settings.switched_anywhere)
    scenes = training_scenes()
    for kind, count in zip(Kind, counts, strict=False):
        for index in range(count):
            is_plain = kind in (Kind.PLAIN, Kind.PLAIN_ANYWHERE)
            first = scenes[index % len(scenes)] if kind is Kind.PLAIN else random_scene(rng)
            switch = 0 if is_plain else 1 + index % (settings.num_chunks - 2)
            second = first if is_plain else next_scene(first, rng)
            anywhere = kind in (Kind.PLAIN_ANYWHERE, Kind.SWITCHED_ANYWHERE)
            start = _anywhere(rng) if anywhere else MIDDLE
            before = settings.num_chunks if is_plain else switch
            yield Clip(kind, (first,) * before + (second,) * (settings.num_chunks - before), start, switch)
    for _ in range(settings.recoloured_pairs):
        scene, start = random_scene(rng), _anywhere(rng)
        for one in (scene, recoloured(scene, rng)):
            yield Clip(Kind.RECOLOURED, (one,) * settings.num_chunks, start, 0)


def _anywhere(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.integers(SIDE)), float(rng.integers(SIDE))


def encode_clips(
    folder: Path,
    encoder: TaeEncoder,
    settings: ClipSettings,
    text_len: int,
    *,
    seed: int = 0,
    outlined: bool = False,
) -> None:
    """Draw and encode all clips into a folder, which is whole once `facts.json` is there; done before, nothing is."""
    if (folder / "facts.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    clips = list(all_clips(settings, seed))
    num_frames = 3 * settings.num_chunks
    side = SIDE // 8
    channels = cast("nn.Conv2d", encoder.encoder[-1]).out_channels
    latents, objects = (
        _new_array(folder / f"{name}.npy", (len(clips), width, num_frames, side, side))
        for name, width in (("latents", channels), ("objects", 1))
    )
    to_channels_last(encoder)

    def encode(index: int) -> None:
        # One clip at a time: what a layer makes of more does not fit in the processor's caches.
        clip = clips[index]
        covered = masks(shots(clip.scenes), clip.start, outlined=outlined)
        frames = paint(shots(clip.scenes), covered)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            latents[index] = encoder(to_pixels(frames[None]))[0][0].float().numpy()
            objects[index] = by_latent(torch.from_numpy(covered[None]))[0].numpy()

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(encode, range(len(clips))))
    pairs = [(clip.scenes[0], clip.scenes[-1]) for clip in clips]
    tokens = tokens_of(
        {text for pair in pairs for scene in pair for text in (caption(scene), vague_caption(scene))}, text_len
    )
    for name, text_of in (("captions", caption), ("vague", vague_caption)):
        np.save(folder / f"{name}.npy", np.array([[tokens[text_of(scene)] for scene in pair] for pair in pairs]))
    facts = {"kinds": [int(clip.kind) for clip in clips], "switches": [clip.switch for clip in clips]}
    (folder / "facts.json").write_text(json.dumps(facts))


def read_clips(folder: Path) -> EncodedClips:
    """Open what `encode_clips` wrote.

    Raises:
        FileNotFoundError: it has not, or was stopped.
    """
    facts = json.loads((folder / "facts.json").read_text("utf-8-sig"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "objects")}
    return EncodedClips(
        arrays["latents"],
        arrays["objects"],
        np.load(folder / "captions.npy"),
        np.load(folder / "vague.npy"),
        np.array(facts["kinds"]),
        np.array(facts["switches"]),
    )


def _new_array(path: Path, shape: tuple[int, ...]) -> Array:
    """Memory-mapped, float16."""
    open_memmap: Any = np.lib.format.open_memmap
    made: Array = open_memmap(path, "w+", np.float16, shape)
    return made


def by_latent(covered: Tensor) -> Tensor:
    """Coverage of pixels [B, F, H, W] to that of latent pixels [B, 1, T, H / 8, W / 8]; the first is of one frame."""
    whole = torch.cat([covered[:, :1].expand(-1, 3, -1, -1), covered], dim=1)
    return functional.avg_pool3d(whole.unsqueeze(1), (4, 8, 8))


def tokens_of(texts: Iterable[str], text_len: int) -> dict[str, Array]:
    """Token ids and mask of each text, int64 [2, Lt]."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenize = Tokenizer(Path(folder), text_len)
    return {text: np.concatenate(tokenize(text)) for text in texts}
