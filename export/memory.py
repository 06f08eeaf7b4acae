"""`python -m export.memory`: the memory that a model takes on its device, by component, from its configuration alone.

It adds up the weights, the caches and the tensors between graphs, from the graphs' specs for networks on the meta
device. TensorRT's working memory and CUDA's own are unknown before an engine is built, and not included.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import click
from torch import nn

from export.checkpoint import meta_networks
from export.config import CheckpointConfig, TextEncoderConfig, load_config, load_text_encoder_config
from export.errors import ExportError
from export.graph_specs import graph_specs, grid_of
from export.modules.layers import Linear
from export.option_types import SizeType
from export.spec import GraphSpec, Grid, Precision, Size
from filmstrip.runtime.transformer import FrameWindow


def estimate_memory(
    config: CheckpointConfig,
    size: Size,
    precision: Precision,
    *,
    text_encoder: TextEncoderConfig | None = None,
    lora_ranks: Sequence[int] = (),
) -> dict[str, int]:
    """The memory that a model takes on its device at one video size: bytes by component.

    Args:
        config: of the checkpoint.
        size: of the video.
        precision: of the engines.
        text_encoder: of the encoder, None if it runs on another device.
        lora_ranks: the rank of each adapter, assumed to change every layer of the transformer's blocks.

    Raises:
        BadConfig: the size is not a multiple of a token's.
    """
    networks = meta_networks(config, text_encoder)
    graphs = _Graphs({spec.name: spec for spec in graph_specs(networks, 0)}, grid_of(config, size))
    per_rank = _lora_numbers_per_rank(networks.transformer, networks.text_kv)
    counts = dict(_components(graphs, config)) | {"LoRA adapters": sum(lora_ranks) * per_rank}
    return {name: count * precision.dtype.itemsize for name, count in counts.items() if count}


class _Graphs:
    """Counts the numbers in a checkpoint's graphs at one size."""

    def __init__(self, specs: Mapping[str, GraphSpec], grid: Grid) -> None:
        self._specs = specs
        self._grid = grid

    def weights(self, *prefixes: str) -> int:
        """Numbers in the weights of all graphs with these prefixes; shared networks count once per graph."""
        modules = (spec.module for name, spec in self._specs.items() if name.startswith(prefixes))
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    def inputs(self, graph: str, *prefixes: str, **point: int) -> int:
        """Numbers in a graph's inputs with these prefixes; 0 if there is no such graph."""
        if graph not in self._specs:
            return 0
        spec = self._specs[graph]
        lengths = spec.axis_lengths(self._grid, point)
        return sum(prod(tensor.resolve(lengths)) for tensor in spec.inputs if tensor.name.startswith(prefixes))


def _components(graphs: _Graphs, config: CheckpointConfig) -> Iterator[tuple[str, int]]:
    """Names of components, and how many numbers each holds."""
    window = FrameWindow(config.window, config.sink, config.latent_frames_per_chunk)
    first_chunk = config.latent_frames_per_chunk + 1  # latent frames of a video's first chunk
    recaches = (window.recache(num_frames) for num_frames in range(1, 2 * config.window))
    longest = max(first_chunk, *(span.num_frames for span in recaches if span is not None))

    yield "text encoder: weights", graphs.weights("text_encoder")
    yield "transformer: weights", graphs.weights("transformer", "text_kv")
    yield "VACE branch: weights", graphs.weights("vace")
    yield "VAE: weights, once per graph", graphs.weights("vae_")
    text = [graphs.inputs(graph, "text_") for graph in ("transformer", "vace")]
    yield "keys and values of the text", sum(text)
    yield "KV cache", graphs.inputs("transformer", "past_k", "past_v", past=window.capacity)
    yield "new keys and values of the longest pass", graphs.inputs("transformer", "past_k", "past_v", past=longest)
    yield "hints of the VACE branch", graphs.inputs("transformer", "hints", frames=first_chunk)
    # Each stream of frames has caches, and a pass makes new ones while it reads those of the previous pass.
    yield "VAE: feature caches of the decoder, twice", 2 * graphs.inputs("vae_decoder_next", "cache_")
    has_vace = bool(config.vace_layers)
    times = "four times" if has_vace else "twice"  # input video; what VACE keeps; what it generates
    yield (
        f"VAE: feature caches of the encoder, {times}",
        (4 if has_vace else 2) * graphs.inputs("vae_encoder_next", "cache_"),
    )


def _lora_numbers_per_rank(*networks: nn.Module) -> int:
    """Numbers that an adapter has per unit of its rank, if it changes every layer of the blocks."""
    layers = (layer for network in networks for name, layer in network.named_modules() if name.startswith("blocks."))
    return sum(sum(layer.weight.shape) for layer in layers if isinstance(layer, Linear))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--size",
    "sizes",
    type=SizeType(),
    default=["576x320"],
    show_default=True,
    multiple=True,
    help="Size of the video, WIDTHxHEIGHT in pixels; repeatable.",
)
@click.option(
    "--precision",
    type=click.Choice([*Precision]),
    default=Precision.BF16,
    show_default=True,
    help="What the engines compute in.",
)
@click.option("--no-text-encoder", is_flag=True, help="Leave out the text encoder: it runs on another device.")
@click.option("--lora-rank", "lora_ranks", type=int, multiple=True, help="Rank of an adapter; repeatable.")
def main(
    *,
    checkpoint: Path,
    sizes: tuple[Size, ...],
    precision: str,
    no_text_encoder: bool,
    lora_ranks: tuple[int, ...],
) -> None:
    """Estimate the memory that a model takes on its device, before it is exported.

    CHECKPOINT is a checkpoint's folder; only its config.json and its text encoder's are read.
    """
    try:
        config = load_config(checkpoint)
        encoder = load_text_encoder_config(checkpoint / "text_encoder", text_dim=config.text_dim)
        for size in sizes:
            parts = estimate_memory(
                config,
                size,
                Precision(precision),
                text_encoder=None if no_text_encoder else encoder,
                lora_ranks=lora_ranks,
            )
            click.echo(f"{size}, {precision}: MiB")
            for name, num_bytes in (*parts.items(), ("total", sum(parts.values()))):
                click.echo(f"{mib(num_bytes):>8}  {name}")
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Not included: TensorRT's working memory, which an engine reports when it is built, and CUDA itself.")


def mib(num_bytes: int) -> str:
    """Bytes in MiB, as the command and the documentation show them."""
    return f"{num_bytes / 2**20:,.0f}"


if __name__ == "__main__":
    main()
