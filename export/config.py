"""What a checkpoint is: read from its `config.json`, checked, and the only place where sizes come from.

The keys are those that Wan's own configurations use, and ours for what they don't say. docs/export.md lists them.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from export.errors import BadConfig

# Per-channel mean and standard deviation of the latents of Wan2.1's VAE.
WAN_LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

ROPE_POSITIONS = ("absolute", "window")
VAE_TYPES = ("wan", "lightvae", "tae", "lighttae")
ACTIVATIONS = ("relu", "silu")
# Wan's configurations carry these; only one value of each is a network that we have.
FIXED = {"model_type": ("t2v", "vace"), "qk_norm": (True,), "cross_attn_norm": (True,)}
IGNORED = {"_class_name", "_diffusers_version", "window_size"}
# The same of the text encoder's, which transformers writes: only this network, and keys that do not change its numbers.
TEXT_ENCODER_FIXED = {
    "model_type": ("umt5",),
    "feed_forward_proj": ("gated-gelu",),
    "dense_act_fn": ("gelu_new",),
    "is_gated_act": (True,),
    "is_decoder": (False,),
}
TEXT_ENCODER_IGNORED = {
    *("_name_or_path", "architectures", "transformers_version", "tokenizer_class", "torch_dtype", "dtype"),
    *("num_decoder_layers", "decoder_start_token_id", "scale_decoder_outputs", "is_encoder_decoder", "use_cache"),
    *("pad_token_id", "eos_token_id", "dropout_rate", "classifier_dropout", "initializer_factor"),
    *("tie_word_embeddings", "output_past", "output_attentions", "output_hidden_states", "return_dict"),
    *("scalable_attention", "chunk_size_feed_forward", "problem_type", "id2label", "label2id"),
}
# The sizes of UMT5-XXL, which Wan's release names nowhere but in its code.
UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}


def _positive(value: Any) -> int:
    if not _is_int(value) or value < 1:
        raise ValueError("must be a whole number of 1 or more")
    return int(value)


def _count(value: Any) -> int:
    if not _is_int(value) or value < 0:
        raise ValueError("must be a whole number of 0 or more")
    return int(value)


def _real(value: Any) -> float:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError("must be a number above 0")
    return float(value)


def _list_of(item: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list")
        try:
            return tuple(item(one) for one in value)
        except ValueError as error:
            raise ValueError(f"each entry {error}") from None

    return read


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: Any) -> float:
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return read


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def key(read: Callable[[Any], Any], *names: str, **default: Any) -> Any:
    """A field that is read from any one of `names`, the first of them the one that messages use."""
    return field(metadata={"read": read, "names": names}, **default)


@dataclass(frozen=True)
class VaeConfig:
    """The video autoencoder; `lightvae` is Wan's with fewer channels."""

    type: str = key(_one_of(*VAE_TYPES), "type", default="wan")
    dim: int = key(_positive, "base_dim", "dim", default=96)
    z_dim: int = key(_positive, "z_dim", default=16)
    dim_mult: tuple[int, ...] = key(_list_of(_positive), "dim_mult", default=(1, 2, 4, 4))
    num_res_blocks: int = key(_positive, "num_res_blocks", default=2)
    temporal_downsample: tuple[bool, ...] = key(
        _list_of(_bool), "temporal_downsample", "temperal_downsample", default=(False, True, True)
    )
    latents_mean: tuple[float, ...] = key(_list_of(_number), "latents_mean", default=WAN_LATENTS_MEAN)
    latents_std: tuple[float, ...] = key(_list_of(_real), "latents_std", default=WAN_LATENTS_STD)

    def __post_init__(self) -> None:
        if len(self.dim_mult) != len(self.temporal_downsample) + 1:
            raise BadConfig("vae.dim_mult must have one entry more than vae.temporal_downsample")
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) not in (1, self.z_dim):
                raise BadConfig(f"vae.{name} must have one entry, or vae.z_dim = {self.z_dim} entries")

    @property
    def spatial_factor(self) -> int:
        """Pixels of one side of a latent pixel."""
        return int(2 ** len(self.temporal_downsample))

    @property
    def temporal_factor(self) -> int:
        """Pixel frames of one latent frame, the first apart."""
        return int(2 ** sum(self.temporal_downsample))


