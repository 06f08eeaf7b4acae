"""Networks of full size without their weights, to compile what a checkpoint would become before there is one."""

from pathlib import Path

import numpy as np
import onnx_ir
import torch
from torch import Tensor, nn

from export.checkpoint_folder import Networks
from export.config import CheckpointConfig
from export.modules.text_kv import TextKv
from export.modules.transformer import CausalTransformer
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder

NOISE_FILE = "noise.bin"
_NUM_NOISE = 48 << 20
_PAGE = 4096
_SMALL_BYTES = 4096


def weightless_networks(config: CheckpointConfig) -> Networks:
    """The networks of a configuration, their weights on the meta device; without a text encoder."""
    with torch.device("meta"):
        return Networks(
            config,
            CausalTransformer(config).eval(),
            TextKv(config).eval(),
            VaceBranch(config).eval() if config.vace_layers else None,
            TextKv(config, vace=True).eval() if config.vace_layers else None,
            VaeEncoder(config.vae).eval(),
            VaeDecoder(config.vae).eval(),
            None,
        )
