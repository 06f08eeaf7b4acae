"""The command `python -m export`: from a checkpoint to a model folder in Triton's model repository."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export.errors import BadOptions, ExportError
from export.inspection import describe, inspect_file
from export.longlive import ExportConfig, ExportResult, export_longlive
from export.option_types import LoraType, SizeType
from export.plan import describe_plan, plan_export
from export.presets import PRESETS, Preset, find_preset
from export.record import network_of
from export.spec import Precision, Size
from export.tensor_files import WeightChoice, WeightSet, is_weight_file
from export.tensorrt import RTX_TARGETS, BuildOptions
from export.verify import Comparison, comparison_table
from filmstrip.runtime.engines.manifest import BadEngine, Builder

_EPILOG = """
\b
LongLive as it is on the Hugging Face hub: first look what would be downloaded, then export it:
  python -m export longlive --preset longlive-1.3b --plan
  python -m export longlive --preset longlive-1.3b --id longlive --size 832x480 --builder tensorrt
\b
On a laptop, for the CPU:
  python -m export longlive --checkpoint checkpoints/longlive-small --id longlive-small --size 64x64
\b
On the GPU node itself, for its GPU:
  python -m export longlive --checkpoint longlive --id longlive --size 576x320 --size 832x480 --builder tensorrt
\b
Ahead of time, without a GPU, for a GeForce RTX 4090 (compute capability 8.9):
  python -m export longlive --checkpoint longlive --id longlive --size 576x320 --builder tensorrt-rtx --target sm89

docs/export.md describes what DIR holds and what is written.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Export checkpoints to model folders in Triton's model repository."""


@main.command(epilog=_EPILOG, short_help="Export a LongLive-family checkpoint.")
@click.option(
    "--checkpoint",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkpoint: config.json, weights, vae/ and, optionally, vace/, text_encoder/ and lora/.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help=f"In place of --checkpoint, a released model, whose files are as their authors published them: "
    f"{', '.join(PRESETS)}.",
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="PATH|HUB-ID",
    help="With --preset, a folder or file, or a repository of the Hugging Face hub (needs huggingface_hub); "
    "repeatable, searched in this order.  [default: the authors' own repositories]",
)
@click.option(
    "--vace/--no-vace",
    default=None,
    help="With --preset, export the VACE branch, or leave it out.  [default: if a folder of --from has it]",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Only print what would be read, from where, its size, the memory it takes.",
)
@click.option("--id", "id_", metavar="NAME", help="The pipeline's name in requests (pipeline_id).  [required]")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=SizeType(),
    metavar="WxH",
    help="Video size, WIDTHxHEIGHT in pixels; repeatable. Each size is a profile of the same engines, so further sizes "
    "take no memory for weights. The first is the pipeline's own.  [required]",
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
    help="onnxruntime: for the CPU. tensorrt: for this machine's GPU. tensorrt-rtx: for RTX GPUs, ahead of time and "
    "without one.",
)
@click.option(
    "--target",
    metavar="SM,...",
    help=f"With tensorrt-rtx, the GPUs to build for: {', '.join(RTX_TARGETS)}; one engine can serve several.",
)
@click.option(
    "--precision",
    type=click.Choice([one.value for one in Precision]),
    help="Number format that the engines compute in.  [default: fp32 on the CPU, otherwise bf16]",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    type=LoraType(),
    metavar="NAME=FILE",
    help="A LoRA that requests can scale by this name (lora_scales), chunk by chunk; repeatable. If the LoRAs have "
    "changed since the last export, only the graphs that they affect are built again.",
)
@click.option(
    "--weights",
    type=click.Choice([one.value for one in WeightSet]),
    help="If a training checkpoint has both: the moving average of the weights (ema), or the weights as trained "
    "(online).",
)
@click.option(
    "--text-encoder-on-cpu",
    is_flag=True,
    help="With a GPU's engines, encode prompts on the CPU: UMT5-XXL takes 11 GiB of GPU memory, or tens of seconds of "
    "CPU time for each new prompt.",
)
@click.option("--workspace", type=float, metavar="GIB", help="TensorRT: maximum memory that a tactic may use.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="TensorRT: how long to search for fast tactics.")
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TensorRT: a file that keeps its measurements and makes the next build faster.",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Threads of ONNX Runtime while engines are verified.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare the engines with the PyTorch modules.")
@click.option("--fresh", is_flag=True, help="Build every engine again, even those that are up to date.")
def longlive(
    *,
    checkpoint: Path | None,
    preset: str | None,
    sources: Sequence[str],
    vace: bool | None,
    only_plan: bool,
    id_: str | None,
    sizes: Sequence[Size],
    repository: Path,
    builder: str,
    target: str | None,
    precision: str | None,
    loras: Sequence[tuple[str, Path]],
    weights: str | None,
    text_encoder_on_cpu: bool,
    workspace: float | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    threads: int,
    no_verify: bool,
    fresh: bool,
) -> None:
    """Export a checkpoint of the LongLive family (LongLive, Reward-Forcing, Self-Forcing, your own).

    Every network becomes a graph and every graph an engine. Each engine is compared with the PyTorch module that it was
    built from before it is moved into place. Engines that are up to date are kept: if the command is stopped, run it
    again and it continues.
    """
    if len({name for name, _ in loras}) < len(loras):
        raise click.UsageError("two LoRAs have the same name")
    tensorrt_only = {
        "--target": target,
        "--workspace": workspace,
        "--optimization-level": optimization_level,
        "--timing-cache": timing_cache,
    }
    tensorrt = None
    if Builder(builder) is Builder.ONNX_RUNTIME:
        given = [option for option, value in tensorrt_only.items() if value is not None]
        if given:
            raise click.UsageError(f"{', '.join(given)}: only for TensorRT; choose a --builder")
        if precision not in (None, Precision.FP32.value):
            raise click.UsageError("engines for the CPU compute in fp32: ONNX Runtime has no bf16 there")
    else:
        try:
            tensorrt = BuildOptions(
                Builder(builder),
                Precision(precision or Precision.BF16),
                tuple(target.split(",")) if target else (),
                workspace,
                optimization_level,
                timing_cache,
            )
        except BadOptions as error:
            raise click.UsageError(str(error)) from error
    config = ExportConfig(
        checkpoint=checkpoint,
        preset=_preset(checkpoint, preset, sources, vace),
        sources=tuple(sources),
        vace=vace,
        id=id_ or "",
        sizes=tuple(dict.fromkeys(sizes or ([Size(height=320, width=576)] if only_plan else []))),
        repository=repository,
        loras=dict(loras),
        tensorrt=tensorrt,
        text_encoder_on_cpu=text_encoder_on_cpu,
        verify=not no_verify,
        fresh=fresh,
        num_threads=threads,
        weights=WeightChoice(None if weights is None else WeightSet(weights)),
    )
    if only_plan:
        _plan(config, Precision(precision or (Precision.FP32 if tensorrt is None else Precision.BF16)))
        return
    for option, value in (("--id", id_), ("--size", sizes)):
        if not value:
            raise click.UsageError(f"missing option {option}")
    console = Console(stderr=True)
    with _ConsoleReporter(console) as reporter:
        try:
            result = export_longlive(config, reporter)
        except (ExportError, BadEngine) as error:
            reporter.stop()
            raise click.ClickException(str(error)) from error
    _print_result(console, config, result)


