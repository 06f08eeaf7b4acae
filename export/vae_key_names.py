"""The names of the VAE's weights in diffusers, to those of Wan's own checkpoints, which our modules use."""

import re
from collections.abc import Mapping

from torch import Tensor

from export.config import VaeConfig
from export.errors import BadCheckpoint

_PARTS = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
)
_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def wan_vae_names(weights: Mapping[str, Tensor], config: VaeConfig) -> dict[str, Tensor]:
    """The same weights under Wan's own names; those that have them already keep them.

    Raises:
        BadCheckpoint: two weights come to have one name.
    """
    # Only diffusers has a `quant_conv`, and only there is conv1 of a block not the network's own.
    if "quant_conv.weight" not in weights and "post_quant_conv.weight" not in weights:
        return dict(weights)
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        ours = _wan_vae_name(name, config)
        if ours in named:
            raise BadCheckpoint(f"two weights are both {ours}, one of them {name}")
        named[ours] = value
    return named


def _wan_vae_name(name: str, config: VaeConfig) -> str:
    # The blocks first: their conv1 is not the one that conv_in becomes.
    name = re.sub(
        r"(blocks\.\d+|resnets\.\d+)\.(norm1|conv1|norm2|conv2)\.", lambda m: f"{m[1]}.{_RESIDUAL[m[2]]}.", name
    )
    name = name.replace(".conv_shortcut.", ".shortcut.")
    in_stage = config.num_res_blocks + 2
    name = re.sub(
        r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f".upsamples.{int(m[1]) * in_stage + int(m[2])}.", name
    )
    name = re.sub(
        r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".upsamples.{(int(m[1]) + 1) * in_stage - 1}.", name
    )
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return name
