"""`python -m benchmarks`: measure the server against what the machine itself can do."""

import tempfile
import time
from pathlib import Path

import click

from benchmarks import chunks, latency, longlive, previews, report, resource, transfers, video_files
from benchmarks.report import Options
from tests.support.command_line import called_as, exit_on_sigterm, folder_option

README = Path(__file__).with_name("README.md")
BENCHMARKS = {
    "transfers": ("Uploads and downloads", transfers.measure_transfers),
    "chunks": ("Chunks", chunks.measure_chunks),
    "stalls": ("Stalls of the event loop", latency.measure_stalls),
    "latency": ("First event and cancel", latency.measure_latency),
    "resource": ("The generation resource", resource.measure_resource),
    "memory": ("Memory and length", chunks.measure_memory),
    "video-files": ("Video files", video_files.measure_video_files),
    "previews": ("Previews", previews.measure_previews),
    "longlive": ("LongLive", longlive.measure_longlive),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=click.Choice(list(BENCHMARKS)), multiple=True, help="Only this benchmark; repeatable.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Number of rounds.")
@click.option("--quick", is_flag=True, help="Small files and few chunks, to check that the benchmarks work.")
@click.option("--large", is_flag=True, help="Also transfer 1 GB and upload a blob of 2 GiB.")
@click.option("--write", is_flag=True, help="Write the results into benchmarks/README.md.")
@folder_option
def main(*, only: tuple[str, ...], rounds: int, quick: bool, large: bool, write: bool, folder: Path | None) -> None:
    """Compare the server with the limits of the machine.

    A server and its baseline are measured alternately. The tables have the medians of all rounds, and the ratios of
    measurements in the same round. The servers run on loopback.
    """
    exit_on_sigterm()
    sections = []
    for name, (title, measure) in BENCHMARKS.items():
        if only and name not in only:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="filmstrip-benchmarks-", dir=folder) as own:
            rows = measure(Options(Path(own), rounds, quick, large))
        sections.append((title, rows))
        click.echo(f"\n{title}, {time.monotonic() - began:.0f} s\n\n{report.text_table(rows)}")
    command = called_as("benchmarks", without="--write")
    click.echo(f"\n{command}, rounds: {rounds}. {report.machine()}")
    if write:
        report.write(README, report.markdown(command, rounds, sections))
        click.echo(f"Written to {README}.")


if __name__ == "__main__":
    main()
