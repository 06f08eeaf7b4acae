"""Videos of networks in training, made by the very runtime that serves them, and what is right in them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from export.checkpoint import Networks
from export.graph_specs import graph_specs
from export.model_folder import runtime_config
from export.spec import Size
from export.verify import ModuleEngine
from filmstrip.contract import ChunkParameters, Mode, Prompt
from filmstrip.runtime.longlive import LongLive
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.text import Tokenizer
from research.measures import prompts, switches
from tests.support.toyworld.grammar import caption, write_tokenizer
from tests.support.toyworld.videos import SIDE, Frames, chunk_lengths

_ENLARGED = 2
_SHEET_CHUNKS = 8


class Sampler:
    """Makes videos from text, as `research.measures.Generate` wants them.

    Args:
        networks: of a checkpoint, whole.
    """

    def __init__(self, networks: Networks) -> None:
        with TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            tokenize = Tokenizer(Path(folder), networks.config.text_len)
        engines = {spec.name: ModuleEngine(spec) for spec in graph_specs(networks, 0)}
        config = runtime_config(networks.config, (Size(SIDE, SIDE),), ())
        self._pipeline = LongLive(config, engines, tokenize)

    def __call__(self, captions: Sequence[str], seed: int) -> Frames:
        """A video [F, 64, 64, 3] of one caption a chunk."""
        sequence = self._pipeline.start()
        made = []
        for index, (text, num_frames) in enumerate(zip(captions, chunk_lengths(len(captions)), strict=True)):
            parameters = ChunkParameters(
                index=index,
                mode=Mode.TEXT,
                prompts=(Prompt(text),),
                reset=index == 0,
                seed=seed,
                num_frames=num_frames,
                height=SIDE,
                width=SIDE,
            )
            made.append(sequence.chunk(Chunk(parameters, {}, _never)))
        return np.concatenate(made)


def write_sheet(path: Path, sampler: Sampler, num_plain: int = 10, num_switched: int = 4) -> None:
    """Write a picture of held-out prompts: a row a video, a column a chunk, each by its last frame."""
    scenes = [[scene] * _SHEET_CHUNKS for scene in prompts(num_plain)]
    scenes += [[old] * 3 + [new] * (_SHEET_CHUNKS - 3) for old, new in switches(num_switched)]
    rows = []
    for number, one in enumerate(scenes):
        captions = [caption(scene) for scene in one]
        last = np.cumsum(chunk_lengths(len(captions))) - 1
        strip = np.concatenate(list(sampler(captions, number)[last]), axis=1)
        strip = strip.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)
        rows.append(_titled(strip, dict.fromkeys(captions)))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(rows)[:, :, ::-1])


def _titled(strip: Frames, lines: Iterable[str]) -> Frames:
    title = np.full((18, strip.shape[1], 3), 255, np.uint8)
    cv2.putText(title, "  >  ".join(lines), (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, strip])


def _never() -> bool:
    return False
