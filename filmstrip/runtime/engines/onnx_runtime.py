"""Graphs on the CPU, by ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from filmstrip.runtime.engines.engine import Signature
from filmstrip.runtime.engines.manifest import BadEngine, Manifest, how_to_export

_CPU = torch.device("cpu")


class OnnxRuntimeEngine:
    """An `Engine` on the CPU: with the same number of threads, the same inputs give the same bytes.

    Args:
        path: the `.onnx` file; its external data is next to it.
        manifest: of that file.
        num_threads: of one run.

    Raises:
        BadEngine: ONNX Runtime can't load it.
    """

    def __init__(self, path: Path, manifest: Manifest, *, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Threads that spin while they wait would occupy the cores of other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.use_deterministic_compute = True
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base class of their own
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

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Engine`."""
        # Nothing is copied, in or out: an I/O binding would save nothing and costs more for tiny graphs.
        feeds = {name: feed.numpy() for name, feed in self._signature.checked(inputs).items()}
        arrays = self._session.run(self._outputs, feeds)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}
