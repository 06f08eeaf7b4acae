"""The command: `python -m export.compile_full`."""

import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from export.builders.options import RTX_TARGETS
from export.errors import ExportError
from export.full_size import JOBS, Entry, Order, compile_jobs

_TARGETS = Order().targets
_MIB = 1 << 20


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/compile-full.json"), show_default=True)
@click.option("--graph", "graphs", multiple=True, type=click.Choice([job.label for job in JOBS]), help="default: all")
@click.option("--target", "targets", multiple=True, type=click.Choice(list(RTX_TARGETS)), default=_TARGETS)
@click.option("--fresh", is_flag=True, help="compile again what the file has already")
def main(out: Path, graphs: tuple[str, ...], targets: tuple[str, ...], fresh: bool) -> None:
    """Compile LongLive at full size, without its weights, for GPUs that need not be here.

    It takes a quarter of an hour on two cores and 8 GiB of memory. Run again after a stop, it goes on.
    """
    console = Console()
    if fresh:
        out.unlink(missing_ok=True)
    began = time.monotonic()
    jobs = tuple(job for job in JOBS if not graphs or job.label in graphs)
    try:
        entries = compile_jobs(Order(targets=targets), jobs, out, console.print)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    console.print(table(entries))
    console.print(f"{out}: {len(entries)} entries; {(time.monotonic() - began) / 60:.1f} minutes", soft_wrap=True)


def table(entries: list[Entry]) -> Table:
    """Entries as a table: GPU MiB are of tensors and scratch space, beside the plan."""
    shown = Table()
    for heading in ("graph", "size"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("s", "of it compiling", "peak MiB", "plan MiB", "GPU MiB"):
        shown.add_column(heading, justify="right")
    for entry in entries:
        numbers = (entry.seconds, entry.compile_seconds, entry.peak_mib, entry.plan_bytes / _MIB, entry.activation_mib)
        shown.add_row(entry.graph, entry.size, *(f"{number:.0f}" for number in numbers))
    return shown


if __name__ == "__main__":
    main()