@dataclass(frozen=True)
class TaeConfig(VaeConfig):
    """A tiny autoencoder: `dim` channels everywhere in its encoder, those of `dim_mult` in its decoder."""

    type: str = key(_one_of("tae"), "type", default="tae")
    dim: int = key(_positive, "base_dim", "dim", default=64)
    dim_mult: tuple[int, ...] = key(_list_of(_positive), "dim_mult", default=(1, 1, 2, 4))
    num_res_blocks: int = key(_positive, "num_res_blocks", default=3)
    temporal_downsample: tuple[bool, ...] = key(
        _list_of(_bool), "temporal_downsample", "temperal_downsample", default=(True, True, False)
    )
    latents_mean: tuple[float, ...] = key(_list_of(_number), "latents_mean", default=(0.0,))
    latents_std: tuple[float, ...] = key(_list_of(_real), "latents_std", default=(1.0,))
    activation: str = key(_one_of(*ACTIVATIONS), "activation", default="relu")


@dataclass(frozen=True)
class LightTaeConfig(TaeConfig):
    """A tiny autoencoder for the latents of Wan2.1's VAE before they are normalised."""

    type: str = key(_one_of("lighttae"), "type", default="lighttae")
    latents_mean: tuple[float, ...] = key(_list_of(_number), "latents_mean", default=WAN_LATENTS_MEAN)
    latents_std: tuple[float, ...] = key(_list_of(_real), "latents_std", default=WAN_LATENTS_STD)


@dataclass(frozen=True)
class CheckpointConfig:
    """The causal transformer of a checkpoint, how it is used, and the VAE that it comes with."""

    # The network, as in Wan's own config.json.
    dim: int = key(_positive, "dim")
    ffn_dim: int = key(_positive, "ffn_dim")
    num_heads: int = key(_positive, "num_heads")
    num_layers: int = key(_positive, "num_layers")
    in_channels: int = key(_positive, "in_dim")
    out_channels: int = key(_positive, "out_dim")
    freq_dim: int = key(_positive, "freq_dim")
    text_len: int = key(_positive, "text_len")
    eps: float = key(_real, "eps")

    # The way it generates.
    latent_frames_per_chunk: int = key(_positive, "latent_frames_per_chunk", "num_frame_per_block")
    window: int = key(_positive, "local_attn_size", "window")
    sink: int = key(_count, "sink_size", "sink")
    timestep_shift: float = key(_real, "timestep_shift")
    text_steps: tuple[float, ...] = key(_list_of(_real), "text_steps")
    video_steps: tuple[float, ...] = key(_list_of(_real), "video_steps")

    # What Wan's own config.json does not say.
    text_dim: int = key(_positive, "text_dim", default=4096)
    patch_size: tuple[int, int, int] = key(_list_of(_positive), "patch_size", default=(1, 2, 2))
    rope_theta: float = key(_real, "rope_theta", default=10000.0)
    rope_positions: Literal["absolute", "window"] = key(_one_of(*ROPE_POSITIONS), "rope_positions", default="absolute")
    position_embedding: bool = key(_bool, "position_embedding", default=False)
    video_step_offset: int = key(_count, "video_step_offset", default=0)
    lora_alpha: float | None = key(_real, "lora_alpha", default=None)
    vace_layers: tuple[int, ...] = key(_list_of(_count), "vace_layers", default=())
    vace_in_channels: int = key(_positive, "vace_in_dim", default=96)
    vae: VaeConfig = field(default_factory=VaeConfig)

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise BadConfig(f"dim = {self.dim} must be an even multiple of num_heads = {self.num_heads}")
        if self.freq_dim % 2:
            raise BadConfig(f"freq_dim = {self.freq_dim} must be even")
        if len(self.patch_size) != 3 or self.patch_size[0] != 1:
            raise BadConfig(f"patch_size = {list(self.patch_size)} must be [1, height, width]")
        if self.sink + self.latent_frames_per_chunk > self.window:
            raise BadConfig(
                f"sink_size = {self.sink} and latent_frames_per_chunk = {self.latent_frames_per_chunk} "
                f"don't fit in local_attn_size = {self.window}"
            )
        for name in ("text_steps", "video_steps"):
            steps = getattr(self, name)
            if not steps or steps[0] > 1000 or any(low >= high for high, low in itertools.pairwise(steps)):
                raise BadConfig(f"{name} must fall, from 1000 at most, and hold one step at least")
        layers = self.vace_layers
        if list(layers) != sorted(set(layers)) or any(layer >= self.num_layers for layer in layers):
            raise BadConfig(f"vace_layers must rise and be below num_layers = {self.num_layers}")
        if layers and layers[0] != 0:
            raise BadConfig("vace_layers must begin with 0")

    @property
    def head_dim(self) -> int:
        """Numbers of one attention head."""
        return self.dim // self.num_heads


