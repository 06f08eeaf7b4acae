"""A pipeline without Triton, alone: `python -m benchmarks.in_process WAY CHECKPOINT VERSION [LORA=FILE...]`.

WAY is `engines`, loaded by the runtime from the model's VERSION folder, or `eager`: PyTorch runs the modules that the
engines were exported from, with the LoRAs added to their weights at run time. Each line of the input requests a
generation: height, width, number of chunks. The answer is a line of JSON with the time of each chunk. The first chunk,
which encodes the text, runs before the others and is not measured.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.longlive import PROMPT, Took
from export.checkpoint import attach_loras, load_networks
from export.graph_specs import graph_specs
from export.verify import ModuleEngine
from filmstrip.contract import ChunkParameters, Mode, Prompt
from filmstrip.runtime.engines.engine import Engine, load_engines
from filmstrip.runtime.longlive import LongLive, graph_names
from filmstrip.runtime.longlive_config import LongLiveConfig
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.text import Tokenizer

_CPU = torch.device("cpu")


class TimedEngine:
    """An engine with a meter.

    Attributes:
        cpu_s: CPU time of its runs in seconds.
        wall_s: all time of its runs in seconds.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device = engine.device
        self.dtype = engine.dtype
        self.cpu_s = self.wall_s = 0.0

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Engine`."""
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            return self._engine.run(inputs)
        finally:
            self.cpu_s += time.process_time() - cpu_began
            self.wall_s += time.perf_counter() - began


class Pipeline:
    """A pipeline of one way or the other, on one thread.

    Args:
        way: `engines` or `eager`.
        checkpoint: the folder that the engines were made of.
        version: the model's folder with the engines.
        loras: the files that these were made with, by name.
    """

    def __init__(self, way: str, checkpoint: Path, version: Path, loras: Mapping[str, Path]) -> None:
        torch.set_num_threads(1)
        config = LongLiveConfig.read(version)
        engines = _modules(checkpoint, loras) if way == "eager" else _engines(version, config)
        self._engines = {name: TimedEngine(engine) for name, engine in engines.items()}
        self._pipeline = LongLive(config, self._engines, Tokenizer(version, config.text_len))
        self._config = config

    def generate(self, height: int, width: int, num_chunks: int) -> Took:
        """Make a video of a first chunk and `num_chunks` more, which are what is measured."""
        sequence = self._pipeline.start()
        sequence.chunk(self._chunk(0, height, width))
        before = self._clocks()
        for index in range(1, num_chunks + 1):
            sequence.chunk(self._chunk(index, height, width))
        took = zip(before, self._clocks(), strict=True)
        return Took(*(1000 * (after - began) / num_chunks for began, after in took))

    def _chunk(self, index: int, height: int, width: int) -> Chunk:
        num_frames = self._config.chunk_size if index else self._config.first_chunk_size
        params = ChunkParameters(
            index, num_frames, height, width, mode=Mode.TEXT, reset=index == 0, prompts=(Prompt(PROMPT),)
        )
        return Chunk(params, {}, is_cancelled=lambda: False)

    def _clocks(self) -> tuple[float, float, float]:
        """Seconds so far, in the order of `Took`."""
        engines = self._engines.values()
        return time.process_time(), sum(one.cpu_s for one in engines), sum(one.wall_s for one in engines)


def _modules(checkpoint: Path, loras: Mapping[str, Path]) -> Mapping[str, Engine]:
    networks = load_networks(checkpoint)
    attach_loras(networks, loras)
    return {spec.name: ModuleEngine(spec) for spec in graph_specs(networks, len(loras))}


def _engines(version: Path, config: LongLiveConfig) -> Mapping[str, Engine]:
    return load_engines(version / "engines", device=_CPU, num_threads=1, graphs=graph_names(config), loras=config.loras)


def main() -> None:
    """Serve until the input ends."""
    way, checkpoint, version, *lora_args = sys.argv[1:]
    loras = {name: Path(file) for name, _, file in (word.partition("=") for word in lora_args)}
    pipeline = Pipeline(way, Path(checkpoint), Path(version), loras)
    for line in sys.stdin:
        height, width, num_chunks = map(int, line.split())
        print(json.dumps(asdict(pipeline.generate(height, width, num_chunks))), flush=True)


if __name__ == "__main__":
    main()
