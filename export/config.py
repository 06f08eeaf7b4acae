"""A checkpoint's `config.json` and its text encoder's: the only place where the networks' dimensions come from.

The keys are those of Wan's own configurations, and ours for what those do not say. docs/export.md lists them.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

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
# The dimensions of UMT5-XXL, which Wan's release states only in its code.
UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}

Positive = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]

Config = TypeVar("Config", bound="_FileConfig")


def _keys(*names: str) -> Any:
    """The field's key in the file; the first of several names is the one that messages use."""
    return Field(validation_alias=AliasChoices(*names))


class _FileConfig(BaseModel):
    """A configuration that is read by the keys of its file and built in code by the names of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=False)
    ignored_keys: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for field in cls.model_fields.values():
            if isinstance(field.validation_alias, AliasChoices):
                present = [str(name) for name in field.validation_alias.choices if name in values]
                if len(present) > 1:
                    raise ValueError(f"{present[0]} and {present[1]} are two names of one key: keep one")
        return {name: value for name, value in values.items() if name not in cls.ignored_keys}


class VaeConfig(_FileConfig):
    """The video autoencoder; `lightvae` is Wan's with fewer channels."""

    type: Literal["wan", "lightvae", "tae", "lighttae"] = "wan"
    dim: Annotated[Positive, _keys("base_dim", "dim")] = 96
    z_dim: Positive = 16
    dim_mult: tuple[Positive, ...] = (1, 2, 4, 4)
    num_res_blocks: Positive = 2
    temporal_downsample: Annotated[tuple[Flag, ...], _keys("temporal_downsample", "temperal_downsample")] = (
        *(False, True, True),
    )
    latents_mean: tuple[Number, ...] = WAN_LATENTS_MEAN
    latents_std: tuple[PositiveNumber, ...] = WAN_LATENTS_STD

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.dim_mult) != len(self.temporal_downsample) + 1:
            raise ValueError("dim_mult must have one more entry than temporal_downsample")
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) not in (1, self.z_dim):
                raise ValueError(f"{name} must have one entry, or z_dim = {self.z_dim} entries")
        return self

    @property
    def spatial_factor(self) -> int:
        """Side of a latent pixel, in pixels."""
        return int(2 ** len(self.temporal_downsample))

    @property
    def temporal_factor(self) -> int:
        """Pixel frames per latent frame, the first latent frame excepted."""
        return int(2 ** sum(self.temporal_downsample))


class TaeConfig(VaeConfig):
    """A tiny autoencoder: `dim` channels everywhere in its encoder, `dim_mult` times as many in its decoder."""

    type: Literal["wan", "lightvae", "tae", "lighttae"] = "tae"
    dim: Annotated[Positive, _keys("base_dim", "dim")] = 64
    dim_mult: tuple[Positive, ...] = (1, 1, 2, 4)
    num_res_blocks: Positive = 3
    temporal_downsample: Annotated[tuple[Flag, ...], _keys("temporal_downsample", "temperal_downsample")] = (
        *(True, True, False),
    )
    latents_mean: tuple[Number, ...] = (0.0,)
    latents_std: tuple[PositiveNumber, ...] = (1.0,)
    activation: Literal["relu", "silu"] = "relu"


class LightTaeConfig(TaeConfig):
    """A tiny autoencoder for the latents of Wan2.1's VAE before they are normalised."""

    type: Literal["wan", "lightvae", "tae", "lighttae"] = "lighttae"
    latents_mean: tuple[Number, ...] = WAN_LATENTS_MEAN
    latents_std: tuple[PositiveNumber, ...] = WAN_LATENTS_STD


def _vae_class(value: Any) -> str | None:
    vae_type = value.get("type", "wan") if isinstance(value, Mapping) else getattr(value, "type", None)
    classes = {"wan": "VaeConfig", "lightvae": "VaeConfig", "tae": "TaeConfig", "lighttae": "LightTaeConfig"}
    return classes.get(vae_type) if isinstance(vae_type, str) else None


AnyVaeConfig = Annotated[
    Annotated[VaeConfig, Tag("VaeConfig")]
    | Annotated[TaeConfig, Tag("TaeConfig")]
    | Annotated[LightTaeConfig, Tag("LightTaeConfig")],
    Discriminator(
        _vae_class,
        custom_error_type="vae_type",
        custom_error_message="Input should be an object whose type is one of wan, lightvae, tae, lighttae",
    ),
]


