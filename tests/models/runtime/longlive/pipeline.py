"""A tiny pipeline whose engines are the export's own graphs, run by PyTorch; and chunks for it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.checkpoint import Networks, load_networks
from export.config import CheckpointConfig
from export.graph_specs import graph_specs
from export.lora import Adapter, LowRank, attach
from export.model_folder import runtime_config
from export.spec import Axis, GraphSpec, Precision, Size
from filmstrip.contract import ChunkParameters, Mode, Prompt
from filmstrip.runtime.longlive import LongLive, LongLiveSequence
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.text import Tokenizer
from tests.models.export.checkpoints import write_checkpoint
from tests.models.export.networks import normal

HEIGHT, WIDTH = 32, 48  # pixels: 2 x 3 tokens a latent frame
SIZES = (Size(HEIGHT, WIDTH), Size(16, 16))
CPU = torch.device("cpu")
LORAS = ("ink", "oil")
_LORA_LAYERS = {
    "ink": ("blocks.1.ffn.2", "vace_blocks.1.ffn.0"),
    "oil": ("blocks.0.cross_attn.k", "vace_blocks.0.cross_attn.v"),
}


class ModuleEngine:
    """An `Engine` that runs a graph's own module, and holds each call against what the graph declares.

    Attributes:
        calls: the inputs of each run.
        outputs: likewise.
    """

    device = CPU

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.calls: list[dict[str, Tensor]] = []
        self.outputs: list[dict[str, Tensor]] = []
        self._dtypes = {one.name: one.dtype or Precision.FP32.dtype for one in (*spec.inputs, *spec.outputs)}

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check(inputs)
        self.calls.append(dict(inputs))
        made = self.spec.module(**{port.name: inputs[port.name] for port in self.spec.inputs})
        outputs = {port.name: output for port, output in zip(self.spec.outputs, made, strict=True)}
        self.outputs.append(dict(outputs))
        return outputs

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        """All inputs there, of their types, and of shapes that an engine of one size was made for."""
        assert inputs.keys() == {port.name for port in self.spec.inputs}
        lengths: dict[str, set[float]] = {}
        for port in self.spec.inputs:
            tensor = inputs[port.name]
            assert tensor.dtype is self.dtype(port.name), port.name
            for wanted, length in zip(port.shape, tensor.shape, strict=True):
                if isinstance(wanted, Axis):
                    lengths.setdefault(wanted.name, set()).add(length / wanted.factor)
                else:
                    assert wanted == length, f"{port.name}: {tuple(tensor.shape)}"
        assert all(len(found) == 1 for found in lengths.values()), lengths
        found = {name: values.pop() for name, values in lengths.items()}
        for name, reach in self.spec.axes.items():
            tokens = found["rows"] * found["cols"] if reach.per_frame else 1
            assert reach.min * tokens <= found[name] <= reach.max * tokens, (self.spec.name, name, found)


class Tiny:
    """A tiny checkpoint, its networks, and pipelines made of them.

    Args:
        folder: empty; the checkpoint goes there.
        loras: whether two LoRAs stand beside the weights.
        changed: keys of its configuration.
    """

    def __init__(self, folder: Path, *, loras: bool = False, **changed: Any) -> None:
        self.config: CheckpointConfig = write_checkpoint(folder, **changed)
        self.networks: Networks = load_networks(folder)
        self.loras = LORAS if loras else ()
        if loras:
            parts = self._parts()
            attach([_adapter(name, seed, parts) for seed, name in enumerate(LORAS)], *parts)
        self.specs = graph_specs(self.networks, len(self.loras))
        self.tokenize = Tokenizer(folder / "text_encoder", self.config.text_len)

    def pipeline(self) -> LongLive:
        """A pipeline with engines of its own."""
        engines = {spec.name: ModuleEngine(spec) for spec in self.specs}
        return LongLive(runtime_config(self.config, SIZES, self.loras), engines, self.tokenize)

    def frames(self, chunks: list[Chunk]) -> list[np.ndarray]:
        """What a new pipeline makes of chunks in one sequence."""
        return run(self.pipeline().start(), chunks)

    def _parts(self) -> list[torch.nn.Module]:
        networks = self.networks
        parts = (networks.transformer, networks.text_kv, networks.vace, networks.vace_text_kv)
        return [part for part in parts if part is not None]


def _adapter(name: str, seed: int, modules: list[torch.nn.Module]) -> Adapter:
    """Of those of its layers that the modules have."""
    weights = {key: value for module in modules for key, value in module.state_dict().items()}
    layers = [layer for layer in _LORA_LAYERS[name] if f"{layer}.weight" in weights]
    parts = {}
    for layer in layers:
        width, out = weights[f"{layer}.weight"].shape
        parts[layer] = LowRank(normal(2, width, seed=seed), normal(out, 2, seed=seed + 10), 0.5)
    return Adapter(name, parts)


def run(sequence: LongLiveSequence, chunks: list[Chunk]) -> list[np.ndarray]:
    """The frames of chunks, each of the length asked for."""
    made = []
    for chunk in chunks:
        frames = sequence.chunk(chunk)
        told = chunk.parameters
        assert (frames.shape, frames.dtype) == ((told.num_frames, told.height, told.width, 3), np.uint8)
        made.append(frames)
    return made


def engine_calls(pipeline: LongLive, graph: str) -> list[dict[str, Tensor]]:
    """What an engine of a pipeline was given, run by run."""
    engine = pipeline.engines[graph]
    assert isinstance(engine, ModuleEngine)
    return engine.calls


def all_outputs(pipeline: LongLive, graph: str) -> list[dict[str, Tensor]]:
    """What it gave, run by run."""
    engine = pipeline.engines[graph]
    assert isinstance(engine, ModuleEngine)
    return engine.outputs


def never() -> bool:
    return False


def chunk(
    index: int, tensors: dict[str, np.ndarray] | None = None, *, cancelled: Callable[[], bool] = never, **told: Any
) -> Chunk:
    """A chunk as the frontend tells it: the first one starts afresh and is shorter in text mode without arrays."""
    tensors = tensors or {}
    told = {"mode": Mode.TEXT, "prompts": (Prompt("a red circle"),), "reset": index == 0, **told}
    follows_video_rule = told["mode"] is Mode.VIDEO or bool(tensors.keys() & {"vace_frames", "vace_masks"})
    follows_video_rule |= told.get("vace_use_input_video", False)
    count = 9 if told["reset"] and not follows_video_rule else 12
    pads = told["reset"] and follows_video_rule
    told = {"num_frames": count, "height": HEIGHT, "width": WIDTH, "pad_first_frame": pads, **told}
    return Chunk(ChunkParameters(index=index, **told), tensors, cancelled)


def again(one: Chunk, **told: Any) -> Chunk:
    """The same chunk, told otherwise."""
    return Chunk(replace(one.parameters, **told), one.tensors, never)


def video(num_frames: int, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Random frames, soft enough to resemble pictures."""
    coarse = np.random.default_rng(seed).integers(0, 256, (num_frames, 4, 6, 3), np.uint8)
    factor = (-(-size[0] // 4), -(-size[1] // 6))
    return np.ascontiguousarray(coarse.repeat(factor[0], 1).repeat(factor[1], 2)[:, : size[0], : size[1]])


def still(num_frames: int) -> np.ndarray:
    return np.repeat(video(1), num_frames, 0)


def video_chunk(index: int, frames: np.ndarray, **told: Any) -> Chunk:
    """A chunk in video mode, of its 12 frames of a longer video."""
    part = frames[12 * index : 12 * (index + 1)]
    return chunk(index, {"input_video": part}, mode=Mode.VIDEO, **told)
