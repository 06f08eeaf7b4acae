"""The graphs that a checkpoint becomes, as declared specs: the one list that all of the export follows.

A graph is a module with named tensors in, a tuple of tensors out, and no other types on the way. Latents, pixels and
velocities are float32 at the border whatever a graph computes in, so that the runtime's own arithmetic does not depend
on it. Keys, values, hints and feature caches keep the graph's precision: they only go from engine to engine. Tables and
hints come and go by latent frame, row and column, so that no length is a product.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from export.checkpoint import Networks
from export.config import CheckpointConfig
from export.errors import BadConfig
from export.modules.layers import Linear
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, Rope, TextKv
from export.modules.vace import VaceBranch
from export.spec import Axis, GraphSpec, Grid, Output, Part, Port, Precision, Range, Shape, Size, varying
from filmstrip.runtime.pipeline_config import MAX_REFERENCES


class TransformerGraph(nn.Module):
    """See `CausalTransformer`; tables are [T, rows, cols, D / 2], hints as `VaceGraph` makes them."""

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
        """The velocity in float32; keys and values to be cached."""
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
    """See `VaceBranch`; tables are [R + T, rows, cols, D / 2]."""

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
    """See `TextKv`."""

    def __init__(self, network: TextKv) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, embeddings: Tensor, lora_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values for all layers."""
        dtype = _dtype(self.network)
        scales = None if lora_scales is None else lora_scales.to(dtype)
        return self.network(embeddings.to(dtype), scales)


class TextEncoderGraph(nn.Module):
    """See `TextEncoder`: a prompt's own tokens alone, whose embeddings do not depend on padding."""

    def __init__(self, network: TextEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, *, ids: Tensor) -> tuple[Tensor]:
        """The embeddings of ids [1, Lt] in float32."""
        return (self.network(ids, torch.ones_like(ids)).float(),)


class VaeGraph(nn.Module):
    """A pass of the VAE's encoder or decoder: without feature caches among its inputs it is a video's first."""

    def __init__(self, network: nn.Module, takes: str, *, keeps: bool = True) -> None:
        """`takes` names the input beside the caches; without `keeps` no pass goes on from this one."""
        super().__init__()
        self.network = network
        self.takes = takes
        self.keeps = keeps

    def forward(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Pixels to latents or latents to pixels, in float32; the new caches."""
        x = tensors.pop(self.takes).to(_dtype(self.network))
        y, caches = self.network(x, list(tensors.values()) or None)
        return (y.float(), *caches) if self.keeps else (y.float(),)


class Positional(nn.Module):
    """A graph that takes its inputs by place, as ONNX has them."""

    def __init__(self, named: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.named = named
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the graph makes of inputs in the order of `names`."""
        return self.named(**dict(zip(self.names, tensors, strict=True)))


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


# Largest errors as shares of an output's largest value.
TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 2e-2, Precision.BF16: 1e-1}

_USUAL_TOKENS = 64  # a long sentence


def graph_specs(networks: Networks, num_loras: int) -> tuple[GraphSpec, ...]:
    """All graphs of a checkpoint, its LoRAs attached to the networks before."""
    return tuple(_graph_specs(networks, num_loras))


