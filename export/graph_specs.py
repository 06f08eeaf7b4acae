"""Declares the graphs that a checkpoint is exported as: everything else in the export follows this list.

A graph is a module with named tensors in and a tuple of tensors out. Latents, pixels and velocities are float32 outside
of graphs, so that the runtime's arithmetic does not depend on a graph's precision. Keys, values, hints and feature
caches keep that precision: they only go from engine to engine. Tables and hints have separate axes for latent frame,
row and column, because a length that is a product breaks the translation (see PITFALLS.md).
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from export.checkpoint import Networks
from export.config import CheckpointConfig
from export.errors import BadConfig
from export.modules.layers import has_loras
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, Rope, TextKv
from export.modules.vace import VaceBranch
from export.spec import (
    Axis,
    AxisRange,
    Component,
    GraphSpec,
    Grid,
    InputSpec,
    OutputSpec,
    Precision,
    Size,
    SymbolicShape,
    did_you_mean,
    dynamic_shape,
)
from filmstrip.runtime.longlive_config import MAX_REFERENCES


class TransformerGraph(nn.Module):
    """`CausalTransformer` with tables [T, rows, cols, D / 2] and hints as `VaceGraph` returns them."""

    def __init__(self, network: CausalTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        *,
        latents: Tensor,
        timesteps: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        past_k: Tensor,
        past_v: Tensor,
        past_bias: Tensor,
        past_cos: Tensor | None = None,
        past_sin: Tensor | None = None,
        hints: Tensor | None = None,
        lora_scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The velocity in float32, and the keys and values to cache."""
        dtype = _dtype(self.network)
        velocity, k, v = self.network(
            latents.to(dtype),
            timesteps,
            text_k,
            text_v,
            Rope(rope_cos.flatten(0, 2), rope_sin.flatten(0, 2), past_cos, past_sin),
            past_k,
            past_v,
            past_bias,
            hints=None if hints is None else hints.flatten(2, 4),
            lora_scales=None if lora_scales is None else lora_scales.to(dtype),
        )
        return velocity.float(), k, v


class VaceGraph(nn.Module):
    """`VaceBranch` with tables [R + T, rows, cols, D / 2]."""

    def __init__(self, network: VaceBranch) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        *,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        scale: Tensor,
        lora_scales: Tensor | None = None,
    ) -> tuple[Tensor]:
        """The hints [vace_layers, B, T, rows, cols, C]."""
        dtype = _dtype(self.network)
        hints = self.network(
            latents.to(dtype),
            timesteps,
            context.to(dtype),
            text_k,
            text_v,
            Rope(rope_cos.flatten(0, 2), rope_sin.flatten(0, 2)),
            scale.to(dtype),
            None if lora_scales is None else lora_scales.to(dtype),
        )
        return (hints.unflatten(2, (latents.shape[2], *rope_cos.shape[1:3])),)


class TextKvGraph(nn.Module):
    """`TextKv` as a graph."""

    def __init__(self, network: TextKv) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, embeddings: Tensor, lora_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of the text for all layers."""
        dtype = _dtype(self.network)
        scales = None if lora_scales is None else lora_scales.to(dtype)
        return self.network(embeddings.to(dtype), scales)


class TextEncoderGraph(nn.Module):
    """`TextEncoder` without padding: the embeddings of a prompt's own tokens do not depend on it."""

    def __init__(self, network: TextEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, ids: Tensor) -> tuple[Tensor]:
        """The embeddings of ids [1, Lt] in float32."""
        return (self.network(ids, torch.ones_like(ids)).float(),)


