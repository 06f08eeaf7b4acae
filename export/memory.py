"""`python -m export.memory`: the memory that a model takes on its device, by component, from its configuration alone.

Everything is read off the graphs' specs, made of networks without numbers: weights, caches and what goes from graph to
graph. What is not known before an engine is built is left out: TensorRT's working memory and CUDA's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import click
import torch
from torch import nn

from export.checkpoint import Networks
from export.config import CheckpointConfig, TaeConfig, TextEncoderConfig, load_config, load_text_encoder_config
from export.errors import ExportError
from export.graph_specs import graph_specs, grid_of
from export.modules.layers import Linear
from export.modules.tae import TaeDecoder, TaeEncoder
from export.modules.text_encoder import TextEncoder
from export.modules.transformer import CausalTransformer, TextKv
from export.modules.vace import VaceBranch
from export.modules.vae import VaeDecoder, VaeEncoder
from export.spec import GraphSpec, Grid, Precision, Size
from filmstrip.runtime.transformer import FrameWindow


def memory(
    config: CheckpointConfig,
    size: Size,
    precision: Precision,
    *,
    text_encoder: TextEncoderConfig | None = None,
    lora_ranks: Sequence[int] = (),
) -> dict[str, int]:
    """What a model takes on its device at one size of the video: bytes by component.

    Args:
        config: of the checkpoint.
        size: of the video, in pixels.
        precision: of the engines.
        text_encoder: of the encoder, None where it runs on another device.
        lora_ranks: the rank of each adapter, taken to change every layer of the transformer's blocks.

    Raises:
        BadConfig: the size is no multiple of a token's.
    """
    networks = _without_numbers(config, text_encoder)
    graphs = _Graphs({spec.name: spec for spec in graph_specs(networks, 0)}, grid_of(config, size))
    width = _lora_width(networks.transformer, networks.text_kv)
    counts = dict(_counts(graphs, config)) | {"LoRA adapters": sum(lora_ranks) * width}
    return {name: count * precision.dtype.itemsize for name, count in counts.items() if count}


class _Graphs:
    """Counts numbers in the graphs of a checkpoint at one size."""

    def __init__(self, specs: Mapping[str, GraphSpec], grid: Grid) -> None:
        self._specs = specs
        self._grid = grid

    def weights(self, *starts: str) -> int:
        """Numbers in the weights of all graphs whose names start so; networks that several share count for each."""
        found = (spec.module for name, spec in self._specs.items() if name.startswith(starts))
        return sum(parameter.numel() for module in found for parameter in module.parameters())

    def inputs(self, graph: str, *starts: str, **point: int) -> int:
        """Numbers in the inputs of a graph whose names start so; none where there is no such graph."""
        if graph not in self._specs:
            return 0
        spec = self._specs[graph]
        lengths = spec.axis_lengths(self._grid, point)
        return sum(prod(tensor.resolve(lengths)) for tensor in spec.inputs if tensor.name.startswith(starts))


def _counts(graphs: _Graphs, config: CheckpointConfig) -> Iterator[tuple[str, int]]:
    """Names of components, and how many numbers each holds."""
    window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
    first = config.latent_frames_per_chunk + 1  # latent frames of a video's first chunk
    recaches = (window.recache(num_frames) for num_frames in range(1, 2 * config.window))
    longest = max(first, *(plan.num_frames for plan in recaches if plan is not None))

    yield "text encoder: weights", graphs.weights("text_encoder")
    yield "transformer: weights", graphs.weights("transformer", "text_kv")
    yield "VACE branch: weights", graphs.weights("vace")
    yield "VAE: weights, once for each graph", graphs.weights("vae_")
    text = [graphs.inputs(graph, "text_") for graph in ("transformer", "vace")]
    yield "keys and values of the text", sum(text)
    yield "KV cache", graphs.inputs("transformer", "past_k", "past_v", past=window.capacity)
    yield "new keys and values of the longest pass", graphs.inputs("transformer", "past_k", "past_v", past=longest)
    yield "hints of the VACE branch", graphs.inputs("transformer", "hints", frames=first)
    # Each stream of frames has caches, and a pass makes new ones while it reads those of the pass before.
    yield "VAE: feature caches of the decoder, twice", 2 * graphs.inputs("vae_decoder_next", "cache_")
    has_vace = bool(config.vace_layers)
    times = "four times" if has_vace else "twice"  # input video; what VACE is to keep; what it is to make
    yield (
        f"VAE: feature caches of the encoder, {times}",
        (4 if has_vace else 2) * graphs.inputs("vae_encoder_next", "cache_"),
    )


def _without_numbers(config: CheckpointConfig, text_encoder: TextEncoderConfig | None) -> Networks:
    """All networks of a checkpoint; their parameters have shapes, and take no memory."""
    with torch.device("meta"):
        return Networks(
            config,
            CausalTransformer(config),
            TextKv(config),
            VaceBranch(config) if config.vace_layers else None,
            TextKv(config, vace=True) if config.vace_layers else None,
            TaeEncoder(config.vae) if isinstance(config.vae, TaeConfig) else VaeEncoder(config.vae),
            TaeDecoder(config.vae) if isinstance(config.vae, TaeConfig) else VaeDecoder(config.vae),
            TextEncoder(text_encoder, config.text_len) if text_encoder is not None else None,
        )


def _lora_width(*networks: nn.Module) -> int:
    """Numbers that an adapter has for each unit of its rank, where it changes every layer of the blocks."""
    layers = (layer for network in networks for name, layer in network.named_modules() if name.startswith("blocks."))
    return sum(sum(layer.weight.shape) for layer in layers if isinstance(layer, Linear))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--size", "sizes", default=["320x576"], show_default=True, multiple=True, help="Of the video, HxW.")
@click.option("--precision", type=click.Choice([*Precision]), default=Precision.BF16, show_default=True)
@click.option("--no-text-encoder", is_flag=True, help="It runs elsewhere.")
@click.option("--lora-rank", "lora_ranks", type=int, multiple=True, help="Rank of an adapter; several may be given.")
def main(
    *,
    checkpoint: Path,
    sizes: tuple[str, ...],
    precision: str,
    no_text_encoder: bool,
    lora_ranks: tuple[int, ...],
) -> None:
    """Say how much memory a model takes on its device, before it is exported.

    CHECKPOINT is a checkpoint's folder; only its config.json and its text encoder's are read.
    """
    try:
        config = load_config(checkpoint)
        encoder = load_text_encoder_config(checkpoint / "text_encoder", text_dim=config.text_dim)
        for size in map(_read_size, sizes):
            parts = memory(
                config,
                size,
                Precision(precision),
                text_encoder=None if no_text_encoder else encoder,
                lora_ranks=lora_ranks,
            )
            click.echo(f"{size}, {precision}: MiB")
            for name, num_bytes in (*parts.items(), ("all of these", sum(parts.values()))):
                click.echo(f"{mib(num_bytes):>8}  {name}")
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Beside these: what TensorRT works in, which an engine says when it is built, and CUDA itself.")


def mib(num_bytes: int) -> str:
    """Bytes in MiB, as the command and the documentation show them."""
    return f"{num_bytes / 2**20:,.0f}"


def _read_size(text: str) -> Size:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"{text!r} is no size: give height and width as 320x576")
    return Size(int(height), int(width))


if __name__ == "__main__":
    main()
