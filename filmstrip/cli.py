"""The `filmstrip` command: generate videos on a server, and ask it what it can do."""

import functools
import importlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from filmstrip import __version__, connection_settings
from filmstrip.client import Client
from filmstrip.console import CancelOnInterrupt, GenerationProgress, exit_on_signals, make_client, track
from filmstrip.errors import (
    Busy,
    ClientError,
    FilmstripError,
    InvalidField,
    ServerUnreachable,
    TimedOut,
    TlsUnsupported,
    TritonUnavailable,
    Unauthorized,
    UnexpectedAnswer,
    UnknownPath,
    UntrustedCertificate,
    counted,
)
from filmstrip.foreign_answers import UNREACHED
from filmstrip.geometry import DEFAULT_FPS, MAX_FRAMES, MAX_REQUEST_SIDE, MIN_SIDE
from filmstrip.models import Cancelled, Complete, ErrorEvent, Event, PipelineFeatures, PipelineInfo, Progress
from filmstrip.request_fields import MAX_SEED, GenerateFields
from filmstrip.video import count_frames, probe, read_frames
from filmstrip.video.read import VideoFileError, display_path
from filmstrip.video.write import MAX_FPS, MIN_FPS, Output, open_output
from filmstrip.waiting import Retry, loaded_pipelines
from filmstrip.wire import VideoShape

DEFAULT_PIPELINE = "longlive-small"
MAX_SCALE = 16
MAX_SCALED_SIDE = 8192
EXIT_FAILED = 1
EXIT_UNREACHABLE = 3
EXIT_BUSY = 4
EXIT_INTERRUPTED = 130
_EXIT_CODES = (
    f"Exit codes: 0 success, {EXIT_FAILED} failure, 2 wrong usage, {EXIT_UNREACHABLE} server not reached,"
    f" {EXIT_BUSY} server busy, 129, {EXIT_INTERRUPTED} or 143 ended by SIGHUP, Ctrl-C or SIGTERM."
)
_PIPE_WIDTH = 10_000

_EXAMPLES = """
\b
Examples:
  # What can this server do?
  filmstrip pipelines
\b
  # A video from a prompt, with the small model that `make serve` sets up
  filmstrip generate "a yellow circle moving left on a green background" -o circle.mp4
\b
  # Draw the outlines of a video, after converting it to grayscale
  filmstrip generate --pipeline scribble --pre-processor gray --video in.mp4 -o out.mp4
\b
  # Use another model, and change the prompt at chunk 4
  filmstrip generate "a cat walking" --pipeline longlive --frames 96 \\
      --chunk-prompt "4: a dog walking" -o pets.mp4
\b
  # Restyle a video; more noise moves further away from the source
  filmstrip generate "an oil painting" --pipeline longlive --video in.mp4 \\
      --size 576x320 --noise-scale 0.6 -o painting.mp4
"""


class _Failure(click.ClickException):
    """A failure with its exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable to click's types


class _Commands(click.Group):
    """Reports the errors of all commands as one sentence on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with exit_on_signals():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            raise  # the reader of our output closed the pipe: click exits quietly
        except (FilmstripError, ClientError, VideoFileError, OSError) as error:
            message = _sentence(error)
            if isinstance(error, TritonUnavailable) and ctx.invoked_subcommand == generate.name:
                message += "; if the server is still starting, use --wait"
            raise _Failure(message, _exit_code(error)) from error


def _exit_code(error: Exception) -> int:
    unreached = isinstance(error, UnexpectedAnswer) and error.status in UNREACHED
    if unreached or isinstance(error, ServerUnreachable | TimedOut):
        return EXIT_UNREACHABLE
    return EXIT_BUSY if isinstance(error, Busy) else EXIT_FAILED


