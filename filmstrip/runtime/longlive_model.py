"""The Triton model of all pipelines of the LongLive family, which differ only in their folders.

The `model.py` of every exported folder imports `LongLiveModel` from here: keep both names.
"""

import json
import os
from pathlib import Path

import torch

from filmstrip.runtime.longlive import load_longlive
from filmstrip.runtime.sequences import SequenceState
from filmstrip.runtime.triton_model import TritonModel


class LongLiveModel(TritonModel):
    """Generates chunks with the engines of the model's own folder, on the device of its instance."""

    def load(self, args: dict[str, str]) -> None:
        """See `TritonModel`; raises LoadFailed."""
        on_gpu = args["model_instance_kind"] == "GPU"
        device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        # PyTorch itself has little to do here; its threads would take the engines' cores.
        torch.set_num_threads(1)
        num_threads = len(os.sched_getaffinity(0))
        folder = Path(args["model_repository"]) / args["model_version"]
        parameter = json.loads(args["model_config"]).get("parameters", {}).get("cuda_graphs", {})
        cuda_graphs = on_gpu and parameter.get("string_value") == "true"
        self._pipeline = load_longlive(folder, device=device, num_threads=num_threads, cuda_graphs=cuda_graphs)

    def start(self) -> SequenceState:
        """See `TritonModel`."""
        return self._pipeline.start()
