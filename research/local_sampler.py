"""Evaluation cases run by a checkpoint's own modules in the runtime that serves them: no export, no server."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.checkpoint import attach_loras, load_networks
from export.graph_specs import graph_specs
from export.model_folder import runtime_config
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
from filmstrip.runtime.longlive import LongLive
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.text import Tokenizer
from filmstrip.wire import as_vace_frames
from research.augmentations import CONTROLS
from research.evaluation import EvalCase
from research.lora import LORA_NAME
from tests.support.toyworld.videos import CHUNK_FRAMES, SIDE, Frames


class LocalSampler:
    """A checkpoint as a `research.evaluation.RunCase`.

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
        config = runtime_config(networks.config, (Size(SIDE, SIDE),), tuple(loras))
        self._pipeline = LongLive(config, engines, Tokenizer(checkpoint / "text_encoder", config.text_len))

    def __call__(self, case: EvalCase) -> Frames:
        """The video [F, 64, 64, 3]."""
        sequence = self._pipeline.start()
        source = case.source
        if source is not None and case.control is not None:
            source = CONTROLS[case.control].process(source)
        has_frames = any(array is not None for array in (source, case.frames, case.masks))
        made = []
        for index, num_frames in enumerate(case.chunk_lengths):
            parameters = ChunkParameters(
                index=index,
                num_frames=num_frames,
                height=SIDE,
                width=SIDE,
                mode=Mode.TEXT if source is None or case.control else Mode.VIDEO,
                reset=index == 0,
                pad_first_frame=index == 0 and has_frames,
                prompts=(Prompt(case.prompt),),
                seed=case.seed,
                noise_scale=case.noise_scale,
                lora_scales={LORA_NAME: case.lora_scales[index]} if case.lora_scales else {},
                vace_use_input_video=case.control is not None,
                ref_image_shapes=() if case.reference is None else (case.reference.shape,),
            )
            made.append(sequence.chunk(Chunk(parameters, _tensors(case, source, index), _never)))
        return np.concatenate(made)


def _tensors(case: EvalCase, source: Frames | None, index: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one chunk."""
    part = slice(CHUNK_FRAMES * index, CHUNK_FRAMES * (index + 1))
    first = index == 0
    arrays = {
        INPUT_VIDEO: None if source is None else source[part],
        VACE_FRAMES: None if case.frames is None else as_vace_frames(case.frames[part])[None],
        VACE_MASKS: None if case.masks is None else case.masks[None, None, part],
        FIRST_FRAME_IMAGE: case.first_image if first else None,
        LAST_FRAME_IMAGE: case.last_image if first else None,
        VACE_REF_IMAGES: None if case.reference is None else case.reference.reshape(-1),
    }
    return {spec.name: np.ascontiguousarray(array) for spec, array in arrays.items() if array is not None}


def _never() -> bool:
    return False
