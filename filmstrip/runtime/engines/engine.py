"""What every engine has in common: named tensors in, named tensors out, whatever runs the graph."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from filmstrip.runtime.engines.manifest import EngineTensor, Manifest, Shape


def to_device(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host on the device; the very same one where it lies there already in that type.

    Args:
        tensor: on the host.
        device: where it is wanted.
        dtype: as what, None for its own type.
    """
    if torch.device(device).type == "cuda":
        # From pageable memory the copy would wait for all that is queued. PyTorch keeps pinned memory until it is read.
        return tensor.pin_memory().to(device, non_blocking=True).to(dtype or tensor.dtype)
    return tensor.to(device, dtype)


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
        """Where inputs must lie and outputs will."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output; KeyError for any other name."""
        ...

    def run(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: all of them. Contiguous ones are read where they lie; a length may be 0 where the graph allows it.
            into: where outputs are to be written, contiguous, of the very shape that they will have. They must not
                share memory with inputs or each other. Other outputs get memory of their own.

        Returns:
            All outputs; those named in `into` are the very tensors given.

        Raises:
            ValueError: a tensor is missing, unknown, of another type, shape or device, or shares memory.
        """
        ...


class Signature:
    """Holds the tensors of a call against what a manifest says of them.

    Args:
        manifest: of the engine.
        device: where all tensors must lie.
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
        """See `Engine`."""
        return self._dtypes[name]

    def feeds(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, in the engine's order, copied where they aren't contiguous or aligned.

        Raises:
            ValueError: one is missing, unknown, or of another type, shape or device.
        """
        if inputs.keys() != self.inputs.keys():
            strange = ", ".join(sorted(inputs.keys() ^ self.inputs.keys()))
            raise ValueError(f"{self._graph} takes {', '.join(self.inputs)}; missing or unknown: {strange}")
        for name, wanted in self.inputs.items():
            self._check(wanted, inputs[name])
        return {name: self._in_place(inputs[name]) for name in self.inputs}

    def check_buffers(self, feeds: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        """Check where outputs are to be written.

        Raises:
            ValueError: one is unknown, of another type, shape or device, not contiguous or aligned, or shares memory.
        """
        for name, buffer in into.items():
            if name not in self.outputs:
                raise ValueError(f"{self._graph} gives {', '.join(self.outputs)}, not {name}")
            self._check(self.outputs[name], buffer)
            if self._in_place(buffer) is not buffer:
                raise ValueError(f"{self._graph}: the memory for {name} is not contiguous and aligned")
        shared = _sharing(feeds, into)
        if shared is not None:
            raise ValueError(f"{self._graph}: {shared} would be overwritten by an output")

    def check_shape(self, name: str, buffer: Tensor, made: Shape) -> None:
        """Check that a buffer has the shape that its output will have; raises ValueError."""
        if tuple(buffer.shape) != made:
            raise ValueError(f"{self._graph}: {name} will be {list(made)}, its memory is {list(buffer.shape)}")

    def _check(self, wanted: EngineTensor, tensor: Tensor) -> None:
        if tensor.dtype is not self._dtypes[wanted.name]:
            raise ValueError(f"{self._graph}: {wanted.name} is {tensor.dtype}, wanted torch.{wanted.dtype}")
        if not wanted.accepts(tuple(tensor.shape)):
            raise ValueError(f"{self._graph}: {wanted.name} has shape {list(tensor.shape)}, wanted {list(wanted.dims)}")
        if tensor.device != self._device:
            raise ValueError(f"{self._graph}: {wanted.name} is on {tensor.device}, wanted {self._device}")

    def _in_place(self, tensor: Tensor) -> Tensor:
        """The tensor itself where an engine can use its memory, else a copy."""
        if not tensor.is_contiguous():
            return tensor.contiguous()
        return tensor if tensor.data_ptr() % self._alignment == 0 else tensor.clone()


def _sharing(feeds: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor in whose memory an output would be written."""
    end, last, last_written = 0, "", False
    for start, stop, name, written in sorted(_spans(feeds, into)):
        if start < end and (written or last_written):
            return last if written else name
        if stop > end:
            end, last, last_written = stop, name, written
    return None


def _spans(feeds: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> Iterator[tuple[int, int, str, bool]]:
    for tensors, written in ((feeds, False), (into, True)):
        for name, tensor in tensors.items():
            if tensor.nbytes:
                yield tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name, written
