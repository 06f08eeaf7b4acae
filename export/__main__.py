"""`python -m export`: from a checkpoint to a folder of Triton's model repository."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export.errors import BadOptions, ExportError
from export.longlive import ExportConfig, ExportResult, export_longlive
from export.spec import Precision, Size
from export.tensorrt import RTX_TARGETS, BuildOptions
from export.verify import Comparison, table
from filmstrip.runtime.engines.manifest import BadEngine, Builder

_EPILOG = """
\b
On a laptop, for the CPU:
  python -m export longlive --checkpoint checkpoints/longlive-small --id longlive-small --size 64x64
\b
On the GPU node itself, for its GPU:
  python -m export longlive --checkpoint longlive --id longlive --size 320x576 --size 480x832 --builder tensorrt
\b
Ahead of time, without a GPU, for a GeForce RTX 4090 (compute capability 8.9):
  python -m export longlive --checkpoint longlive --id longlive --size 320x576 --builder tensorrt-rtx --target sm89

docs/export.md tells what DIR holds and what comes out.
"""


class _SizeType(click.ParamType[Size]):
    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        match = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", value)
        if match is None:
            self.fail(f"{value!r} is no size: write height x width in pixels, such as 320x576", param, ctx)
        return Size(int(match[1]), int(match[2]))


class _LoraType(click.ParamType[tuple[str, Path]]):
    name = "NAME=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            self.fail(f"{value!r} is no LoRA: write a name and its file, such as ink=ink.safetensors", param, ctx)
        if not Path(path).is_file():
            self.fail(f"there is no file {path}", param, ctx)
        return name, Path(path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Turn checkpoints into folders of Triton's model repository."""


