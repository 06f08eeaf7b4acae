"""Graphs on an NVIDIA GPU, by TensorRT or TensorRT for RTX, whose Python modules differ in little more than name.

Not run on a GPU yet: the calls follow TensorRT's documentation. Tests cover reading a file that isn't an engine and
choosing a profile.
"""

import importlib
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Signature
from filmstrip.runtime.engines.manifest import (
    BadEngine,
    Builder,
    ForeignEngine,
    Manifest,
    Profile,
    TensorShape,
    how_to_export,
)

_ALIGNMENT = 256  # bytes, of every address that TensorRT is given


class TensorRtEngine:
    """An `Engine` on a GPU.

    Args:
        path: the engine's file.
        manifest: of that file.
        device: the GPU.
        cuda_graphs: replay a run as one launch if its shapes and addresses are those of the run before. TensorRT for
            RTX does so by itself.

    Raises:
        ForeignEngine: there is no GPU.
        BadEngine: TensorRT can't load it.
    """

    def __init__(self, path: Path, manifest: Manifest, device: torch.device, *, cuda_graphs: bool = False) -> None:
        if not torch.cuda.is_available():
            raise ForeignEngine(f"{path} needs an NVIDIA GPU, and PyTorch sees none: check nvidia-smi and the driver")
        trt = importlib.import_module(manifest.builder.module)
        is_rtx = manifest.builder is Builder.TENSORRT_RTX
        # With its index, as the device of a tensor has it.
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._device = device
        with torch.cuda.device(device):
            self._engine = load_plan(trt, path, manifest)
            self._context = _rtx_context(trt, self._engine, cuda_graphs) if is_rtx else _context(self._engine)
        if self._engine.num_optimization_profiles != max(1, len(manifest.profiles)):
            raise BadEngine(f"{path} has other profiles than its manifest. {how_to_export(path, manifest)}")
        self._graph = manifest.graph
        self._signature = Signature(manifest, device, alignment=_ALIGNMENT)
        self._profiles = tuple(manifest.profiles.values())
        self._profile = 0
        self._shapes: dict[str, TensorShape] = {}
        # TensorRT needs an address for each tensor, and an empty one has none.
        self._for_empty = torch.empty(_ALIGNMENT * len(manifest.inputs), dtype=torch.uint8, device=device)
        self._cuda_graph = _CudaGraph(self._context) if cuda_graphs and not is_rtx else None

    @property
    def device(self) -> torch.device:
        """See `Engine`."""
        return self._device

    def dtype(self, name: str) -> torch.dtype:
        """See `Engine`."""
        return self._signature.dtype(name)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Engine`."""
        feeds = self._signature.checked(inputs)
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            # 1. Shapes.
            self._set_shapes({name: tuple(feed.shape) for name, feed in feeds.items()}, stream)
            # 2. Addresses.
            outputs = {name: self._new_output(name) for name in self._signature.outputs}
            addresses = self._addresses(feeds) | {name: output.data_ptr() for name, output in outputs.items()}
            for name, address in addresses.items():
                self._require(self._context.set_tensor_address(name, address), f"the address of {name}")
            # 3. The run. PyTorch reuses memory of this stream only in later work, so nothing must be kept alive.
            if self._cuda_graph is None:
                started = self._context.execute_async_v3(stream.cuda_stream)
            else:
                started = self._cuda_graph.execute((*self._shapes.items(), *addresses.items()), stream)
            self._require(started, "a run")
        return outputs

    def _set_shapes(self, shapes: dict[str, TensorShape], stream: torch.cuda.Stream) -> None:
        if shapes == self._shapes:
            return
        self._shapes = {}
        profile = pick_profile(self._profiles, shapes, self._profile, self._graph)
        if profile != self._profile:
            changed = self._context.set_optimization_profile_async(profile, stream.cuda_stream)
            self._require(changed, f"profile {profile}")
            self._profile = profile
        for name, shape in shapes.items():
            self._require(self._context.set_input_shape(name, shape), f"shape {list(shape)} of {name}")
        unknown = self._context.infer_shapes()
        self._require(not unknown, f"the shapes without {', '.join(unknown)}")
        self._shapes = shapes

    def _new_output(self, name: str) -> Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        return torch.empty(shape, dtype=self.dtype(name), device=self._device)

    def _addresses(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        for_empty = self._for_empty.data_ptr()
        return {
            name: feed.data_ptr() if feed.numel() else for_empty + index * _ALIGNMENT
            for index, (name, feed) in enumerate(feeds.items())
        }

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"{self._graph}: TensorRT refused {what}; its log says why")


def pick_profile(profiles: Sequence[Profile], shapes: Mapping[str, TensorShape], current: int, graph: str) -> int:
    """The profile that shapes fit; the current one if possible, because a change takes time.

    Args:
        profiles: in the engine's order; none for an engine without sizes.
        shapes: of all inputs.
        current: the profile in use.
        graph: for the error.

    Raises:
        ValueError: they fit none.
    """
    order = sorted(range(len(profiles)), key=lambda index: index != current)
    for index in order:
        if all(profiles[index][name].contains(shape) for name, shape in shapes.items()):
            return index
    if not profiles:
        return 0
    requested = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise ValueError(f"{graph} was not built for a size that fits these shapes: {requested}")


def load_plan(trt: Any, path: Path, manifest: Manifest) -> Any:
    """Read an engine from its file.

    Raises:
        BadEngine: TensorRT can't read it.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BadEngine(f"{manifest.builder} cannot load {path}; its log says why. {how_to_export(path, manifest)}")
    return engine


def _context(engine: Any) -> Any:
    return engine.create_execution_context()


def _rtx_context(trt: Any, engine: Any, cuda_graphs: bool) -> Any:
    config = engine.create_runtime_config()
    if cuda_graphs:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


class _CudaGraph:
    """A CUDA graph of the last run, replayed while shapes and addresses stay the same.

    There is only one: running other shapes changes data of the context on the GPU that an older graph would read.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._key: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def execute(self, key: Any, stream: torch.cuda.Stream) -> bool:
        """Run and return whether TensorRT accepted it; `key` is equal for equal shapes and addresses."""
        # The default stream can't be captured, nor can the first run after a change, which does additional work.
        if key != self._key or stream == torch.cuda.default_stream():
            self._key, self._graph = key, None
            return bool(self._context.execute_async_v3(stream.cuda_stream))
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                captured = bool(self._context.execute_async_v3(stream.cuda_stream))
            finally:
                graph.capture_end()
            if not captured:
                return False
            self._graph = graph
        self._graph.replay()
        return True