class CheckpointConfig(_FileConfig):
    """The causal transformer of a checkpoint, how it is used, and the VAE that comes with it."""

    ignored_keys: ClassVar[frozenset[str]] = frozenset({"_class_name", "_diffusers_version", "window_size"})

    # The network, as in Wan's own config.json.
    dim: Positive
    ffn_dim: Positive
    num_heads: Positive
    num_layers: Positive
    in_channels: Annotated[Positive, _keys("in_dim")]
    out_channels: Annotated[Positive, _keys("out_dim")]
    freq_dim: Positive
    text_len: Positive
    eps: PositiveNumber

    # How it generates.
    latent_frames_per_chunk: Annotated[Positive, _keys("latent_frames_per_chunk", "num_frame_per_block")]
    window: Annotated[Positive, _keys("local_attn_size", "window")]
    sink: Annotated[Count, _keys("sink_size", "sink")]
    timestep_shift: PositiveNumber
    text_steps: tuple[PositiveNumber, ...]
    first_text_steps: tuple[PositiveNumber, ...] | None = None
    video_steps: tuple[PositiveNumber, ...]

    # What Wan's own config.json does not say.
    text_dim: Positive = 4096
    patch_size: tuple[Positive, Positive, Positive] = (1, 2, 2)
    rope_theta: PositiveNumber = 10000.0
    rope_positions: Literal["absolute", "window"] = "absolute"
    position_embedding: Flag = False
    video_step_offset: Count = 0
    global_sink: Flag = True
    context_noise: Annotated[float, Field(strict=True, ge=0, le=1000)] = 0.0
    sink_decay: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    lora_alpha: PositiveNumber | None = None
    weights: Literal["ema", "online"] | None = None
    vace_layers: tuple[Count, ...] = ()
    lone_references: Literal["before", "in_place"] = "before"
    vace_in_channels: Annotated[Positive, _keys("vace_in_dim")] = 96
    vae: AnyVaeConfig = VaeConfig()

    # Wan's configurations carry these; only these values are a network that we have.
    model_type: Literal["t2v", "vace"] = Field("t2v", exclude=True)
    qk_norm: Literal[True] = Field(True, exclude=True)
    cross_attn_norm: Literal[True] = Field(True, exclude=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(f"dim = {self.dim} must be an even multiple of num_heads = {self.num_heads}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim = {self.freq_dim} must be even")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size = {list(self.patch_size)} must be [1, height, width]")
        if self.sink + self.latent_frames_per_chunk > self.window:
            raise ValueError(
                f"sink_size = {self.sink} and latent_frames_per_chunk = {self.latent_frames_per_chunk} "
                f"don't fit in local_attn_size = {self.window}"
            )
        if self.sink_decay is not None and (self.rope_positions != "window" or not self.sink):
            raise ValueError('sink_decay needs a sink_size above 0 and "rope_positions": "window"')
        if self.sink_decay is not None and not self.global_sink:
            raise ValueError("sink_decay and global_sink false exclude each other")
        for name in ("text_steps", "first_text_steps", "video_steps"):
            steps = getattr(self, name)
            if steps is None:
                continue
            if not steps or steps[0] > 1000 or any(low >= high for high, low in itertools.pairwise(steps)):
                raise ValueError(f"{name} must have at least one step, start at 1000 or less, and fall")
        layers = self.vace_layers
        if list(layers) != sorted(set(layers)) or any(layer >= self.num_layers for layer in layers):
            raise ValueError(f"vace_layers must rise and be below num_layers = {self.num_layers}")
        if layers and layers[0] != 0:
            raise ValueError("vace_layers must start with 0")
        return self

    @property
    def head_dim(self) -> int:
        """Dimension of one attention head."""
        return self.dim // self.num_heads


class TextEncoderConfig(_FileConfig):
    """UMT5's encoder, under the keys that transformers writes."""

    # These do not change the encoder's numbers.
    ignored_keys: ClassVar[frozenset[str]] = frozenset(
        {
            *("_name_or_path", "architectures", "transformers_version", "tokenizer_class", "torch_dtype", "dtype"),
            *("num_decoder_layers", "decoder_start_token_id", "scale_decoder_outputs", "is_encoder_decoder"),
            *("pad_token_id", "eos_token_id", "dropout_rate", "classifier_dropout", "initializer_factor"),
            *("tie_word_embeddings", "output_past", "output_attentions", "output_hidden_states", "return_dict"),
            *("scalable_attention", "chunk_size_feed_forward", "problem_type", "id2label", "label2id", "use_cache"),
        }
    )

    vocab_size: Positive
    dim: Annotated[Positive, _keys("d_model")]
    head_dim: Annotated[Positive, _keys("d_kv")]
    ffn_dim: Annotated[Positive, _keys("d_ff")]
    num_layers: Positive
    num_heads: Positive
    num_buckets: Annotated[Positive, _keys("relative_attention_num_buckets")] = 32
    max_distance: Annotated[Positive, _keys("relative_attention_max_distance")] = 128
    eps: Annotated[PositiveNumber, _keys("layer_norm_epsilon")] = 1e-6

    # Only this network: UMT5 with gated GELU.
    model_type: Literal["umt5"] = Field("umt5", exclude=True)
    feed_forward_proj: Literal["gated-gelu"] = Field("gated-gelu", exclude=True)
    dense_act_fn: Literal["gelu_new"] = Field("gelu_new", exclude=True)
    is_gated_act: Literal[True] = Field(True, exclude=True)
    is_decoder: Literal[False] = Field(False, exclude=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_buckets % 2 or self.num_buckets < 4:
            raise ValueError(f"relative_attention_num_buckets = {self.num_buckets} must be even, and 4 or more")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"relative_attention_max_distance = {self.max_distance} must be above a quarter of "
                f"relative_attention_num_buckets = {self.num_buckets}"
            )
        return self


def load_config(folder: Path) -> CheckpointConfig:
    """Read the `config.json` of a checkpoint's folder.

    Raises:
        BadConfig: the file is missing, is not JSON, or has a missing, unknown or wrong key; the message names both.
    """
    return _load(CheckpointConfig, folder / "config.json")


def load_text_encoder_config(folder: Path, *, text_dim: int) -> TextEncoderConfig:
    """Read the `config.json` of the text encoder's folder; without one it is UMT5-XXL, which Wan uses.

    Args:
        folder: `text_encoder` in a checkpoint's folder.
        text_dim: the embedding dimension that the checkpoint's transformer takes.

    Raises:
        BadConfig: as `load_config`, or `d_model` is not `text_dim`.
    """
    path = folder / "config.json"
    has_file = path.exists()
    config = _load(TextEncoderConfig, path) if has_file else parse_text_encoder_config(UMT5_XXL)
    if config.dim != text_dim:
        hint = "" if has_file else "; without a config.json it is UMT5-XXL"
        raise BadConfig(f"{path}: d_model = {config.dim} must be the transformer's text_dim = {text_dim}{hint}")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The keys of a `config.json`, whoever has written it.

    Raises:
        BadConfig: the file can't be read, or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} can't be read: {error}") from None
    if not isinstance(values, dict):
        raise BadConfig(f"{path} must be a JSON object")
    return values


def parse_config(values: Mapping[str, Any]) -> CheckpointConfig:
    """Build a configuration from the keys of a `config.json`.

    Raises:
        BadConfig: a key is missing, unknown, given under two names or has a bad value; the message names it.
    """
    return _parse(CheckpointConfig, values)


def parse_text_encoder_config(values: Mapping[str, Any]) -> TextEncoderConfig:
    """Build the text encoder's configuration from the keys of its `config.json`.

    Raises:
        BadConfig: as `parse_config`; also for any other network than UMT5 with gated GELU.
    """
    return _parse(TextEncoderConfig, values)


def _load(model: type[Config], path: Path) -> Config:
    try:
        return model.model_validate_json(path.read_text("utf-8-sig"), by_alias=True, by_name=False)
    except ValidationError as error:
        raise BadConfig(f"{path}: {_problems(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} can't be read: {error}") from None


def _parse(model: type[Config], values: Mapping[str, Any]) -> Config:
    try:
        return model.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        raise BadConfig(f"config.json: {_problems(error)}") from None


# Values of released configurations that need another one here.
_HINTS = {"local_attn_size -1": " (the whole video; these models are trained for 21 latent frames: write 21)"}


def _problems(error: ValidationError) -> str:
    """What is wrong, key by key."""
    problems, missing, unknown = [], [], []
    for one in error.errors():
        parents = [str(part) for part in one["loc"] if not str(part).endswith("Config")]  # without the VAE's tag
        key = ".".join(parents)
        message = one["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = message.replace("a valid tuple", "a list").replace("a valid array", "a list")
        match one["type"]:
            case "missing":
                missing.append(key)
            case "extra_forbidden":
                unknown.append(key)
            case "value_error":  # of a check that names its keys
                problems.append(".".join([*parents, message]))
            case "json_invalid":
                problems.append(message)
            case _:
                hint = _HINTS.get(f"{key} {one['input']}", "")
                problems.append(f"{key or 'the file'} {message}, got {one['input']!r}{hint}")
    for what, keys in (("missing", missing), ("unknown", unknown)):
        if keys:
            problems.append(f"{what} key{'s' if len(keys) > 1 else ''} {', '.join(keys)}")
    return "; ".join(problems)