def _sentence(error: Exception) -> str:
    """What went wrong and what to do about it, on one line without control characters."""
    message = str(error)
    if isinstance(error, FilmstripError) and error.field and error.field not in error.message:
        message = f"{error.field}: {error.message}"
    if isinstance(error, Busy):
        message += "; use --wait to wait until it is free"
    if isinstance(error, UntrustedCertificate):
        message += "; use --cacert FILE to trust its certificate authority"
    elif isinstance(error, ServerUnreachable) and not isinstance(error, TlsUnsupported):
        message += "; is the server running?"
    return _one_line(message)


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT; gives (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not WIDTHxHEIGHT, such as 576x320")
    width, height = int(match[1]), int(match[2])
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_REQUEST_SIDE:
        raise click.BadParameter(f"width and height must be between {MIN_SIDE} and {MAX_REQUEST_SIDE}, got {text}")
    return height, width


def _check_orientation(size: tuple[int, int], pipeline: PipelineInfo) -> None:
    """Refuse a size that the pipeline only supports the other way round."""
    height, width = size
    known = pipeline.sizes or ()
    if (height, width) not in known and (width, height) in known:
        raise click.BadParameter(
            f"did you mean {height}x{width}? sizes are WIDTHxHEIGHT since 0.1.0", param_hint="--size"
        )


def _chunk_prompt(text: str) -> tuple[int, str]:
    index, _, prompt = text.partition(":")
    if not index.strip().isdecimal() or not prompt.strip():
        raise click.BadParameter(f"{text!r} is not INDEX: TEXT, such as '4: a dog'")
    return int(index), _sendable(prompt.strip())


def _lora(text: str) -> tuple[str, float]:
    name, _, scale = text.rpartition("=")
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise click.BadParameter(f"{text!r} is not NAME=SCALE, such as ghibli=0.8")
    return _sendable(name), number


def _sendable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("the text is not valid UTF-8; set the terminal's encoding (LANG) to UTF-8") from None
    return text


class _Finite(click.FloatRange):
    """A range that excludes NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class _OutputPath(click.Path):
    """The name of a file to write; not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty.", param, ctx)
        return super().convert(value, param, ctx)


@dataclass(frozen=True)
class _ServerOptions:
    """The options that select a server."""

    url: str | None
    token: str | None
    cacert: Path | None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of that server; an error 401 says how to give a key."""
        with make_client(self.url, token=self.token, cacert=self.cacert) as client:
            try:
                yield client
            except (Unauthorized, UnexpectedAnswer) as error:
                if error.status != Unauthorized.status:
                    raise
                raise _Failure(f"{_sentence(error)}. {self._how_to_give_a_key()}") from error

    def options(self) -> list[str]:
        """The command-line options for the same server; never the token."""
        options = ["--server", self.url] if self.url is not None else []
        return options + (["--cacert", str(self.cacert)] if self.cacert is not None else [])

    def _how_to_give_a_key(self) -> str:
        target = connection_settings.resolve_server(self.url, self.token)
        if target.token_withheld:
            return (
                "FILMSTRIP_TOKEN was not sent: it belongs to the server in FILMSTRIP_SERVER (default"
                f" {connection_settings.DEFAULT_URL}). Give this server's key with --token."
            )
        if target.token is None:
            return "Give the key with --token or in FILMSTRIP_TOKEN."
        return "Check the key in --token or FILMSTRIP_TOKEN."


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_server(*, server: str | None, token: str | None, cacert: Path | None, **others: Any) -> Any:
        return command(server=_ServerOptions(server or None, token, cacert), **others)

    for option in (
        click.option(
            "--cacert",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="PEM file with the certificate authorities to trust instead of the default ones.",
        ),
        click.option(
            "--token",
            metavar="KEY",
            help="API key of the server, or of a proxy in front of it.  [env var: FILMSTRIP_TOKEN, only sent to the"
            " server in FILMSTRIP_SERVER or to the default server]",
        ),
        click.option(
            "--server",
            metavar="URL",
            help=f"URL of the server.  [env var: FILMSTRIP_SERVER; default: {connection_settings.DEFAULT_URL}]",
        ),
    ):
        with_server = option(with_server)
    return with_server


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--scale",
            type=click.IntRange(1, MAX_SCALE),
            metavar="N",
            default=1,
            show_default=True,
            help="Enlarge the frames N times without smoothing.",
        ),
        click.option(
            "--fps",
            type=_Finite(MIN_FPS, MAX_FPS),
            metavar="N",
            help=f"Frames per second of the file.  [default: that of the input video, else {DEFAULT_FPS}]",
        ),
        click.option(
            "--output",
            "-o",
            required=True,
            type=_OutputPath(readable=False, path_type=Path),
            metavar="FILE",
            help="File to write. The suffix selects the format: .mp4, .mov, .mkv, .webm or .gif; .png writes a contact"
            " sheet, name-%05d.png one image per frame.",
        ),
    ):
        command = option(command)
    return command


def _open_output(path: Path) -> Output:
    """Open the output before anything is sent.

    Raises:
        BadParameter: nothing can be written there.
    """
    try:
        return open_output(path)
    except VideoFileError as error:
        raise click.BadParameter(str(error), param_hint="--output") from None


def _note(text: str) -> None:
    click.echo(text, err=True)


@click.group(cls=_Commands, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Generate videos on a Filmstrip server.

    The server generates a video chunk by chunk. This command uploads the inputs, shows the progress and writes the
    result to a file.

    Exit codes of every command: 0 success, 1 failure, 2 wrong usage, 3 server not reached, 4 server busy, 129, 130 or
    143 ended by SIGHUP, Ctrl-C or SIGTERM.
    """


@dataclass(frozen=True)
class _Input:
    """The input video, scaled and cut before the upload: the server would not use the rest."""

    path: Path
    shape: VideoShape
    fps: Fraction

    @classmethod
    def of(cls, path: Path, size: tuple[int, int] | None, max_frames: int | None) -> "_Input":
        info = probe(path)
        num_frames = count_frames(path, max_frames or MAX_FRAMES)
        height, width = size or (info.height, info.width)
        return cls(path, VideoShape(num_frames, height, width), info.fps)

    def upload(self, client: Client) -> str:
        frames = read_frames(self.path, (self.shape.height, self.shape.width), self.shape.frames)
        return client.upload(track(frames, self.shape.frames, "Uploading"), self.shape).input_path


@main.command(epilog=_EXIT_CODES)
@click.argument("prompt", required=False, type=_sendable)
@click.option(
    "--pipeline",
    "-p",
    "pipeline_id",
    envvar="FILMSTRIP_PIPELINE",
    default=DEFAULT_PIPELINE,
    show_default=True,
    show_envvar=True,
    type=_sendable,
    metavar="ID",
    help="Pipeline to run; see `filmstrip pipelines`. It is loaded first if necessary.",
)
@click.option(
    "--video",
    "-v",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Input video; it loops if it is shorter than --frames. Its sound is kept if the output shows the same frames"
    " at the same rate.",
)
@click.option(
    "--frames",
    "num_frames",
    type=click.IntRange(1, MAX_FRAMES),
    metavar="N",
    help="Number of frames to generate.  [default: that of --video, else 64]",
)
@click.option(
    "--size",
    type=_size,
    metavar="WIDTHxHEIGHT",
    help="Size of the frames, such as 576x320.  [default: the pipeline's own, else that of --video]",
)
@click.option(
    "--seed",
    type=click.IntRange(-1, MAX_SEED),
    metavar="N",
    help="0 to 2^64 - 1: the same request and seed give the same video. -1: a random seed, which is shown.  "
    "[default: 42]",
)
@click.option(
    "--noise-scale", type=_Finite(0, 1), metavar="N", help="How far to move away from --video, 0 to 1.  [default: 0.7]"
)
@click.option("--pre-processor", type=_sendable, metavar="ID", help="Frame processor before the pipeline.")
@click.option("--post-processor", type=_sendable, metavar="ID", help="Frame processor after the pipeline.")
@click.option(
    "--chunk-prompt",
    "chunk_prompts",
    type=_chunk_prompt,
    metavar="'INDEX: TEXT'",
    multiple=True,
    help="Change the prompt at a chunk, counted from 0; repeatable.",
)
@click.option("--lora", "loras", type=_lora, metavar="NAME=SCALE", multiple=True, help="Scale of a LoRA; repeatable.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait while the server is busy or still starting, and up to a minute while it refuses connections, instead of"
    " failing.",
)
@_file_options
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
    wait: bool,
    output: Path,
    fps: float | None,
    scale: int,
    server: _ServerOptions,
    **options: Any,
) -> None:
    """Generate a video from PROMPT, --video or both.

    Pipelines that only process frames need no PROMPT. Ctrl-C ends the generation after the current chunk and keeps the
    frames generated so far; a second Ctrl-C exits at once and keeps nothing. A finished video is not lost: if FILE
    cannot be written, the message says how to download the video again.
    """
    if len({index for index, _ in chunk_prompts}) != len(chunk_prompts):
        raise click.BadParameter("two prompts for one chunk", param_hint="--chunk-prompt")
    with _open_output(output) as file, server.client() as client:
        retry = Retry(client, _note, waits=wait)
        used = [pipeline_id, *(options[name] for name in ("pre_processor", "post_processor") if options[name])]
        pipeline = retry.call(lambda: loaded_pipelines(client, used, _note))[pipeline_id]
        if prompt is None and pipeline.features and pipeline.features.prompts:
            raise click.UsageError(f"{pipeline_id} needs a PROMPT.")
        if size:
            _check_orientation(size, pipeline)
        frame_size = size or pipeline.native_size
        source = _Input.of(video, frame_size, num_frames) if video else None
        request: GenerateFields = {
            "pipeline_id": pipeline_id,
            "prompt": prompt or "",
            "num_frames": num_frames or (source.shape.frames if source else None),
            "height": size[0] if size else None,
            "width": size[1] if size else None,
            "seed": options["seed"],
            "noise_scale": options["noise_scale"],
            "pre_processor_id": options["pre_processor"],
            "post_processor_id": options["post_processor"],
            "lora_scales": dict(loras) or None,
            "chunk_specs": [{"chunk": index, "text": text} for index, text in chunk_prompts] or None,
        }
        height, width = frame_size or (source.shape[1:3] if source else (0, 0))
        if max(height, width) * scale > MAX_SCALED_SIDE:
            raise click.BadParameter(
                f"{width}x{height} enlarged {scale} times exceeds {MAX_SCALED_SIDE} pixels", param_hint="--scale"
            )
        writer = _ResultWriter(server, file, fps or (source.fps if source else DEFAULT_FPS), scale, video)
        try:
            _run(client, retry, request, source, writer)
        except InvalidField as error:
            if source is None and error.field == "input_path":
                raise _Failure(f"{_sentence(error)}; use --video FILE") from error
            raise


