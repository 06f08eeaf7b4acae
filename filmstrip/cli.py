"""The `filmstrip` command: generate videos on a server, and ask it what it can do."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from filmstrip import __version__, mp4
from filmstrip.client import Client
from filmstrip.client_errors import ClientError
from filmstrip.console import GenerationProgress, Interrupt, client_of, track
from filmstrip.errors import FilmstripError
from filmstrip.events import Cancelled, Complete, ErrorEvent, Event, Progress
from filmstrip.geometry import MAX_FRAMES, MAX_SIDE, MIN_SIDE, VideoShape

DEFAULT_PIPELINE = "longlive-small"
DEFAULT_FPS = 16
EXIT_INTERRUPTED = 130
_PLACEHOLDER_PROMPT = "video"

_EXAMPLES = """
\b
Examples:
  # What can this server do?
  filmstrip pipelines
\b
  # A video from a sentence, by the small model that every server of `make serve` has
  filmstrip generate "a yellow circle moving left on a green background" -o circle.mp4
\b
  # Draw the outlines of a video, from its grey frames
  filmstrip generate --pipeline scribble --pre-processor gray --video in.mp4 -o out.mp4
\b
  # By another model, with another prompt from chunk 4 on
  filmstrip generate "a cat walking" --pipeline longlive --frames 96 \\
      --chunk-prompt "4: a dog walking" -o pets.mp4
\b
  # Restyle a video; more noise is further from the source
  filmstrip generate "an oil painting" --pipeline longlive --video in.mp4 \\
      --size 320x576 --noise-scale 0.6 -o painting.mp4
"""


class _Commands(click.Group):
    """Turns the errors of all commands into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except FilmstripError as error:
            raise click.ClickException(_one_line(error)) from error
        except (ClientError, mp4.VideoFileError, OSError) as error:
            raise click.ClickException(str(error)) from error


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a height and a width, such as 320x576")
    height, width = int(match[1]), int(match[2])
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
        raise click.BadParameter(f"height and width go from {MIN_SIDE} to {MAX_SIDE}, got {text}")
    return height, width


def _chunk_prompt(text: str) -> tuple[int, str]:
    index, _, prompt = text.partition(":")
    if not index.strip().isdecimal() or not prompt.strip():
        raise click.BadParameter(f"{text!r} is not a chunk and its prompt, such as '4: a dog'")
    return int(index), prompt.strip()


def _lora(text: str) -> tuple[str, float]:
    name, _, scale = text.rpartition("=")
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise click.BadParameter(f"{text!r} is not a LoRA and its scale, such as ghibli=0.8")
    return name, number


def _one_line(error: FilmstripError) -> str:
    return f"{error.field}: {error.message}" if error.field and error.field not in error.message else error.message


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--token", envvar="FILMSTRIP_TOKEN", show_envvar=True, help="Bearer token, where a proxy asks for one."
    )(command)
    return click.option(
        "--server",
        envvar="FILMSTRIP_SERVER",
        default="http://127.0.0.1:8000",
        show_default=True,
        show_envvar=True,
        help="URL of the server.",
    )(command)


