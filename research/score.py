"""`python -m research score`: how well a served pipeline follows captions that it was not trained on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from filmstrip.client import Client, ClientError
from filmstrip.console import make_client
from filmstrip.errors import FilmstripError
from research.measures import ALL, Generate, Plan, Row, Target, measure, score_frames, targets
from research.served import TIMEOUT_S, UnfitVideo, served_video
from tests.support.toyworld.grammar import ATTRIBUTES
from tests.support.toyworld.videos import Frames, chunk_lengths

__all__ = ["score", "score_frames"]

_TIMESTEP_SHIFT = 5
_COLUMNS = (*ATTRIBUTES, ALL)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Of a running server.")
@click.option("--pipeline", default="longlive-small", show_default=True, help="The pipeline to measure.")
@click.option("--prompts", type=click.IntRange(0), default=64, show_default=True, help="Clips of one prompt each.")
@click.option("--chunks", type=click.IntRange(2), default=8, show_default=True, help="Length of each of these.")
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="Denoising steps of a chunk.")
@click.option("--switches", type=click.IntRange(0), default=32, show_default=True, help="Clips whose prompt changes.")
@click.option("--long", "num_long", type=click.IntRange(0), default=8, show_default=True, help="Long clips.")
@click.option("--long-chunks", type=click.IntRange(5), default=40, show_default=True, help="Length of each of these.")
@click.option("--seed", type=click.IntRange(0), default=1000, show_default=True, help="Of the first clip of a kind.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file for the result.")
def score(url: str, pipeline: str, steps: int, out: Path | None, **given: Any) -> None:
    """Measure how well a pipeline of a running server follows its prompts.

    Every prompt is a sentence of the grammar that no training video shows. The table tells in which share of the
    chunks background, colour, shape and motion are those of the prompt, and, after the slash, the same of true videos:
    what the detectors themselves can tell. The exit status is 1 where a target is missed.
    """
    plan = Plan(
        given["prompts"], given["chunks"], given["switches"], given["num_long"], given["long_chunks"], given["seed"]
    )
    try:
        with make_client(url, "--url", timeout_s=TIMEOUT_S) as client:
            rows = _watched(Served(client, pipeline, _timesteps(client, pipeline, steps)), plan)
    except (FilmstripError, ClientError, UnfitVideo) as error:
        raise click.ClickException(str(error)) from error
    reached = targets(rows)
    console = Console()
    console.print(_table(rows), _target_table(reached))
    if out is not None:
        out.write_text(json.dumps(_facts(pipeline, steps, plan, rows, reached), indent=2) + "\n")
    if not all(target.holds for target in reached):
        click.get_current_context().exit(1)


# -- Through HTTP ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A pipeline behind the HTTP API, as a `Generate`.

    Attributes:
        client: of a running server.
        pipeline: its id.
        timesteps: of the denoising, falling; None for the pipeline's own.
    """

    client: Client
    pipeline: str
    timesteps: list[int] | None = None

    def __call__(self, captions: Sequence[str], seed: int) -> Frames:
        """Generate a video.

        Raises:
            FilmstripError: the server refuses, or its model fails.
            ClientError: it can't be reached.
            UnfitVideo: see `served_video`.
        """
        changes = [
            {"chunk": chunk, "text": text}
            for chunk, (before, text) in enumerate(pairwise(captions), start=1)
            if text != before
        ]
        return served_video(
            self.client,
            sum(chunk_lengths(len(captions))),
            pipeline_id=self.pipeline,
            prompt=captions[0],
            seed=seed,
            denoising_steps=self.timesteps,
            chunk_specs=changes or None,
        )


def _timesteps(client: Client, pipeline: str, num_steps: int) -> list[int] | None:
    """So many timesteps, even ones warped by the shift; None where the pipeline's own are as many."""
    own = (client.pipeline(pipeline).defaults or {}).get("denoising_steps", {}).get("text", ())
    if len(own) == num_steps:
        return None
    even = [1 - step / num_steps for step in range(num_steps)]
    return [round(1000 * _TIMESTEP_SHIFT * s / (1 + (_TIMESTEP_SHIFT - 1) * s)) for s in even]


def _watched(generate: Generate, plan: Plan) -> list[Row]:
    """Measure, with a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("clips", total=plan.num_clips)

        def counted(captions: Sequence[str], seed: int) -> Frames:
            frames = generate(captions, seed)
            bar.advance(task)
            return frames

        return measure(counted, plan)


# -- What is shown --------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Row]) -> Table:
    table = Table("share of chunks / of true videos", *_COLUMNS)
    for row in rows:
        table.add_row(row.what, *(f"{row.shares[name]:.2f} / {row.true[name]:.2f}" for name in _COLUMNS))
    return table


def _target_table(reached: Sequence[Target]) -> Table:
    table = Table("target", "", "share", "threshold", "")
    for target in reached:
        verdict = "[green]ok[/]" if target.holds else "[red]MISSED[/]"
        table.add_row(target.what, target.name, f"{target.share:.3f}", f"{target.threshold:.3f}", verdict)
    return table


def _facts(pipeline: str, steps: int, plan: Plan, rows: Sequence[Row], reached: Sequence[Target]) -> Mapping[str, Any]:
    return {
        "pipeline": pipeline,
        "steps": steps,
        "plan": asdict(plan),
        "rows": [asdict(row) for row in rows],
        "targets": [{**asdict(target), "holds": target.holds} for target in reached],
    }