@dataclass(frozen=True)
class TextEncoderConfig:
    """UMT5's encoder, read from the keys that transformers uses for it."""

    vocab_size: int = key(_positive, "vocab_size")
    dim: int = key(_positive, "d_model")
    head_dim: int = key(_positive, "d_kv")
    ffn_dim: int = key(_positive, "d_ff")
    num_layers: int = key(_positive, "num_layers")
    num_heads: int = key(_positive, "num_heads")
    num_buckets: int = key(_positive, "relative_attention_num_buckets", default=32)
    max_distance: int = key(_positive, "relative_attention_max_distance", default=128)
    eps: float = key(_real, "layer_norm_epsilon", default=1e-6)

    def __post_init__(self) -> None:
        if self.num_buckets % 2 or self.num_buckets < 4:
            raise BadConfig(f"relative_attention_num_buckets = {self.num_buckets} must be even, and 4 or more")
        if self.max_distance <= self.num_buckets // 4:
            raise BadConfig(
                f"relative_attention_max_distance = {self.max_distance} must be above a quarter of "
                f"relative_attention_num_buckets = {self.num_buckets}"
            )


def load_config(folder: Path) -> CheckpointConfig:
    """Read the `config.json` of a checkpoint's folder.

    Raises:
        BadConfig: there is none, it is not a JSON object, or `parse_config` refuses it.
    """
    return parse_config(_read_object(folder / "config.json"))


def load_text_encoder_config(folder: Path, *, text_dim: int) -> TextEncoderConfig:
    """Read the `config.json` of the text encoder's folder; without one it is UMT5-XXL, which Wan uses.

    Args:
        folder: the text encoder's, `text_encoder` in a checkpoint's.
        text_dim: numbers of a token that the checkpoint's transformer takes.

    Raises:
        BadConfig: it is not a JSON object, `parse_text_encoder_config` refuses it, or `d_model` is not `text_dim`.
    """
    path = folder / "config.json"
    values = _read_object(path) if path.exists() else UMT5_XXL
    try:
        config = parse_text_encoder_config(values)
    except BadConfig as error:
        raise BadConfig(f"{folder.name}: {error}") from None
    if config.dim != text_dim:
        hint = "" if path.exists() else "; without a config.json it is UMT5-XXL"
        raise BadConfig(f"{folder.name}: d_model = {config.dim} must be the transformer's text_dim = {text_dim}{hint}")
    return config


def parse_config(values: Mapping[str, Any]) -> CheckpointConfig:
    """Read a configuration from the keys of a `config.json`.

    Raises:
        BadConfig: a key is missing, unknown, given twice or holds a bad value; the message names it.
    """
    rest = _told(values, FIXED, IGNORED)
    vae_values = rest.pop("vae", {})
    if not isinstance(vae_values, dict):
        raise BadConfig("vae must be a JSON object")
    return CheckpointConfig(**_read_fields(CheckpointConfig, rest), vae=_parse_vae(vae_values))


def _parse_vae(values: Mapping[str, Any]) -> VaeConfig:
    vae_type = values.get("type")
    config = TaeConfig if vae_type == "tae" else LightTaeConfig if vae_type == "lighttae" else VaeConfig
    return config(**_read_fields(config, values, prefix="vae."))


def parse_text_encoder_config(values: Mapping[str, Any]) -> TextEncoderConfig:
    """Read the text encoder's configuration from the keys of its `config.json`.

    Raises:
        BadConfig: as `parse_config`; another network than UMT5 with gated GELU is one, too.
    """
    return TextEncoderConfig(**_read_fields(TextEncoderConfig, _told(values, TEXT_ENCODER_FIXED, TEXT_ENCODER_IGNORED)))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise BadConfig(f"{path} must hold a JSON object")
    return values


def _told(values: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], ignored: set[str]) -> dict[str, Any]:
    """The keys that say something, those that may have one value only checked and left out."""
    rest = {name: value for name, value in values.items() if name not in ignored}
    for name, allowed in fixed.items():
        if name in rest and rest.pop(name) not in allowed:
            raise BadConfig(f"{name} must be one of {', '.join(map(str, allowed))}, got {values[name]!r}")
    return rest


def _read_fields(config: type[Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arguments of a configuration's dataclass, from values by their names in the file."""
    rest = dict(values)
    found: dict[str, Any] = {}
    missing = []
    for one in fields(config):
        names = one.metadata.get("names", ())
        given = [name for name in names if name in rest]
        if len(given) > 1:
            raise BadConfig(f"{prefix}{given[0]} and {prefix}{given[1]} are two names of one thing: keep one")
        if given:
            value = rest.pop(given[0])
            try:
                found[one.name] = one.metadata["read"](value)
            except ValueError as error:
                raise BadConfig(f"{prefix}{given[0]} {error}, got {value!r}") from None
        elif names and one.default is MISSING:
            missing.append(prefix + names[0])
    if missing:
        raise BadConfig(f"config.json lacks {', '.join(missing)}")
    if rest:
        raise BadConfig(f"config.json has unknown keys: {', '.join(prefix + name for name in sorted(rest))}")
    return found
