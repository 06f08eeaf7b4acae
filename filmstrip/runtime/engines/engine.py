"""Engines: graphs that can be run, whatever runs them, and how those of a model's folder are loaded."""

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from filmstrip.runtime.engines.manifest import (
    BadEngine,
    Builder,
    EngineTensor,
    ForeignEngine,
    Machine,
    Manifest,
    check_engine,
    check_together,
    how_to_export,
    read_manifest,
)

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "int64", "int32", "bool")
}


class Engine(Protocol):
    """A graph that can be run, by one thread at a time.

    On a GPU the work is queued on torch's current stream, like torch's own, and `run` does not wait for it. That stream
    should not be the default one: see `torch.cuda.stream`.
    """

    @property
    def device(self) -> torch.device:
        """The device of inputs and outputs."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output; KeyError for any other name."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph: all inputs by name to all outputs by name.

        Contiguous inputs are not copied; a length may be 0 where the graph allows it.

        Raises:
            ValueError: a tensor is missing, unknown, or of another type, shape or device.
        """
        ...


class Signature:
    """Checks the tensors of a call against an engine's manifest.

    Args:
        manifest: of the engine.
        device: where all tensors must be.
        alignment: of the addresses, in bytes.
    """

    def __init__(self, manifest: Manifest, device: torch.device, *, alignment: int = 1) -> None:
        self.inputs = {one.name: one for one in manifest.inputs}
        self.outputs = {one.name: one for one in manifest.outputs}
        self._graph = manifest.graph
        self._device = device
        self._alignment = alignment
        self._dtypes = {name: DTYPES[one.dtype] for name, one in (self.inputs | self.outputs).items()}

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output; KeyError for any other name."""
        return self._dtypes[name]

    def checked(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, in the engine's order; copies of those that aren't contiguous or aligned.

        Raises:
            ValueError: one is missing, unknown, or of another type, shape or device.
        """
        if inputs.keys() != self.inputs.keys():
            wrong = ", ".join(sorted(inputs.keys() ^ self.inputs.keys()))
            raise ValueError(f"{self._graph} takes {', '.join(self.inputs)}; missing or unknown: {wrong}")
        for name, spec in self.inputs.items():
            self._check(spec, inputs[name])
        return {name: self._usable(inputs[name]) for name in self.inputs}

    def _check(self, spec: EngineTensor, tensor: Tensor) -> None:
        place = f"{self._graph}: {spec.name}"
        if tensor.dtype is not self._dtypes[spec.name]:
            raise ValueError(f"{place} is {tensor.dtype}, must be torch.{spec.dtype}")
        if not spec.accepts(tuple(tensor.shape)):
            raise ValueError(f"{place} has shape {list(tensor.shape)}, must be {list(spec.dims)}")
        if tensor.device != self._device:
            raise ValueError(f"{place} is on {tensor.device}, must be on {self._device}")

    def _usable(self, tensor: Tensor) -> Tensor:
        """The tensor itself if an engine can read its memory, else a copy."""
        if not tensor.is_contiguous():
            return tensor.contiguous()
        return tensor if tensor.data_ptr() % self._alignment == 0 else tensor.clone()


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor from the host's memory to the device, without waiting for work that is queued there.

    If the device is the CPU, it is the same tensor.
    """
    if torch.device(device).type == "cuda":
        # A copy from pageable memory would wait for the queue. PyTorch keeps pinned memory until it has been read.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# -- Loading ------------------------------------------------------------------------------------------------

_CPU = torch.device("cpu")
_SUFFIXES = (".onnx", ".engine")


def load_engines(
    folder: Path,
    *,
    device: torch.device,
    num_threads: int,
    graphs: Collection[str],
    loras: Sequence[str] = (),
    sizes: Collection[tuple[int, int]] = (),
    cuda_graphs: bool = False,
) -> dict[str, Engine]:
    """Check and open all engines of a folder, by the names of their graphs; if one is unusable, none is opened.

    Args:
        folder: such as `model_repository/longlive/1/engines`.
        device: the CPU or a GPU; a text encoder built for the CPU runs there, whatever the other engines run on.
        num_threads: for each engine on the CPU.
        graphs: names of the graphs that must be there.
        loras: names, in the order in which the pipeline passes their scales.
        sizes: (height, width) in pixels that the pipeline offers.
        cuda_graphs: see `TensorRtEngine`.

    Raises:
        BadEngine: one of them can't be used, or they don't belong together.
    """
    machines = {one: machine_of(one) for one in (device, _CPU)}
    manifests = {
        path: check_engine(path, machines[_device_for(read_manifest(path), device)]) for path in _paths(folder)
    }
    if not manifests:
        raise BadEngine(f"{folder} holds no engines. {how_to_export(folder / 'any')}")
    check_together(manifests, graphs=graphs, loras=loras, sizes=sizes)
    return {
        one.graph: _open(path, one, _device_for(one, device), num_threads, cuda_graphs)
        for path, one in manifests.items()
    }


def load_engine(path: Path, *, device: torch.device, num_threads: int, cuda_graphs: bool = False) -> Engine:
    """Check and open one engine; arguments and errors as of `load_engines`."""
    return _open(path, check_engine(path, machine_of(device)), device, num_threads, cuda_graphs)


def machine_of(device: torch.device) -> Machine:
    """The machine that engines on a device must be built for.

    Raises:
        ForeignEngine: the device is a GPU, and there is none.
    """
    if device.type != "cuda":
        return Machine("cpu", installed_version)
    if not torch.cuda.is_available():
        raise ForeignEngine("the model needs an NVIDIA GPU, and PyTorch sees none: check nvidia-smi and the driver")
    major, minor = torch.cuda.get_device_capability(device)
    return Machine(f"sm{major}{minor}", installed_version)


def installed_version(builder: Builder) -> str | None:
    """The version of a builder's library, None if it can't be imported."""
    try:
        return str(importlib.import_module(builder.module).__version__)
    except (ImportError, OSError):  # OSError: a library that it needs is missing
        return None


def _device_for(manifest: Manifest, device: torch.device) -> torch.device:
    on_cpu = manifest.graph == "text_encoder" and manifest.target == "cpu"
    return _CPU if on_cpu else device


def _paths(folder: Path) -> Iterator[Path]:
    """All engines, including those of which only the manifest is left."""
    if not folder.is_dir():
        return
    engines = {path for path in folder.iterdir() if path.suffix in _SUFFIXES}
    orphans = {path.with_suffix("") for path in folder.glob("*.json") if path.with_suffix("").suffix in _SUFFIXES}
    yield from sorted(engines | orphans)


def _open(path: Path, manifest: Manifest, device: torch.device, num_threads: int, cuda_graphs: bool) -> Engine:
    # Imported here: a machine needs only the library of its own engines, and both modules import this one.
    if manifest.builder is Builder.ONNX_RUNTIME:
        from filmstrip.runtime.engines.onnx_runtime import OnnxRuntimeEngine  # noqa: PLC0415

        return OnnxRuntimeEngine(path, manifest, num_threads=num_threads)
    from filmstrip.runtime.engines.tensorrt import TensorRtEngine  # noqa: PLC0415

    return TensorRtEngine(path, manifest, device, cuda_graphs=cuda_graphs)