def _preset(checkpoint: Path | None, name: str | None, sources: Sequence[str], vace: bool | None) -> Preset | None:
    """The preset that was named, None for a checkpoint's folder."""
    if (checkpoint is None) == (name is None):
        raise click.UsageError("give either --checkpoint DIR or --preset NAME")
    if name is None:
        if sources or vace is not None:
            raise click.UsageError("--from and --vace are only for --preset")
        return None
    try:
        return find_preset(name)
    except ExportError as error:
        raise click.UsageError(f"--preset: {error}") from error


def _plan(config: ExportConfig, precision: Precision) -> None:
    """Print the plan of an export; status 1 if something is missing."""
    try:
        plan = plan_export(config, precision)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    click.echo(describe_plan(plan))
    if plan.missing:
        raise SystemExit(1)


_INSPECT_EPILOG = """
\b
Examples:
  python -m export inspect longlive_base.pt
  python -m export inspect style.safetensors --for checkpoints/longlive-small

The exit code is 0 if the export can use every file, 1 if not, 2 for a wrong option.
"""


@main.command(epilog=_INSPECT_EPILOG, short_help="Say what a file of weights is.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    metavar="DIR",
    help="Compare a LoRA with a network: the folder of a checkpoint, or of an exported pipeline.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object, or a list for several files.")
def inspect(*, paths: Sequence[Path], target: str | None, as_json: bool) -> None:
    """Say what files are: the network that they belong to, layout, number format, rank and targets of a LoRA.

    A file is usable if its names are those of a known network, whatever its dimensions. A folder stands for the files
    of weights in it.
    """
    try:
        network = None if target is None else network_of(target)
    except ExportError as error:
        raise click.UsageError(f"--for: {error}") from error
    reports = [inspect_file(path, network) for path in _files_in(paths)]
    if as_json:
        values = [report.to_dict() for report in reports]
        click.echo(json.dumps(values[0] if len(values) == 1 else values, indent=2))
    else:
        click.echo("\n".join(describe(report) for report in reports))
    if not all(report.usable for report in reports):
        raise SystemExit(1)


def _files_in(paths: Sequence[Path]) -> list[Path]:
    """The files of paths, those of a folder included; a folder without any stands for itself."""
    files = []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if is_weight_file(file)) if path.is_dir() else []
        files += inside or [path]
    return files


def _print_result(console: Console, config: ExportConfig, result: ExportResult) -> None:
    engines = f"engines built: {len(result.built)}, kept: {len(result.kept)}"
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    console.print(f"[green]{config.id}[/] is in {result.folder}; {engines}.", soft_wrap=True)
    if not result.ran_engines:
        console.print("The engines were not run: this machine has no GPU. Their graphs were, in float32 on the CPU.")


class _ConsoleReporter:
    """Shows progress: bars for the graphs and the current step on a terminal, otherwise a line per step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._comparisons: list[Comparison] = []
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._graphs = self._bars.add_task("graphs", total=None)
        self._step = self._bars.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Restore the terminal and print the table of comparisons."""
        self._bars.stop()
        if self._comparisons:
            self._console.print(comparison_table(self._comparisons))
            self._comparisons = []

    def on_graphs(self, names: Sequence[str]) -> None:
        self._bars.update(self._graphs, total=len(names))

    def on_step(self, graph: str, step: str) -> None:
        self._bars.reset(self._step, description=f"{graph}: {step}", total=None)
        if not self._console.is_terminal:
            self._console.print(f"{graph}: {step}")

    def on_progress(self, phase: str, share: float) -> None:
        self._bars.update(self._step, description=phase, completed=share, total=1)

    def on_verified(self, comparisons: Sequence[Comparison]) -> None:
        self._comparisons += comparisons

    def on_graph_done(self) -> None:
        self._bars.advance(self._graphs)


if __name__ == "__main__":
    main(prog_name="python -m export")