@dataclass
class _ResultWriter:
    """Downloads a result and writes it to a file.

    Attributes:
        server: the server that has the result.
        file: the output file.
        fps: frames per second of the file.
        scale: how many times the frames are enlarged.
        audio: the video whose sound is kept.
        output_path: the server's name for the result; None while there is none.
    """

    server: _ServerOptions
    file: Output
    fps: Fraction | float
    scale: int = 1
    audio: Path | None = None
    output_path: str | None = None

    def write(self, client: Client, output_path: str, shape: VideoShape) -> None:
        """Download a result and write it."""
        self.output_path = output_path
        frames = track(client.download_frames(output_path), shape.frames, "Writing")
        written = self.file.write(frames, self.fps, num_frames=shape.frames, scale=self.scale, audio=self.audio)
        self.output_path = None
        click.echo(
            f"{display_path(self.file.path)}: {counted(written.num_frames, 'frame')}, {shape.width * self.scale}x"
            f"{shape.height * self.scale}, {float(self.fps):g} fps"
        )
        for note in written.notes:
            _note(f"Note: {note.rstrip('.')}.")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """If anything fails before the result is written, say how to download it."""
        try:
            yield
        except BaseException:
            if self.output_path is not None:
                _note("The video is not lost: the server keeps it for an hour by default. Download it with:")
                _note(f"  {self._command()}")
            raise

    def _command(self) -> str:
        assert self.output_path is not None
        options = ["-o", str(self.file.path), "--fps", f"{float(self.fps):.15g}"]
        if self.scale != 1:
            options += ["--scale", str(self.scale)]
        if self.audio is not None:
            options += ["--audio", str(self.audio)]
        words = ["filmstrip", "download", self.output_path, *options, *self.server.options()]
        return " ".join(shlex.quote(word) if word.isprintable() else "FILE" for word in words)