@click.group(cls=_Commands, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Generate videos on a Filmstrip server.

    The server makes a video chunk by chunk; this command sends what it needs, shows how far it is and writes
    the result as an MP4.
    """


# -- generate -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Input:
    """The input video as it is sent: scaled here, so that no more is sent than is used."""

    path: Path
    shape: VideoShape
    fps: Fraction

    @classmethod
    def of(cls, path: Path, size: tuple[int, int] | None, max_frames: int | None) -> "_Input":
        info = mp4.probe(path)
        num_frames = mp4.count_frames(path, max_frames or MAX_FRAMES)
        height, width = size or (info.height, info.width)
        return cls(path, VideoShape(num_frames, height, width), info.fps)

    def upload(self, client: Client) -> str:
        frames = mp4.read_frames(self.path, (self.shape.height, self.shape.width), self.shape.frames)
        return client.upload(track(frames, self.shape.frames, "Uploading"), self.shape).input_path


@main.command()
@click.argument("prompt", required=False)
@click.option(
    "--pipeline",
    "-p",
    "pipeline_id",
    envvar="FILMSTRIP_PIPELINE",
    default=DEFAULT_PIPELINE,
    show_default=True,
    show_envvar=True,
    help="Pipeline to run; see `filmstrip pipelines`.",
)
@click.option(
    "--video",
    "-v",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Input video; a shorter one than --frames loops.",
)
@click.option(
    "--frames",
    "num_frames",
    type=click.IntRange(1, MAX_FRAMES),
    help="Frames to make.  [default: those of --video, else 64]",
)
@click.option(
    "--size", type=_size, metavar="HxW", help="Height and width.  [default: the pipeline's own, else those of --video]"
)
@click.option("--seed", type=click.IntRange(0), help="Same request and seed, same video.  [default: 42]")
@click.option("--noise-scale", type=click.FloatRange(0, 1), help="Distance from --video, 0 to 1.  [default: 0.7]")
@click.option("--pre-processor", help="Frame processor before the pipeline.")
@click.option("--post-processor", help="Frame processor after the pipeline.")
@click.option(
    "--chunk-prompt",
    "chunk_prompts",
    type=_chunk_prompt,
    metavar="'INDEX: TEXT'",
    multiple=True,
    help="Prompt from a chunk on; repeatable.",
)
@click.option("--lora", "loras", type=_lora, metavar="NAME=SCALE", multiple=True, help="Scale of a LoRA; repeatable.")
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="MP4 to write.",
)
@click.option(
    "--fps",
    type=click.FloatRange(0, min_open=True),
    help=f"Frames a second of the MP4.  [default: those of --video, else {DEFAULT_FPS}]",
)
@_server_options
def generate(
    *,
    prompt: str | None,
    pipeline_id: str,
    video: Path | None,
    num_frames: int | None,
    size: tuple[int, int] | None,
    chunk_prompts: Sequence[tuple[int, str]],
    loras: Sequence[tuple[str, float]],
    output: Path,
    fps: float | None,
    server: str,
    token: str | None,
    **options: Any,
) -> None:
    """Generate a video from PROMPT, --video or both.

    PROMPT may be left out for pipelines that only process frames. Ctrl-C ends the generation after its current
    chunk and keeps the frames made so far; a second Ctrl-C leaves at once and keeps nothing. Exit codes: 0
    done, 1 failed, 2 wrong usage, 130 cancelled.
    """
    if len({index for index, _ in chunk_prompts}) != len(chunk_prompts):
        raise click.BadParameter("one chunk has two prompts", param_hint="--chunk-prompt")
    if not output.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder of {output} does not exist", param_hint="--output")
    with client_of(server, token=token) as client:
        facts = client.pipeline(pipeline_id)
        if prompt is None and facts.get("features", {}).get("prompts"):
            raise click.UsageError(f"{pipeline_id} needs a PROMPT.")
        own_size = (facts["height"], facts["width"]) if facts.get("height") and facts.get("width") else None
        source = _Input.of(video, size or own_size, num_frames) if video else None
        request = {
            "pipeline_id": pipeline_id,
            "prompt": prompt or _PLACEHOLDER_PROMPT,
            "num_frames": num_frames or (source.shape.frames if source else None),
            "height": size[0] if size else None,
            "width": size[1] if size else None,
            "seed": options["seed"],
            "noise_scale": options["noise_scale"],
            "pre_processor_id": options["pre_processor"],
            "post_processor_id": options["post_processor"],
            "lora_scales": dict(loras) or None,
            "chunk_specs": [{"chunk": index, "text": text} for index, text in chunk_prompts] or None,
            "input_path": source.upload(client) if source else None,
        }
        last = _run(client, request)
        _finish(client, last, output, fps or (source.fps if source else DEFAULT_FPS))


def _run(client: Client, request: Mapping[str, Any]) -> Event:
    """Generate, showing progress; gives the last event."""
    with client.generate(**request) as events, GenerationProgress() as shown, Interrupt(client.cancel, shown.note):
        for event in events:
            if isinstance(event, Progress):
                shown.update(event)
    return event  # the stream has a last event, or raises


def _finish(client: Client, last: Event, output: Path, fps: Fraction | float) -> None:
    """Write what was made, and leave with the exit code that says how it ended."""
    match last:
        case ErrorEvent():
            raise last.exception()
        case Complete():
            _write(client, last.output_path, last.video_shape, output, fps)
        case Cancelled(output_path=str(path), video_shape=VideoShape() as shape):
            _write(client, path, shape, output, fps)
            click.echo(f"Cancelled: {output} holds the {shape.frames} frames made so far.", err=True)
            sys.exit(EXIT_INTERRUPTED)
        case _:
            click.echo("Cancelled before the first frame: nothing was written.", err=True)
            sys.exit(EXIT_INTERRUPTED)


def _write(client: Client, output_path: str, shape: VideoShape, output: Path, fps: Fraction | float) -> None:
    frames = track(client.download_frames(output_path), shape.frames, "Writing")
    num_frames = mp4.write(output, frames, fps)
    click.echo(f"{output}: {num_frames} frames, {shape.height}x{shape.width}, {float(fps):g} fps")


# -- The small commands -------------------------------------------------------------------------------------


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The server's own answer, for scripts.")
@_server_options
def pipelines(*, as_json: bool, server: str, token: str | None) -> None:
    """List the server's pipelines and what they can do."""
    with client_of(server, token=token) as client:
        known = client.pipelines()
    if as_json:
        click.echo(json.dumps(known, indent=2))
        return
    table = Table("Pipeline", "From", "Chunk", "Size", Column("Features", overflow="fold"), "Loaded")
    for pipeline in known:
        size = f"{pipeline['height']}x{pipeline['width']}" if pipeline.get("height") else "its input's"
        features = [name.replace("_", " ") for name, value in pipeline.get("features", {}).items() if value is True]
        features += [f"lora {name}" for name in pipeline.get("features", {}).get("loras", ())]
        table.add_row(
            str(pipeline["id"]),
            ", ".join(pipeline.get("modes", ())),
            str(pipeline.get("chunk_size", "")),
            size,
            ", ".join(features),
            "yes" if pipeline.get("loaded") else "no",
        )
    Console().print(table)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The server's own answers, for scripts.")
@_server_options
def status(*, as_json: bool, server: str, token: str | None) -> None:
    """Say whether the server would take a generation.

    Exit code 1 if not.
    """
    with client_of(server, token=token) as client:
        health = client.health()
        loaded = client.status()
    if as_json:
        click.echo(json.dumps({"health": health, "pipeline": loaded}, indent=2))
    else:
        click.echo(f"Server:   {health['status']}{', generating' if health.get('generating') else ''}")
        click.echo(f"Pipeline: {loaded.get('pipeline_id') or 'none'} {loaded.get('status')}".rstrip())
        if loaded.get("error"):
            click.echo(f"Error:    {loaded['error']}")
    sys.exit(0 if health["status"] == "healthy" else 1)


@main.command()
@_server_options
def cancel(*, server: str, token: str | None) -> None:
    """End the generation under way after its current chunk."""
    with client_of(server, token=token) as client:
        answer = client.cancel()
    click.echo("Cancelling after the current chunk." if answer == "cancelling" else "Nothing is running.")


if __name__ == "__main__":
    main()
