"""Networks of full size without their weights, to compile what a checkpoint would become before there is one."""

from pathlib import Path

import numpy as np
import onnx_ir
import torch

from export.checkpoint_folder import Networks
from export.config import CheckpointConfig
from export.modules.text_kv import TextKv
from export.modules.transformer import CausalTransformer
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.onnx_files import to_program
from export.spec import GraphSpec, Precision

_NUM_NOISE = 48 << 20  # numbers: more than the largest weight has
_PAGE = 4096


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
            text_encoder=None,
        )


def write_noise(path: Path) -> None:
    """Write the weights of all weightless graphs of bfloat16: 96 MiB of small normal numbers."""
    numbers = np.random.default_rng(0).normal(scale=0.02, size=_NUM_NOISE).astype(np.float32)
    (numbers.view(np.uint32) >> 16).astype(np.uint16).tofile(path)  # the upper half of a float32 is a bfloat16


def write_weightless_onnx(spec: GraphSpec, path: Path, noise: Path) -> None:
    """Translate a graph of weightless networks to an ONNX file in bfloat16 whose weights are pieces of `noise`.

    Each begins at another place, so that no two of them are equal and could be stored as one. `noise` lies beside the
    ONNX file.
    """
    program = to_program(spec, Precision.BF16)
    weights = {f"named.{name}" for name, _ in spec.module.named_parameters()}
    num_bytes = noise.stat().st_size
    index = 0
    for name, value in program.model.graph.initializers.items():
        tensor = value.const_value
        if name not in weights or tensor is None:
            continue
        pages = (num_bytes - tensor.nbytes) // _PAGE
        value.const_value = onnx_ir.ExternalTensor(
            noise.name,
            index * 37 % pages * _PAGE,
            tensor.nbytes,
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=path.parent,
        )
        index += 1
    onnx_ir.save(program.model, path)
