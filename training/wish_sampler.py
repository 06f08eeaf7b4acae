"""Wishes fulfilled by a checkpoint's own modules in the runtime that serves them: no export, no server."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.checkpoint import load_networks
from export.graph_specs import graph_specs
from export.longlive import attach_loras
from export.model_folder import pipeline_config
from export.spec import Size
from export.verify import ModuleEngine
from filmstrip.contract import (
    FIRST_FRAME_IMAGE,
    INPUT_VIDEO,
    LAST_FRAME_IMAGE,
    VACE_FRAMES,
    VACE_MASKS,
    VACE_REF_IMAGES,
    ChunkParameters,
    Mode,
    Prompt,
)
from filmstrip.packing import as_vace_frames
from filmstrip.runtime.longlive import LongLive
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.text import Tokenizer
from training.looks import CONTROLS
from training.lora import LORA_NAME
from training.videos import CHUNK_FRAMES, SIDE, Frames
from training.wishes import Wish


class WishSampler:
    """A checkpoint as a `training.wishes.Fulfil`.

    Args:
        checkpoint: its folder; the LoRAs are those in `loras` there.

    Raises:
        BadConfig: its config.json is missing or wrong.
        BadCheckpoint: so are weights.
    """

    def __init__(self, checkpoint: Path) -> None:
        networks = load_networks(checkpoint)
        loras = {path.stem: path for path in sorted((checkpoint / "loras").glob("*.safetensors"))}
        attach_loras(networks, loras)
        engines = {spec.name: ModuleEngine(spec) for spec in graph_specs(networks, len(loras))}
        config = pipeline_config(networks.config, (Size(SIDE, SIDE),), tuple(loras))
        self._pipeline = LongLive(config, engines, Tokenizer(checkpoint / "text_encoder", config.text_len))

    def __call__(self, wish: Wish) -> Frames:
        """The video [F, 64, 64, 3]."""
        sequence = self._pipeline.start()
        source = wish.source
        if source is not None and wish.control is not None:
            source = CONTROLS[wish.control].process(source)
        made = []
        for index, num_frames in enumerate(wish.chunk_lengths):
            told = ChunkParameters(
                index=index,
                num_frames=num_frames,
                height=SIDE,
                width=SIDE,
                mode=Mode.TEXT if source is None or wish.control else Mode.VIDEO,
                reset=index == 0,
                prompts=(Prompt(wish.prompt),),
                seed=wish.seed,
                noise_scale=wish.noise_scale,
                lora_scales={LORA_NAME: wish.lora_scales[index]} if wish.lora_scales else {},
                vace_use_input_video=wish.control is not None,
                ref_image_shapes=() if wish.reference is None else (wish.reference.shape,),
            )
            made.append(sequence.chunk(Chunk(told, _tensors(wish, source, index), _never)))
        return np.concatenate(made)


def _tensors(wish: Wish, source: Frames | None, index: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one chunk."""
    part = slice(CHUNK_FRAMES * index, CHUNK_FRAMES * (index + 1))
    first = index == 0
    arrays = {
        INPUT_VIDEO: None if source is None else source[part],
        VACE_FRAMES: None if wish.frames is None else as_vace_frames(wish.frames[part])[None],
        VACE_MASKS: None if wish.masks is None else wish.masks[None, None, part],
        FIRST_FRAME_IMAGE: wish.first_image if first else None,
        LAST_FRAME_IMAGE: wish.last_image if first else None,
        VACE_REF_IMAGES: None if wish.reference is None else wish.reference.reshape(-1),
    }
    return {spec.name: np.ascontiguousarray(array) for spec, array in arrays.items() if array is not None}


def _never() -> bool:
    return False
