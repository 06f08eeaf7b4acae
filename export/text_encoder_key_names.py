"""The names of the text encoder's weights in transformers, to those of Wan's own checkpoints, which our module uses."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from export.checkpoint import Weights
from export.errors import BadCheckpoint

# What files hold beside the encoder: the decoder of a whole model, and the tokenizer that ComfyUI's carry as a tensor.
_NOT_THE_ENCODERS = ("decoder.", "lm_head.", "spiece_model")
_FROM_TRANSFORMERS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(shared|(encoder\.)?embed_tokens)\.", "token_embedding."),
        (r"^(encoder\.)?final_layer_norm\.", "norm."),
        (r"^(encoder\.)?block\.(\d+)\.layer\.", r"blocks.\2."),
        (r"^(blocks\.\d+)\.0\.SelfAttention\.relative_attention_bias\.", r"\1.pos_embedding.embedding."),
        (r"^(blocks\.\d+)\.0\.SelfAttention\.", r"\1.attn."),
        (r"^(blocks\.\d+)\.0\.layer_norm\.", r"\1.norm1."),
        (r"^(blocks\.\d+)\.1\.layer_norm\.", r"\1.norm2."),
        (r"^(blocks\.\d+)\.1\.DenseReluDense\.wi_0\.", r"\1.ffn.gate.0."),
        (r"^(blocks\.\d+)\.1\.DenseReluDense\.wi_1\.", r"\1.ffn.fc1."),
        (r"^(blocks\.\d+)\.1\.DenseReluDense\.wo\.", r"\1.ffn.fc2."),
    )
)


def wan_text_encoder_names(weights: Mapping[str, Tensor]) -> Weights:
    """The encoder's weights under Wan's own names; those that have them already keep them.

    Raises:
        BadCheckpoint: two weights come to have one name and are not equal, as `shared` and `embed_tokens` are.
    """
    named: Weights = {}
    for name, value in weights.items():
        if name.startswith(_NOT_THE_ENCODERS):
            continue
        ours = _wan_text_encoder_name(name)
        if ours in named and not torch.equal(named[ours], value):
            raise BadCheckpoint(f"two weights are both {ours}, one of them {name}, and differ")
        named[ours] = value
    return named


def _wan_text_encoder_name(name: str) -> str:
    for pattern, replacement in _FROM_TRANSFORMERS:
        name = pattern.sub(replacement, name)
    return name
