"""What all engines have in common: named tensors in, named tensors out, whatever runs the graph."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from filmstrip.runtime.engines.manifest import EngineTensor, Manifest

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "int64", "int32", "bool")
}


class Engine(Protocol):
    """A graph that can be run, by one thread at a time.

    On a GPU the work is queued on torch's current stream, as torch's own is, and nobody waits for it. That stream
    should not be the default one: see `torch.cuda.stream`.
    """

    @property
    def device(self) -> torch.device:
        """Where inputs must be and outputs will be."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output; KeyError for any other name."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph on all of its inputs; returns all of its outputs.

        Contiguous inputs are read where they are; a length may be 0 where the graph allows it.

        Raises:
            ValueError: a tensor is missing, unknown, or of another type, shape or device.
        """
        ...


class Signature:
    """Checks the tensors of a call against an engine's manifest.

    Args:
        manifest: of the engine.
        device: where all tensors must be.
        alignment: bytes that the addresses must be multiples of.
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
        """The inputs, in the engine's order, copied where they aren't contiguous or aligned.

        Raises:
            ValueError: one is missing, unknown, or of another type, shape or device.
        """
        if inputs.keys() != self.inputs.keys():
            strange = ", ".join(sorted(inputs.keys() ^ self.inputs.keys()))
            raise ValueError(f"{self._graph} takes {', '.join(self.inputs)}; missing or unknown: {strange}")
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
    """A tensor in the host's memory on the device, without waiting for the work that the device has to do before.

    The very same tensor if the device is the host.
    """
    if torch.device(device).type == "cuda":
        # From pageable memory the copy would wait for all that is queued. PyTorch keeps pinned memory until it is read.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
