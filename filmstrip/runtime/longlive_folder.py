"""A pipeline of the LongLive family, read from its model's folder."""

from pathlib import Path

import torch

from filmstrip.errors import LoadFailed
from filmstrip.runtime.engines.errors import BadEngine
from filmstrip.runtime.engines.load import load_engines
from filmstrip.runtime.longlive import LongLive, graph_names
from filmstrip.runtime.pipeline_config import FILE_NAME, PipelineConfig
from filmstrip.runtime.tokenizer import Tokenizer


def load_longlive(folder: Path, *, device: torch.device, num_threads: int, cuda_graphs: bool = False) -> LongLive:
    """Read the configuration, the tokenizer and the engines.

    Args:
        folder: of a version of the model, such as `model_repository/longlive/1`.
        device: the CPU or a GPU.
        num_threads: for each engine on the CPU.
        cuda_graphs: see `filmstrip.runtime.engines.tensorrt.TensorRtEngine`.

    Raises:
        LoadFailed: one of them is missing or can't be used. For the operator: the message may name files.
    """
    try:
        config = PipelineConfig.read(folder)
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{folder / FILE_NAME} can't be read: {error}") from error
    try:
        loaded = load_engines(
            folder / "engines",
            device=device,
            num_threads=num_threads,
            graphs=graph_names(config),
            loras=config.loras,
            sizes=[f"{height}x{width}" for height, width in config.sizes],
            cuda_graphs=cuda_graphs,
        )
    except BadEngine as error:
        raise LoadFailed(str(error)) from error
    return LongLive(config, loaded.engines, Tokenizer(folder, config.text_len))