class VaeGraph(nn.Module):
    """A pass of the VAE's encoder or decoder; without feature caches as inputs it is the first pass of a video."""

    def __init__(self, network: nn.Module, input_name: str, *, emits_caches: bool = True) -> None:
        """`input_name`: the input that is not a cache. Without `emits_caches`, no later pass can continue this one."""
        super().__init__()
        self.network = network
        self.input_name = input_name
        self.emits_caches = emits_caches

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Pixels to latents or latents to pixels, in float32, and the new caches."""
        x = tensors.pop(self.input_name).to(_dtype(self.network))
        y, caches = self.network(x, list(tensors.values()) or None)
        return (y.float(), *caches) if self.emits_caches else (y.float(),)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


# The largest errors that are allowed, as a share of an output's largest value.
TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 2e-2, Precision.BF16: 1e-1}

_USUAL_TOKENS = 64  # a long sentence


def graph_specs(networks: Networks, num_loras: int) -> tuple[GraphSpec, ...]:
    """All graphs of a checkpoint; its LoRAs must already be attached to the networks."""
    return tuple(_graph_specs(networks, num_loras))


def grid_of(config: CheckpointConfig, size: Size) -> Grid:
    """Rows and columns of tokens at a size.

    Raises:
        BadConfig: the size is not a multiple of the size of a token.
    """
    token = Size(*(config.vae.spatial_factor * patch for patch in config.patch_size[1:]))
    if not _is_multiple(size, token):
        hint = f": {did_you_mean(size)}" if _is_multiple(size.turned, token) else ""
        raise BadConfig(f"size {size} must be a multiple of {token}{hint}")
    return Grid(size.height // token.height, size.width // token.width)


def _is_multiple(size: Size, token: Size) -> bool:
    return all(side >= unit and side % unit == 0 for side, unit in zip(size, token, strict=True))


def _ones(shape: tuple[int, ...], _generator: torch.Generator) -> Tensor:
    return torch.ones(shape)


def _zeros(shape: tuple[int, ...], _generator: torch.Generator) -> Tensor:
    return torch.zeros(shape)


def _halves(shape: tuple[int, ...], _generator: torch.Generator) -> Tensor:
    return torch.full(shape, 0.5)


def _timesteps(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 1000


def _sines(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


class _SharedInputs:
    """Declarations of inputs that several graphs share."""

    def __init__(self, config: CheckpointConfig, num_loras: int) -> None:
        self.config = config
        _, patch_h, patch_w = config.patch_size
        self.rows, self.cols = Axis("rows", patch_h), Axis("cols", patch_w)
        self.num_loras = num_loras

    def lora_scales(self, network: nn.Module) -> tuple[InputSpec, ...]:
        """Only for networks that an adapter changes: an unused input is an error."""
        return (InputSpec("lora_scales", (self.num_loras,), sample=_halves),) if has_loras(network) else ()

    def latents(self, frames: int | Axis, channels: int, name: str = "latents") -> InputSpec:
        return InputSpec(name, (1, channels, frames, self.rows, self.cols))

    def rope_tables(self, frames: Axis) -> tuple[InputSpec, InputSpec]:
        shape = (frames, Axis("rows"), Axis("cols"), self.config.head_dim // 2)
        return InputSpec("rope_cos", shape, sample=_sines), InputSpec("rope_sin", shape, sample=_sines)

    def hints(self, frames: Axis) -> InputSpec:
        shape = (len(self.config.vace_layers), 1, frames, Axis("rows"), Axis("cols"), self.config.dim)
        return InputSpec("hints", shape, None)

    def text_kv(self, num_layers: int) -> tuple[InputSpec, InputSpec]:
        config = self.config
        shape = (num_layers, 1, config.num_heads, config.text_len, config.head_dim)
        return InputSpec("text_k", shape, None), InputSpec("text_v", shape, None)


def _graph_specs(networks: Networks, num_loras: int) -> Iterator[GraphSpec]:
    config = networks.config
    shared = _SharedInputs(config, num_loras)
    if networks.text_encoder is not None:
        yield _text_encoder(networks.text_encoder, config)
    yield _text_kv("text_kv", networks.text_kv, config.num_layers, shared)
    yield _transformer(networks, shared)
    if networks.vace is not None and networks.vace_text_kv is not None:
        yield _text_kv("vace_text_kv", networks.vace_text_kv, len(config.vace_layers), shared)
        yield _vace(networks.vace, shared)
    yield from _vae(networks, shared)


def _text_encoder(network: TextEncoder, config: CheckpointConfig) -> GraphSpec:
    def ids(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(len(network.token_embedding.weight), shape, generator=generator)

    longest = config.text_len
    return GraphSpec(
        "text_encoder",
        Component.TEXT_ENCODER,
        TextEncoderGraph(network.float()),
        (InputSpec("ids", (1, Axis("tokens")), torch.int64, ids),),
        (OutputSpec("embeddings", (1, -1, config.text_dim)),),
        axes={"tokens": AxisRange(1, min(_USUAL_TOKENS, longest), longest)},
        test_points=tuple({"tokens": tokens} for tokens in (1, longest // 2, longest)),
        tolerances=TOLERANCES,
    )


def _text_kv(name: str, network: TextKv, num_layers: int, shared: _SharedInputs) -> GraphSpec:
    config = shared.config
    return GraphSpec(
        name,
        Component.TRANSFORMER,
        TextKvGraph(network),
        (InputSpec("embeddings", (1, config.text_len, config.text_dim)), *shared.lora_scales(network)),
        tuple(OutputSpec(tensor.name, dynamic_shape(tensor.shape), None) for tensor in shared.text_kv(num_layers)),
        axes={},
        test_points=({},),
        tolerances=TOLERANCES,
    )


def _transformer(networks: Networks, shared: _SharedInputs) -> GraphSpec:
    config = shared.config
    chunk, window = config.latent_frames_per_chunk, config.window
    frames, past = Axis("frames"), Axis("past")
    cached = (config.num_layers, 1, config.num_heads, past, config.head_dim)
    optional: list[InputSpec] = []
    if config.rope_positions == "window":
        table = (past, config.head_dim // 2)
        optional += [InputSpec("past_cos", table, sample=_sines), InputSpec("past_sin", table, sample=_sines)]
    if config.vace_layers:
        optional.append(shared.hints(frames))
    return GraphSpec(
        "transformer",
        Component.TRANSFORMER,
        TransformerGraph(networks.transformer),
        (
            shared.latents(frames, config.in_channels),
            InputSpec("timesteps", (1, frames), sample=_timesteps),
            *shared.text_kv(config.num_layers),
            *shared.rope_tables(frames),
            InputSpec("past_k", cached, None),
            InputSpec("past_v", cached, None),
            InputSpec("past_bias", (past,), sample=_zeros),
            *optional,
            *shared.lora_scales(networks.transformer),
        ),
        (
            OutputSpec("velocity", dynamic_shape(shared.latents(frames, config.out_channels).shape)),
            OutputSpec("new_k", dynamic_shape(cached), None),
            OutputSpec("new_v", dynamic_shape(cached), None),
        ),
        axes={"frames": AxisRange(1, chunk, window), "past": AxisRange(0, window - chunk, window, per_frame=True)},
        test_points=(
            {"frames": chunk, "past": 0},
            {"frames": chunk + 1, "past": 0},
            {"frames": chunk, "past": chunk},
            {"frames": chunk, "past": window - chunk},
            {"frames": window, "past": config.sink},
            {"frames": chunk, "past": window},
        ),
        tolerances=TOLERANCES,
    )


def _vace(network: VaceBranch, shared: _SharedInputs) -> GraphSpec:
    config = shared.config
    chunk = config.latent_frames_per_chunk
    frames, context = Axis("frames"), Axis("context_frames")
    return GraphSpec(
        "vace",
        Component.TRANSFORMER,
        VaceGraph(network),
        (
            shared.latents(frames, config.in_channels),
            InputSpec("timesteps", (1, context), sample=_timesteps),
            shared.latents(context, config.vace_in_channels, "context"),
            *shared.text_kv(len(config.vace_layers)),
            *shared.rope_tables(context),
            InputSpec("scale", (1,), sample=_ones),
            *shared.lora_scales(network),
        ),
        (OutputSpec("hints", dynamic_shape(shared.hints(frames).shape), None),),
        axes={
            "frames": AxisRange(1, chunk, chunk + 1),
            "context_frames": AxisRange(1, chunk, chunk + 1 + MAX_REFERENCES),
        },
        test_points=(
            {"frames": chunk, "context_frames": chunk},
            {"frames": chunk + 1, "context_frames": chunk + 1},
            {"frames": chunk, "context_frames": chunk + 2},
        ),
        tolerances=TOLERANCES,
    )


def _vae(networks: Networks, shared: _SharedInputs) -> Iterator[GraphSpec]:
    config = shared.config
    chunk, factor = config.latent_frames_per_chunk, config.vae.temporal_factor
    pixel_rows, pixel_cols = (
        Axis(axis.name, axis.factor * config.vae.spatial_factor) for axis in (shared.rows, shared.cols)
    )

    def pixels(frames: int) -> InputSpec:
        return InputSpec("pixels", (1, 3, frames, pixel_rows, pixel_cols), sample=_sines)

    if networks.vace is not None:
        yield _vae_graph("vae_encoder_image", networks.vae_encoder, pixels(1), emits_caches=False)
    yield _vae_graph("vae_encoder_first", networks.vae_encoder, pixels(1 + factor * chunk))
    yield _vae_graph("vae_encoder_next", networks.vae_encoder, pixels(factor * chunk), has_cache_inputs=True)

    latents = shared.latents(Axis("frames"), config.vae.z_dim)
    axes = {"frames": AxisRange(chunk, chunk, chunk + 1)}
    yield _vae_graph("vae_decoder_first", networks.vae_decoder, latents, axes=axes)
    latents = shared.latents(chunk, config.vae.z_dim)
    yield _vae_graph("vae_decoder_next", networks.vae_decoder, latents, has_cache_inputs=True)


def _vae_graph(
    name: str,
    network: nn.Module,
    tensor: InputSpec,
    *,
    axes: Mapping[str, AxisRange] | None = None,
    has_cache_inputs: bool = False,
    emits_caches: bool = True,
) -> GraphSpec:
    axes = axes or {}
    output, *cache_shapes = _output_shapes(network, tensor, has_cache_inputs=has_cache_inputs)
    frames = -1 if axes else output[2]
    # `_output_shapes` runs at one row and one column, so the lengths it finds are the factors of the axes.
    caches: list[SymbolicShape] = [
        (*shape[:-2], Axis("rows", shape[-2]), Axis("cols", shape[-1])) for shape in cache_shapes
    ]
    cache_inputs = (
        (InputSpec(f"cache_{index}", shape, None) for index, shape in enumerate(caches)) if has_cache_inputs else ()
    )
    cache_outputs = (OutputSpec(f"new_cache_{index}", dynamic_shape(shape), None) for index, shape in enumerate(caches))
    return GraphSpec(
        name,
        Component.VAE,
        VaeGraph(network, tensor.name, emits_caches=emits_caches),
        (tensor, *cache_inputs),
        (
            OutputSpec("latents" if tensor.name == "pixels" else "pixels", (*output[:2], frames, -1, -1)),
            *(cache_outputs if emits_caches else ()),
        ),
        axes=axes,
        test_points=tuple(
            {name: values[index] for name, values in axes.items()} for index in ((0, 2) if axes else (0,))
        ),
        tolerances=TOLERANCES,
    )


def _output_shapes(network: nn.Module, tensor: InputSpec, *, has_cache_inputs: bool) -> list[tuple[int, ...]]:
    """Shapes of a pass's output and of its feature caches, from a run on the meta device at a size of one token."""
    on_meta = copy.deepcopy(network).to("meta")
    x = torch.empty(tensor.resolve({"rows": 1, "cols": 1, "frames": 2}), device="meta")
    output, caches = on_meta(x)
    if has_cache_inputs:
        output, caches = on_meta(x, caches)
    return [output.shape, *(cache.shape for cache in caches)]