def _run(client: Client, retry: Retry, request: GenerateFields, source: _Input | None, writer: _ResultWriter) -> None:
    """Upload, generate with progress, write the file; exit with the code that says how it ended."""
    last: Complete | Cancelled | None = None
    with writer.kept():
        with ExitStack() as stack:
            events = retry.call(lambda: _start(client, request, source, stack))
            shown = stack.enter_context(GenerationProgress())
            stack.enter_context(CancelOnInterrupt(client.cancel, shown.note))
            for event in events:
                if isinstance(event, Progress):
                    shown.update(event)
                elif isinstance(event, Complete | Cancelled):
                    last, writer.output_path = event, event.output_path
                elif isinstance(event, ErrorEvent):
                    raise event.exception()
        assert last is not None, "the stream has a last event, or raises"
        if last.seed is not None and request["seed"] == -1:
            _note(f"Seed: {last.seed} (--seed {last.seed} generates the same video again)")
        if last.unused:
            _note(f"Note: {request['pipeline_id']} does not use {', '.join(last.unused)}.")
        if last.output_path is not None and last.video_shape is not None:
            writer.write(client, last.output_path, last.video_shape)
    if isinstance(last, Cancelled):
        path = display_path(writer.file.path)
        kept = f"Cancelled: {path} has the {counted(last.frames_completed, 'frame')} generated so far."
        _note(kept if last.output_path else "Cancelled before the first frame: nothing was written.")
        sys.exit(EXIT_INTERRUPTED)


