"""The engines of a model's folder, checked and opened together, so that a fault in one fails the load."""

import importlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

from filmstrip.runtime.engines import tensorrt
from filmstrip.runtime.engines.engine import Engine
from filmstrip.runtime.engines.manifest import (
    BadEngine,
    Builder,
    ForeignEngine,
    Machine,
    Manifest,
    check,
    check_together,
    how_to_export,
    read,
)

_CPU = torch.device("cpu")
SUFFIXES = (".onnx", ".engine")
_MODULES = {Builder.ONNX_RUNTIME: "onnxruntime", **tensorrt.MODULES}


def load_engines(
    folder: Path,
    *,
    device: torch.device,
    num_threads: int,
    graphs: Collection[str],
    loras: Sequence[str] = (),
    sizes: Collection[str] = (),
    cuda_graphs: bool = False,
) -> dict[str, Engine]:
    """Check and open every engine of a folder; returns them by the names of their graphs.

    Args:
        folder: such as `model_repository/longlive/1/engines`.
        device: the CPU or a GPU; a text encoder built for the CPU runs there, whatever the other engines run on.
        num_threads: for each engine on the CPU.
        graphs: names of those that must be there.
        loras: names, in the order in which the pipeline passes their scales.
        sizes: that the pipeline offers, as the manifests name them: "320x576" is 320 high.
        cuda_graphs: see `TensorRtEngine`.

    Raises:
        BadEngine: one of them can't be used, or they don't belong together.
    """
    machines = {one: machine_of(one) for one in (device, _CPU)}
    manifests = {path: check(path, machines[_device_for(read(path), device)]) for path in _paths(folder)}
    if not manifests:
        raise BadEngine(f"{folder} holds no engines. {how_to_export(folder / 'any')}")
    check_together(manifests, graphs=graphs, loras=loras, sizes=sizes)
    return {
        one.graph: _open(path, one, _device_for(one, device), num_threads, cuda_graphs)
        for path, one in manifests.items()
    }


def load_engine(path: Path, *, device: torch.device, num_threads: int, cuda_graphs: bool = False) -> Engine:
    """Check and open one engine; arguments and errors as of `load_engines`."""
    return _open(path, check(path, machine_of(device)), device, num_threads, cuda_graphs)


def machine_of(device: torch.device) -> Machine:
    """What engines on a device must be built for.

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
    """The version of a builder's library, None where it can't be imported."""
    try:
        return str(importlib.import_module(_MODULES[builder]).__version__)
    except (ImportError, OSError):  # OSError: a library that it needs is missing
        return None


def _device_for(manifest: Manifest, device: torch.device) -> torch.device:
    on_cpu = manifest.graph == "text_encoder" and manifest.target == "cpu"
    return _CPU if on_cpu else device


def _paths(folder: Path) -> Iterator[Path]:
    """Engines, and those of which only the manifest is left."""
    if not folder.is_dir():
        return
    engines = {path for path in folder.iterdir() if path.suffix in SUFFIXES}
    orphans = {path.with_suffix("") for path in folder.glob("*.json") if path.with_suffix("").suffix in SUFFIXES}
    yield from sorted(engines | orphans)


def _open(path: Path, manifest: Manifest, device: torch.device, num_threads: int, cuda_graphs: bool) -> Engine:
    if manifest.builder is not Builder.ONNX_RUNTIME:
        return tensorrt.TensorRtEngine(path, manifest, device, cuda_graphs=cuda_graphs)
    # Machines with GPUs need not have it.
    from filmstrip.runtime.engines.onnx_runtime import OnnxRuntimeEngine  # noqa: PLC0415

    return OnnxRuntimeEngine(path, manifest, num_threads=num_threads)