@main.command(epilog=_EPILOG)
@click.option(
    "--checkpoint",
    required=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkpoint: config.json, weights, vae/ and, where there are such, vace/, text_encoder/, lora/.",
)
@click.option("--id", "id_", required=True, metavar="NAME", help="What requests call the pipeline (pipeline_id).")
@click.option(
    "--size",
    "sizes",
    required=True,
    multiple=True,
    type=_SizeType(),
    metavar="HxW",
    help="Height and width of the video in pixels; may be given again. Each is a profile of the same engines, so that "
    "a further size costs no memory for weights. The first is the pipeline's own.",
)
@click.option(
    "--repository",
    default="models",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Triton's model repository, in which the folder NAME is written.",
)
@click.option(
    "--builder",
    type=click.Choice([one.value for one in Builder]),
    default=Builder.ONNX_RUNTIME.value,
    show_default=True,
    help="onnxruntime: the CPU. tensorrt: the GPU of this machine. tensorrt-rtx: GPUs of the RTX kind, built ahead of "
    "time without one.",
)
@click.option(
    "--target",
    metavar="SM,...",
    help=f"With tensorrt-rtx, the GPUs to build for: {', '.join(RTX_TARGETS)}; one engine can serve several.",
)
@click.option(
    "--precision",
    type=click.Choice([one.value for one in Precision]),
    help="What the engines compute in; fp32 on the CPU, else bf16 if not given.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    type=_LoraType(),
    metavar="NAME=FILE",
    help="A LoRA that requests may scale by this name (lora_scales), from chunk to chunk; may be given again. With "
    "other LoRAs than last time only the graphs that they change are made again.",
)
@click.option(
    "--text-encoder-on-cpu",
    is_flag=True,
    help="Beside a GPU's engines, let the CPU encode the prompts: UMT5-XXL takes 11 GiB of a GPU, or tens of seconds "
    "of a CPU for each new prompt.",
)
@click.option("--workspace", type=float, metavar="GIB", help="Most memory that a tactic of TensorRT may take.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="How long TensorRT looks for fast tactics.")
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file in which TensorRT keeps what it has measured, so that the next build is faster.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of ONNX Runtime, in verifying.")
@click.option("--no-verify", is_flag=True, help="Do not compare the engines with PyTorch's modules.")
@click.option("--fresh", is_flag=True, help="Make every engine again, also those that are up to date.")
def longlive(id_: str, loras: Sequence[tuple[str, Path]], **given: Any) -> None:
    """Export a checkpoint of the LongLive family (LongLive, Reward-Forcing, Self-Forcing, your own).

    Every network becomes a graph, every graph an engine; each engine is compared with the PyTorch module that it was
    made of before it is put in its place. What is there and up to date is kept: a command that was stopped goes on
    when it is given again.
    """
    order = _order(id_, loras, **given)
    console = Console(stderr=True)
    with _ConsoleReporter(console) as shown:
        try:
            exported = export_longlive(order, shown)
        except (ExportError, BadEngine) as error:
            shown.stop()
            raise click.ClickException(str(error)) from error
    _tell(console, order, exported)


def _order(id_: str, loras: Sequence[tuple[str, Path]], **given: Any) -> ExportConfig:
    names = [name for name, _ in loras]
    if len(set(names)) < len(names):
        raise click.UsageError("two LoRAs have one name")
    return ExportConfig(
        checkpoint=given["checkpoint"],
        id=id_,
        sizes=tuple(dict.fromkeys(given["sizes"])),
        repository=given["repository"],
        loras=dict(loras),
        tensorrt=_build_options(given),
        text_encoder_on_cpu=given["text_encoder_on_cpu"],
        verify=not given["no_verify"],
        fresh=given["fresh"],
        num_threads=given["threads"],
    )


def _build_options(given: Mapping[str, Any]) -> BuildOptions | None:
    builder = Builder(given["builder"])
    of_tensorrt = ("target", "workspace", "optimization_level", "timing_cache")
    if builder is Builder.ONNX_RUNTIME:
        strange = [f"--{name.replace('_', '-')}" for name in of_tensorrt if given[name] is not None]
        if strange:
            raise click.UsageError(f"{', '.join(strange)}: of TensorRT alone, name a --builder")
        if given["precision"] not in (None, Precision.FP32.value):
            raise click.UsageError("on the CPU engines compute in fp32: ONNX Runtime has no bf16 there")
        return None
    try:
        return BuildOptions(
            builder,
            Precision(given["precision"] or Precision.BF16),
            tuple(given["target"].split(",")) if given["target"] else (),
            given["workspace"],
            given["optimization_level"],
            given["timing_cache"],
        )
    except BadOptions as error:
        raise click.UsageError(str(error)) from error


def _tell(console: Console, order: ExportConfig, exported: ExportResult) -> None:
    made = f"engines made: {len(exported.made)}, kept: {len(exported.kept)}"
    console.print(f"[green]{order.id}[/] is in {exported.folder}: {made}.", soft_wrap=True)
    if exported.not_run:
        console.print("The engines were not run: this machine has no GPU. Their graphs were, in float32 on the CPU.")


class _ConsoleReporter:
    """Progress on a terminal: a bar of the graphs and one of the step at hand; else a line for each step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._comparisons: list[Comparison] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._graphs = self._bar.add_task("graphs", total=None)
        self._step = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was, with the table of what was compared."""
        self._bar.stop()
        if self._comparisons:
            self._console.print(table(self._comparisons))
            self._comparisons = []

    def graphs(self, names: Sequence[str]) -> None:
        """See `ExportObserver`."""
        self._bar.update(self._graphs, total=len(names))

    def begin(self, graph: str, step: str) -> None:
        """See `ExportObserver`."""
        self._bar.reset(self._step, description=f"{graph}: {step}", total=None)
        if not self._console.is_terminal:
            self._console.print(f"{graph}: {step}")

    def progress(self, phase: str, share: float) -> None:
        """See `ExportObserver`."""
        self._bar.update(self._step, description=phase, completed=share, total=1)

    def compared(self, comparisons: Sequence[Comparison]) -> None:
        """See `ExportObserver`."""
        self._comparisons += comparisons

    def done(self) -> None:
        """See `ExportObserver`."""
        self._bar.advance(self._graphs)


if __name__ == "__main__":
    main(prog_name="python -m export")
