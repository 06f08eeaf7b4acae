"""Graphs on the CPU, by ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Signature
from filmstrip.runtime.engines.manifest import BadEngine, Manifest, how_to_export

_CPU = torch.device("cpu")
_NUMBERS = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16, torch.int64: 7, torch.int32: 6, torch.bool: 9}
"""ONNX's numbers of types."""


class OnnxRuntimeEngine:
    """An `Engine` on the CPU: the same inputs give the same bytes, as long as the number of threads is the same.

    Args:
        path: the `.onnx` file; its external data lies beside it.
        manifest: of that file.
        num_threads: that work on one run.

    Raises:
        BadEngine: ONNX Runtime can't load it.
    """

    def __init__(self, path: Path, manifest: Manifest, *, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Threads that wait for work by spinning would take the cores of other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.use_deterministic_compute = True
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class of their own in common
            raise BadEngine(f"ONNX Runtime cannot load {path}: {error}. {how_to_export(path, manifest)}") from error
        self._signature = Signature(manifest, _CPU)
        self._outputs = [one.name for one in manifest.outputs]

    @property
    def device(self) -> torch.device:
        """See `Engine`."""
        return _CPU

    def dtype(self, name: str) -> torch.dtype:
        """See `Engine`."""
        return self._signature.dtype(name)

    def run(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See `Engine`."""
        feeds = self._signature.feeds(inputs)
        if into:
            return self._run_into(feeds, into)
        # Neither way are numbers copied; this one costs half as much where a graph is tiny.
        arrays = self._session.run(self._outputs, {name: feed.numpy() for name, feed in feeds.items()})
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}

    def _run_into(self, feeds: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._signature.check_buffers(feeds, into)
        binding = self._session.io_binding()
        for name, feed in feeds.items():
            binding.bind_input(name, "cpu", 0, _NUMBERS[feed.dtype], tuple(feed.shape), feed.data_ptr())
        for name in self._outputs:
            if name in into:
                buffer = into[name]
                binding.bind_output(name, "cpu", 0, _NUMBERS[buffer.dtype], tuple(buffer.shape), buffer.data_ptr())
            else:
                binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        made = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: into[name] if name in into else torch.from_numpy(value.numpy()) for name, value in made}
