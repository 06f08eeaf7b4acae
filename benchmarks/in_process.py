"""A pipeline without Triton, in a process of its own: `python -m benchmarks.in_process WAY CHECKPOINT VERSION`.

WAY is `engines`, as the runtime loads them from the model's VERSION folder, or `eager`: the modules that the engines
were made of, run by PyTorch. Each line of the input asks for a generation: height, width, chunks. The answer is a
line of JSON: what a chunk of it took. The first chunk, which encodes the text, is made before and not measured.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.longlive import Took
from export.checkpoint_folder import load_networks
from export.graph_specs import graph_specs
from export.spec import GraphSpec, Precision
from filmstrip.contract import ChunkParameters, Mode, Prompt
from filmstrip.runtime.chunks import Chunk
from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.engines.load import load_engines
from filmstrip.runtime.longlive import LongLive, graph_names
from filmstrip.runtime.pipeline_config import PipelineConfig
from filmstrip.runtime.tokenizer import Tokenizer

_CPU = torch.device("cpu")


class ModuleEngine:
    """An `Engine` that is a graph's own module."""

    device = _CPU

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        dtypes = {port.name: port.dtype for port in spec.inputs} | {port.name: port.dtype for port in spec.outputs}
        self._dtypes = {name: dtype or Precision.FP32.dtype for name, dtype in dtypes.items()}

    def dtype(self, name: str) -> torch.dtype:
        """See `Engine`."""
        return self._dtypes[name]

    def run(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See `Engine`; nothing is checked."""
        made = self._spec.module(**inputs)
        outputs = {port.name: output for port, output in zip(self._spec.outputs, made, strict=True)}
        return outputs | {name: buffer.copy_(outputs[name]) for name, buffer in (into or {}).items()}


class TimedEngine:
    """An engine with a meter.

    Attributes:
        cpu_s: CPU time of its runs in seconds.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device = engine.device
        self.dtype = engine.dtype
        self.cpu_s = 0.0

    def run(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See `Engine`."""
        began = time.process_time()
        try:
            return self._engine.run(inputs, into)
        finally:
            self.cpu_s += time.process_time() - began


class Pipeline:
    """A pipeline of one way or the other, on one thread.

    Args:
        way: `engines` or `eager`.
        checkpoint: the folder that the engines were made of.
        version: the model's folder with the engines.
    """

    def __init__(self, way: str, checkpoint: Path, version: Path) -> None:
        torch.set_num_threads(1)
        config = PipelineConfig.read(version)
        engines = _modules(checkpoint) if way == "eager" else _engines(version, config)
        self._engines = {name: TimedEngine(engine) for name, engine in engines.items()}
        self._pipeline = LongLive(config, self._engines, Tokenizer(version, config.text_len))
        self._config = config

    def generate(self, height: int, width: int, num_chunks: int) -> Took:
        """Make a video of a first chunk and `num_chunks` more, which are what is measured."""
        sequence = self._pipeline.start()
        sequence.chunk(self._chunk(0, height, width))
        engines_before, before = self._engines_s(), time.process_time()
        for index in range(1, num_chunks + 1):
            sequence.chunk(self._chunk(index, height, width))
        took = time.process_time() - before, self._engines_s() - engines_before
        return Took(*(1000 * seconds / num_chunks for seconds in took))

    def _chunk(self, index: int, height: int, width: int) -> Chunk:
        num_frames = self._config.chunk_size if index else self._config.first_chunk_size
        told = ChunkParameters(
            index, num_frames, height, width, mode=Mode.TEXT, reset=index == 0, prompts=(Prompt("a red circle"),)
        )
        return Chunk(told, {}, is_cancelled=lambda: False)

    def _engines_s(self) -> float:
        return sum(engine.cpu_s for engine in self._engines.values())


def _modules(checkpoint: Path) -> Mapping[str, Engine]:
    return {spec.name: ModuleEngine(spec) for spec in graph_specs(load_networks(checkpoint), num_loras=0)}


def _engines(version: Path, config: PipelineConfig) -> Mapping[str, Engine]:
    return load_engines(
        version / "engines", device=_CPU, num_threads=1, graphs=graph_names(config), loras=config.loras
    ).engines


def main() -> None:
    """Serve until the input ends."""
    way, checkpoint, version = sys.argv[1:]
    pipeline = Pipeline(way, Path(checkpoint), Path(version))
    for line in sys.stdin:
        height, width, num_chunks = map(int, line.split())
        print(json.dumps(asdict(pipeline.generate(height, width, num_chunks))), flush=True)


if __name__ == "__main__":
    main()
