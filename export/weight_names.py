"""Translates the names of weights in released checkpoints to those of Wan's checkpoints, which our modules use."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from export.config import VaeConfig
from export.errors import BadCheckpoint
from export.modules.tae import TaeDecoder, TimeGrow
from export.tensor_files import Weights

# Parts of names that come from what is wrapped round a network, wherever they are in a name.
_WRAPPERS = frozenset(
    {
        *("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module", "model", "base_model"),
        *("diffusion_model", "first_stage_model", "taehv", "pipe", "dit"),
    }
)
_PREFIXES = re.compile(r"^((transformer|vae|unet|net|generator|text_encoders?|umt5xxl|t5)\.)+")
_BUFFERS = re.compile(r"(^|\.)(freqs|freqs_cos|freqs_sin|rope\.\w+|position_ids|num_batches_tracked)$")
"""Names of tensors that code computes and some files nevertheless have."""

# diffusers' names, whole dotted parts. Those that stand alone at the top come first.
_FROM_DIFFUSERS = tuple(
    (re.compile(rf"(?<![^.]){pattern}(?![^.])"), name)
    for pattern, name in (
        (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"condition_embedder\.time_proj", "time_projection.1"),
        (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"^proj_out", "head.head"),
        (r"^scale_shift_table", "head.modulation"),
        ("scale_shift_table", "modulation"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (r"to_(q|k|v)", r"\1"),
        (r"to_out\.0", "o"),
        ("norm2", "norm3"),
        (r"ffn\.net\.0\.proj", "ffn.0"),
        (r"ffn\.net\.2", "ffn.2"),
        ("proj_in", "before_proj"),
        ("proj_out", "after_proj"),
    )
)


def wan_names(weights: Mapping[str, Tensor]) -> Weights:
    """A transformer's weights under Wan's own names.

    Raises:
        BadCheckpoint: two weights end up with the same name.
    """
    named: Weights = {}
    for name, value in weights.items():
        if _BUFFERS.search(name):
            continue
        ours = wan_name(name)
        if ours in named:
            raise BadCheckpoint(f"two weights are both {ours}, one of them {name}")
        named[ours] = value
    return named


def unwrapped(weights: Mapping[str, Tensor]) -> Weights:
    """Weights under the names that they have in their network, without what is wrapped round it.

    Raises:
        BadCheckpoint: two weights end up with the same name.
    """
    named: Weights = {}
    for name, value in weights.items():
        if _BUFFERS.search(name):
            continue
        bare = unwrapped_name(name)
        if bare in named:
            raise BadCheckpoint(f"two weights are both {bare}, one of them {name}")
        named[bare] = value
    return named


def unwrapped_name(name: str) -> str:
    """A weight's name without the parts of wrappers, anywhere in it, and without the prefix of its network."""
    bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    return _PREFIXES.sub("", bare)


def wan_name(name: str) -> str:
    """A transformer weight's name in Wan's checkpoints, from any supported form."""
    name = unwrapped_name(name)
    for pattern, replacement in _FROM_DIFFUSERS:
        name = pattern.sub(replacement, name)
    return name


# The other way round, for a layer's name: numbers are kept, the longest names come first.
_TO_DIFFUSERS = tuple(
    (re.compile(rf"(?<![^.]){pattern}(?![^.])"), name)
    for pattern, name in (
        (r"time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
        (r"time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
        (r"time_projection\.1", "condition_embedder.time_proj"),
        (r"text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
        (r"text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
        (r"^head\.head", "proj_out"),
        (r"^head\.modulation", "scale_shift_table"),
        ("modulation", "scale_shift_table"),
        (r"(?<=_attn\.)([qkv])", r"to_\1"),
        (r"(?<=_attn\.)o", "to_out.0"),
        ("self_attn", "attn1"),
        ("cross_attn", "attn2"),
        ("norm3", "norm2"),
        (r"ffn\.0", "ffn.net.0.proj"),
        (r"ffn\.2", "ffn.net.2"),
        ("before_proj", "proj_in"),
        ("after_proj", "proj_out"),
    )
)


def diffusers_name(name: str) -> str:
    """The name that diffusers has for a transformer's layer or parameter of this name in Wan's checkpoints."""
    for pattern, replacement in _TO_DIFFUSERS:
        name = pattern.sub(replacement, name)
    return name


# Other content of files: the decoder of a whole model, and the tokenizer, a tensor in ComfyUI's files.
_NOT_ENCODER = ("decoder.", "lm_head.", "spiece_model")
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
    """The text encoder's weights under Wan's own names, which they may already have.

    Raises:
        BadCheckpoint: two weights end up with the same name and are not equal (`shared` and `embed_tokens` are).
    """
    named: Weights = {}
    for wrapped, value in weights.items():
        name = unwrapped_name(wrapped)
        if name.startswith(_NOT_ENCODER):
            continue
        ours = _wan_text_encoder_name(name)
        if ours in named and not torch.equal(named[ours], value):
            raise BadCheckpoint(f"two weights are both {ours}, one of them {name}, and differ")
        named[ours] = value
    return named


def _wan_text_encoder_name(name: str) -> str:
    name = re.sub(r"^encoder\.(?=(token_embedding|blocks|norm)\.)", "", name)
    for pattern, replacement in _FROM_TRANSFORMERS:
        name = pattern.sub(replacement, name)
    return name


_VAE_FROM_DIFFUSERS = (
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
    """The VAE's weights under Wan's own names, which they may already have.

    Raises:
        BadCheckpoint: two weights end up with the same name.
    """
    weights = unwrapped(weights)
    # Only diffusers has a `quant_conv`, and only in its names does `conv1` stand for a block's convolution.
    if "quant_conv.weight" not in weights and "post_quant_conv.weight" not in weights:
        return weights
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
    for pattern, replacement in _VAE_FROM_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def tae_weights(weights: Mapping[str, Tensor], decoder: TaeDecoder) -> dict[str, Tensor]:
    """A tiny autoencoder's weights, halved where a stage keeps the frame count but its weights would double it.

    Some of TAEHV's releases are like this. The later of the two frames is used, as in TAEHV's own code.
    """
    weights = unwrapped(weights)
    halved = dict(weights)
    for place, layer in enumerate(decoder.decoder):
        name = f"decoder.{place}.conv.weight"
        if isinstance(layer, TimeGrow) and layer.stride == 1 and name in weights:
            dim = layer.conv.out_channels
            halved[name] = weights[name][-dim:] if len(weights[name]) == 2 * dim else weights[name]
    return halved