def grid_of(config: CheckpointConfig, size: Size) -> Grid:
    """Rows and columns of tokens at a size.

    Raises:
        BadConfig: the size is no multiple of a token's.
    """
    units = [config.vae.spatial_factor * patch for patch in config.patch_size[1:]]
    if any(side < unit or side % unit for side, unit in zip(size, units, strict=True)):
        raise BadConfig(f"size {size} must be a multiple of {units[0]}x{units[1]}")
    return Grid(size.height // units[0], size.width // units[1])


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


class _Declared:
    """Shapes that several graphs share."""

    def __init__(self, config: CheckpointConfig, num_loras: int) -> None:
        self.config = config
        _, patch_h, patch_w = config.patch_size
        self.rows, self.cols = Axis("rows", patch_h), Axis("cols", patch_w)
        self.num_loras = num_loras

    def lora_scales(self, network: nn.Module) -> tuple[Port, ...]:
        """An input of those networks alone that have a branch: TensorRT takes an unused one for a mistake."""
        has_branch = any(isinstance(layer, Linear) and layer.lora_a is not None for layer in network.modules())
        return (Port("lora_scales", (self.num_loras,), sample=_halves),) if has_branch else ()

    def latents(self, frames: int | Axis, channels: int, name: str = "latents") -> Port:
        return Port(name, (1, channels, frames, self.rows, self.cols))

    def tables(self, frames: Axis) -> tuple[Port, Port]:
        shape = (frames, Axis("rows"), Axis("cols"), self.config.head_dim // 2)
        return Port("rope_cos", shape, sample=_sines), Port("rope_sin", shape, sample=_sines)

    def hints(self, frames: Axis) -> Port:
        shape = (len(self.config.vace_layers), 1, frames, Axis("rows"), Axis("cols"), self.config.dim)
        return Port("hints", shape, None)

    def text(self, num_layers: int) -> tuple[Port, Port]:
        config = self.config
        shape = (num_layers, 1, config.num_heads, config.text_len, config.head_dim)
        return Port("text_k", shape, None), Port("text_v", shape, None)


def _graph_specs(networks: Networks, num_loras: int) -> Iterator[GraphSpec]:
    config = networks.config
    declared = _Declared(config, num_loras)
    if networks.text_encoder is not None:
        yield _text_encoder(networks.text_encoder, config)
    yield _text_kv("text_kv", networks.text_kv, config.num_layers, declared)
    yield _transformer(networks, declared)
    if networks.vace is not None and networks.vace_text_kv is not None:
        yield _text_kv("vace_text_kv", networks.vace_text_kv, len(config.vace_layers), declared)
        yield _vace(networks.vace, declared)
    yield from _vae(networks, declared)


def _text_encoder(network: TextEncoder, config: CheckpointConfig) -> GraphSpec:
    def ids(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(len(network.token_embedding.weight), shape, generator=generator)

    longest = config.text_len
    return GraphSpec(
        "text_encoder",
        Part.TEXT_ENCODER,
        TextEncoderGraph(network.float()),
        (Port("ids", (1, Axis("tokens")), torch.int64, ids),),
        (Output("embeddings", (1, -1, config.text_dim)),),
        axes={"tokens": Range(1, min(_USUAL_TOKENS, longest), longest)},
        points=tuple({"tokens": tokens} for tokens in (1, longest // 2, longest)),
        tolerances=TOLERANCES,
    )


def _text_kv(name: str, network: TextKv, num_layers: int, declared: _Declared) -> GraphSpec:
    config = declared.config
    return GraphSpec(
        name,
        Part.TRANSFORMER,
        TextKvGraph(network),
        (Port("embeddings", (1, config.text_len, config.text_dim)), *declared.lora_scales(network)),
        tuple(Output(port.name, varying(port.shape), None) for port in declared.text(num_layers)),
        axes={},
        points=({},),
        tolerances=TOLERANCES,
    )


def _transformer(networks: Networks, declared: _Declared) -> GraphSpec:
    config = declared.config
    chunk, window = config.latent_frames_per_chunk, config.window
    frames, past = Axis("frames"), Axis("past")
    cached = (config.num_layers, 1, config.num_heads, past, config.head_dim)
    optional: list[Port] = []
    if config.rope_positions == "window":
        table = (past, config.head_dim // 2)
        optional += [Port("past_cos", table, sample=_sines), Port("past_sin", table, sample=_sines)]
    if config.vace_layers:
        optional.append(declared.hints(frames))
    return GraphSpec(
        "transformer",
        Part.TRANSFORMER,
        TransformerGraph(networks.transformer),
        (
            declared.latents(frames, config.in_channels),
            Port("timesteps", (1, frames), sample=_timesteps),
            *declared.text(config.num_layers),
            *declared.tables(frames),
            Port("past_k", cached, None),
            Port("past_v", cached, None),
            Port("past_bias", (past,), sample=_zeros),
            *optional,
            *declared.lora_scales(networks.transformer),
        ),
        (
            Output("velocity", varying(declared.latents(frames, config.out_channels).shape)),
            Output("new_k", varying(cached), None),
            Output("new_v", varying(cached), None),
        ),
        axes={"frames": Range(1, chunk, window), "past": Range(0, window - chunk, window, per_frame=True)},
        points=(
            {"frames": chunk, "past": 0},
            {"frames": chunk + 1, "past": 0},
            {"frames": chunk, "past": chunk},
            {"frames": chunk, "past": window - chunk},
            {"frames": window, "past": config.sink},
            {"frames": chunk, "past": window},
        ),
        tolerances=TOLERANCES,
    )


def _vace(network: VaceBranch, declared: _Declared) -> GraphSpec:
    config = declared.config
    chunk = config.latent_frames_per_chunk
    frames, context = Axis("frames"), Axis("context_frames")
    return GraphSpec(
        "vace",
        Part.TRANSFORMER,
        VaceGraph(network),
        (
            declared.latents(frames, config.in_channels),
            Port("timesteps", (1, context), sample=_timesteps),
            declared.latents(context, config.vace_in_channels, "context"),
            *declared.text(len(config.vace_layers)),
            *declared.tables(context),
            Port("scale", (1,), sample=_ones),
            *declared.lora_scales(network),
        ),
        (Output("hints", varying(declared.hints(frames).shape), None),),
        axes={
            "frames": Range(1, chunk, chunk + 1),
            "context_frames": Range(1, chunk, chunk + 1 + MAX_REFERENCES),
        },
        points=(
            {"frames": chunk, "context_frames": chunk},
            {"frames": chunk + 1, "context_frames": chunk + 1},
            {"frames": chunk, "context_frames": chunk + 2},
        ),
        tolerances=TOLERANCES,
    )


def _vae(networks: Networks, declared: _Declared) -> Iterator[GraphSpec]:
    config = declared.config
    chunk, factor = config.latent_frames_per_chunk, config.vae.temporal_factor
    pixel_rows, pixel_cols = (
        Axis(axis.name, axis.factor * config.vae.spatial_factor) for axis in (declared.rows, declared.cols)
    )

    def pixels(frames: int) -> Port:
        return Port("pixels", (1, 3, frames, pixel_rows, pixel_cols), sample=_sines)

    if networks.vace is not None:
        yield _vae_graph("vae_encoder_image", networks.vae_encoder, pixels(1), keeps=False)
    yield _vae_graph("vae_encoder_first", networks.vae_encoder, pixels(1 + factor * chunk))
    yield _vae_graph("vae_encoder_next", networks.vae_encoder, pixels(factor * chunk), goes_on=True)

    latents = declared.latents(Axis("frames"), config.vae.z_dim)
    either = {"frames": Range(chunk, chunk, chunk + 1)}
    yield _vae_graph("vae_decoder_first", networks.vae_decoder, latents, axes=either)
    latents = declared.latents(chunk, config.vae.z_dim)
    yield _vae_graph("vae_decoder_next", networks.vae_decoder, latents, goes_on=True)


def _vae_graph(
    name: str,
    network: nn.Module,
    port: Port,
    *,
    axes: Mapping[str, Range] | None = None,
    goes_on: bool = False,
    keeps: bool = True,
) -> GraphSpec:
    axes = axes or {}
    made, *kept = _shapes_made(network, port, goes_on=goes_on)
    frames = -1 if axes else made[2]
    # Rows and columns of a video of one token are the factors of the axes.
    caches: list[Shape] = [(*shape[:-2], Axis("rows", shape[-2]), Axis("cols", shape[-1])) for shape in kept]
    before = (Port(f"cache_{index}", shape, None) for index, shape in enumerate(caches)) if goes_on else ()
    after = (Output(f"new_cache_{index}", varying(shape), None) for index, shape in enumerate(caches))
    return GraphSpec(
        name,
        Part.VAE,
        VaeGraph(network, port.name, keeps=keeps),
        (port, *before),
        (
            Output("latents" if port.name == "pixels" else "pixels", (*made[:2], frames, -1, -1)),
            *(after if keeps else ()),
        ),
        axes=axes,
        points=tuple({axis: reach[index] for axis, reach in axes.items()} for index in ((0, 2) if axes else (0,))),
        tolerances=TOLERANCES,
    )


def _shapes_made(network: nn.Module, port: Port, *, goes_on: bool) -> list[tuple[int, ...]]:
    """Shapes of what a pass makes and of its feature caches, by a run without numbers at a size of one token."""
    on_meta = copy.deepcopy(network).to("meta")
    x = torch.empty(port.at({"rows": 1, "cols": 1, "frames": 2}), device="meta")
    made, caches = on_meta(x)
    if goes_on:
        made, caches = on_meta(x, caches)
    return [made.shape, *(cache.shape for cache in caches)]