def _start(client: Client, request: GenerateFields, source: _Input | None, stack: ExitStack) -> Iterator[Event]:
    """Upload the input video and post the request; upload it again if it has expired in the meantime."""
    was_uploaded = "input_path" in request
    if source and not was_uploaded:
        request["input_path"] = source.upload(client)
    try:
        return stack.enter_context(client.generate(**request))
    except UnknownPath:
        if not was_uploaded:
            raise
        del request["input_path"]
        return _start(client, request, source, stack)


@main.command(epilog=_EXIT_CODES)
@click.argument("path", type=_sendable)
@click.option(
    "--audio",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Input video whose sound is kept, if the output shows its frames at its rate.",
)
@_file_options
@_server_options
def download(
    *, path: str, audio: Path | None, output: Path, fps: float | None, scale: int, server: _ServerOptions
) -> None:
    """Download the result PATH and write it to a file.

    PATH is the server's name for a result (`output_path`), such as output-8f6c...; the server keeps it for an hour by
    default. `filmstrip generate` downloads its result itself, and shows this command if that fails.
    """
    with _open_output(output) as file, server.client() as client:
        rate = fps or (probe(audio).fps if audio else DEFAULT_FPS)
        _ResultWriter(server, file, rate, scale, audio).write(client, path, client.output_shape(path))


def _cell(text: str) -> Text:
    """Text without markup and control characters."""
    return Text(_one_line(text))


@main.command(epilog=_EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
@_server_options
def pipelines(*, as_json: bool, server: _ServerOptions) -> None:
    """List the server's pipelines and what they can do."""
    with server.client() as client:
        known = client.pipelines()
    if as_json:
        click.echo(json.dumps([pipeline.model_dump(mode="json", exclude_unset=True) for pipeline in known], indent=2))
        return
    names = ("Pipeline", "From", "Chunk", "Size", "Features", "State")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for pipeline in known:
        cells = ["", "", ""]
        if pipeline.chunk_size:
            height, width = pipeline.native_size or (None, None)
            size = f"{width}x{height}" if width else "its input's"
            cells = [", ".join(pipeline.modes or ()), str(pipeline.chunk_size), size]
        table.add_row(*map(_cell, [pipeline.id, *cells, ", ".join(_feature_names(pipeline)), pipeline.state]))
    console = Console()
    if not console.is_terminal:  # whatever reads a pipe or a file has no width
        console = Console(width=_PIPE_WIDTH)
    console.print(table)
    for pipeline in known:
        if pipeline.reason:
            verb = pipeline.state if pipeline.state == "failed" else f"is {pipeline.state}"
            click.echo(f"{pipeline.id} {verb}: {_one_line(pipeline.reason)}")


def _feature_names(pipeline: PipelineInfo) -> list[str]:
    features = pipeline.features or PipelineFeatures()
    names = [name.replace("_", " ") for name, value in features if value is True]
    return names + [f"lora {name}" for name in features.loras]


@main.command(epilog=_EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print the server's answers as JSON.")
@_server_options
def status(*, as_json: bool, server: _ServerOptions) -> None:
    """Show whether the server is healthy.

    Exit code 1 means that it is starting, or that no pipeline can generate.
    """
    with server.client() as client:
        health = client.health()
        load = client.load_status()
    if as_json:
        answers = {"health": health, "pipeline": load}
        dumped = {name: answer.model_dump(mode="json", exclude_unset=True) for name, answer in answers.items()}
        click.echo(json.dumps(dumped, indent=2))
    else:
        click.echo(f"Server:    {health.status}{', generating' if health.generating else ''}")
        click.echo(f"Last load: {f'{load.pipeline_id} {load.status}' if load.pipeline_id else 'none'}")
        if load.error:
            click.echo(f"Error:     {_one_line(load.error)}")
        if health.degraded:
            click.echo(f"Degraded:  {', '.join(health.degraded)}; see `filmstrip pipelines`")
    sys.exit(0 if health.status == "healthy" else 1)


@main.command(epilog=_EXIT_CODES)
@_server_options
def cancel(*, server: _ServerOptions) -> None:
    """End the running generation after its current chunk."""
    with server.client() as client:
        answer = client.cancel()
    click.echo("Cancelling after the current chunk." if answer == "cancelling" else "Nothing is running.")


@main.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a server (needs the `server` extra).",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Run a server; all arguments, --help included, go to the server's own command."""
    try:  # imported only here: the client needs nothing of the server
        server = importlib.import_module("filmstrip.server.__main__")
    except ModuleNotFoundError as error:
        message = (
            f"the server is not installed ({error.name} is missing); run: pip install 'filmstrip[server]',"
            " or, in a checkout: make setup"
        )
        raise click.ClickException(message) from error
    server.main(arguments, prog_name="filmstrip serve")


if __name__ == "__main__":
    main()
