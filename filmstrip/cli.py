"""The `filmstrip` command: generate videos on a server, and ask it what it can do."""

import functools
import importlib
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import BaseModel
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from filmstrip import __version__, connection_settings
from filmstrip.client import Client
from filmstrip.console import CancelOnInterrupt, GenerationProgress, exit_on_signals, make_client, open_tracked, track
from filmstrip.endpoints import GENERATION_ID, is_unsupported, new_id
from filmstrip.errors import (
    BadVideo,
    Busy,
    ClientError,
    FilmstripError,
    GenerationsUnsupported,
    InvalidField,
    QueueFull,
    ServerUnreachable,
    StreamBroken,
    TimedOut,
    TlsUnsupported,
    TooLarge,
    TritonUnavailable,
    Unauthorized,
    UnexpectedAnswer,
    UnknownPath,
    UntrustedCertificate,
    counted,
)
from filmstrip.foreign_answers import UNREACHED
from filmstrip.geometry import DEFAULT_FPS, MAX_FRAMES, MAX_REQUEST_SIDE, MIN_SIDE
from filmstrip.models import (
    EVENT_NAMES,
    Cancelled,
    Complete,
    ErrorEvent,
    Event,
    Generation,
    PipelineFeatures,
    PipelineInfo,
    Queued,
    State,
    UploadedVideo,
)
from filmstrip.request_fields import MAX_SEED, GenerateFields
from filmstrip.video import VideoInfo, count_frames, probe, read_frames
from filmstrip.video.read import VideoFileError, container_of, display_path
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

ResultT = TypeVar("ResultT")
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

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
  # Let the server work on its own; follow it, and fetch the video later
  filmstrip generate "a cat walking" --pipeline longlive --detach --id my-cat
  filmstrip attach my-cat
  filmstrip download my-cat -o cat.mp4
\b
  # Restyle a video; more noise moves further away from the source
  filmstrip generate "an oil painting" --pipeline longlive --video in.mp4 \\
      --size 576x320 --noise-scale 0.6 -o painting.mp4
"""


class _Failure(click.ClickException):
    """A failure with its exit code; `code` is its kind, for programs."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED, code: str = "failed") -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable to click's types
        self.code = code

    @classmethod
    def of(cls, error: Exception, more: str = "") -> "_Failure":
        """The failure that an error stands for, with more to say about it."""
        return cls(_sentence(error) + more, _exit_code(error), _code(error))


class _Commands(click.Group):
    """Reports the errors of all commands as one sentence on stderr, or as JSON, and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with exit_on_signals():
                return self._invoke(ctx)
        except KeyboardInterrupt:
            if _is_json():
                _echo_error("interrupted", "interrupted")
            else:
                click.echo("Interrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            raise  # the reader of our output closed the pipe: click exits quietly
        except click.ClickException as error:
            if not _is_json():
                raise
            code = "usage" if isinstance(error, click.UsageError) else getattr(error, "code", "failed")
            _echo_error(code, error.format_message(), getattr(error.__cause__, "field", None))
            ctx.exit(error.exit_code)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (FilmstripError, ClientError, VideoFileError, OSError) as error:
            is_starting = isinstance(error, TritonUnavailable) and ctx.invoked_subcommand == generate.name
            more = "; if the server is still starting, use --wait" if is_starting else ""
            raise _Failure.of(error, more) from error


def _exit_code(error: Exception) -> int:
    unreached = isinstance(error, UnexpectedAnswer) and error.status in UNREACHED
    if unreached or isinstance(error, ServerUnreachable | StreamBroken | TimedOut):
        return EXIT_UNREACHABLE
    return EXIT_BUSY if isinstance(error, Busy | QueueFull) else EXIT_FAILED


def _code(error: Exception) -> str:
    """The kind of an error: the server's code, or the name of the exception's class in snake_case."""
    if isinstance(error, FilmstripError):
        return error.code
    name = "OSError" if isinstance(error, OSError) else type(error).__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _echo_error(code: str, message: str, field: str | None = None) -> None:
    """Print an error on stderr, in the form of the server's errors."""
    error = {"code": code, "message": _one_line(message)} | ({} if field is None else {"field": field})
    click.echo(json.dumps({"error": error}), err=True)


def _sentence(error: Exception) -> str:
    """What went wrong and what to do about it, on one line without control characters."""
    message = str(error)
    if isinstance(error, FilmstripError) and error.field and error.field not in error.message:
        message = f"{error.field}: {error.message}"
    if isinstance(error, Busy | QueueFull):
        message += "; use --wait to wait until it is free"
    if isinstance(error, StreamBroken):
        message += f"; follow it again with: filmstrip attach {error.id} --after {error.after}"
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


def _generation_id(text: str) -> str:
    if not GENERATION_ID.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not an id: 1 to 64 letters, digits, - and _")
    return text


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
                message = f"{_sentence(error)}. {self._how_to_give_a_key()}"
                raise _Failure(message, code=_code(error)) from error

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


_JSON = "filmstrip.json"


def _is_json() -> bool:
    """Whether the command was asked for JSON."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_JSON))


def _json_option(shown: str = "Print the result as one JSON document; errors on stderr are JSON, too.") -> _Decorator:
    def store(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        context.meta[_JSON] = value
        return value

    # Eager, so that errors of other options are JSON, too.
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=store, help=shown)


_id_argument = click.argument("id", type=_generation_id)


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
    if not _is_json():
        click.echo(text, err=True)


def _echo_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2))


def _dumped(answer: BaseModel) -> Any:
    """An answer as the server sent it."""
    return answer.model_dump(mode="json", exclude_unset=True)


def _need_output(output: Path | None) -> Path:
    if output is None:
        raise click.UsageError("Missing option '--output' / '-o'.")
    return output


@click.group(
    cls=_Commands, epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__)
def main() -> None:
    """Generate videos on a Filmstrip server.

    The server generates a video chunk by chunk. This command uploads the inputs, shows the progress and writes the
    result to a file. With --detach it only starts the generation, which then goes on without it.
    """


@dataclass(frozen=True)
class _Input:
    """The input video. It is scaled and cut before the upload, or by the server: the pipeline would not use the rest.

    Attributes:
        path: of the file.
        info: what it is.
        size: (height, width) to scale to; None keeps its own.
        max_frames: most frames; None for all.
    """

    path: Path
    info: VideoInfo
    size: tuple[int, int] | None
    max_frames: int | None

    @property
    def fps(self) -> Fraction:
        return self.info.fps

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) of its frames as they are uploaded."""
        return self.size or (self.info.height, self.info.width)

    def upload(self, client: Client) -> UploadedVideo:
        """Upload it: as it is, if the server decodes such files and the file is smaller than its frames."""
        if self._is_smaller_than_its_frames() and client.decodes_video_files():
            with suppress(BadVideo, InvalidField, TooLarge):  # it may be a file that only FFmpeg here can decode
                return self._upload_file(client)
        return self._upload_frames(client)

    def _is_smaller_than_its_frames(self) -> bool:
        with self.path.open("rb") as file:
            if not container_of(file.read(8)):
                return False
            num_bytes = file.seek(0, os.SEEK_END)
        num_frames = min(self.info.num_frames or MAX_FRAMES, self.max_frames or MAX_FRAMES)
        return num_bytes < VideoShape(num_frames, *self.shown_size).num_bytes

    def _upload_file(self, client: Client) -> UploadedVideo:
        height, width = self.size or (None, None)
        with open_tracked(self.path, "Uploading", quiet=_is_json()) as file:
            return client.upload_file(
                file, max_frames=self.max_frames or MAX_FRAMES, width=width, height=height, fit="fill"
            )

    def _upload_frames(self, client: Client) -> UploadedVideo:
        num_frames = count_frames(self.path, self.max_frames or MAX_FRAMES)
        shape = VideoShape(num_frames, *self.shown_size)
        frames = read_frames(self.path, self.shown_size, num_frames)
        return client.upload(track(frames, num_frames, "Uploading", quiet=_is_json()), shape)


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
@click.option(
    "--detach",
    is_flag=True,
    help="Start the generation, print its id and exit; it waits for its turn and goes on without this command.",
)
@click.option(
    "--id",
    type=_generation_id,
    metavar="ID",
    help="Name of the generation, for `filmstrip attach` and others.  [default: a random one]",
)
@_file_options
@_json_option()
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
    detach: bool,
    id: str | None,
    output: Path | None,
    fps: float | None,
    scale: int,
    as_json: bool,
    server: _ServerOptions,
    **options: Any,
) -> None:
    """Generate a video from PROMPT, --video or both.

    Give -o FILE for the result, or --detach to fetch it later. Pipelines that only process frames need no PROMPT.

    Ctrl-C ends the generation after the current chunk and keeps the frames generated so far; a second Ctrl-C exits at
    once and keeps nothing. If the connection breaks, the command connects again. A finished video is not lost: if FILE
    cannot be written, the message says how to download the video again.
    """
    if len({index for index, _ in chunk_prompts}) != len(chunk_prompts):
        raise click.BadParameter("two prompts for one chunk", param_hint="--chunk-prompt")
    if detach and (output is not None or fps is not None or scale != 1):
        raise click.UsageError("--output, --fps and --scale go with `filmstrip download`, not with --detach.")
    with ExitStack() as stack:
        file = None if detach else stack.enter_context(_open_output(_need_output(output)))
        client = stack.enter_context(server.client())
        retry = Retry(client, _note, waits=wait)
        used = [pipeline_id, *(options[name] for name in ("pre_processor", "post_processor") if options[name])]
        pipeline = retry.call(lambda: loaded_pipelines(client, used, _note))[pipeline_id]
        if prompt is None and pipeline.features and pipeline.features.prompts:
            raise click.UsageError(f"{pipeline_id} needs a PROMPT.")
        if size:
            _check_orientation(size, pipeline)
        frame_size = size or pipeline.native_size
        source = _Input(video, probe(video), frame_size, num_frames) if video else None
        request: GenerateFields = {
            "pipeline_id": pipeline_id,
            "prompt": prompt or "",
            "num_frames": num_frames,
            "height": size[0] if size else None,
            "width": size[1] if size else None,
            "seed": options["seed"],
            "noise_scale": options["noise_scale"],
            "pre_processor_id": options["pre_processor"],
            "post_processor_id": options["post_processor"],
            "lora_scales": dict(loras) or None,
            "chunk_specs": [{"chunk": index, "text": text} for index, text in chunk_prompts] or None,
        }
        height, width = frame_size or (source.shown_size if source else (0, 0))
        if max(height, width) * scale > MAX_SCALED_SIDE:
            raise click.BadParameter(
                f"{width}x{height} enlarged {scale} times exceeds {MAX_SCALED_SIDE} pixels", param_hint="--scale"
            )
        command = _GenerateCommand(client, retry, request, source, id)
        try:
            if file is None:
                command.submit(as_json=as_json)
            else:
                rate = fps or (source.fps if source else DEFAULT_FPS)
                command.run(_ResultWriter(server, file, rate, scale, video), waits=wait, as_json=as_json)
        except InvalidField as error:
            if source is None and error.field == "input_path":
                raise _Failure.of(error, "; use --video FILE") from error
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

    def write(self, client: Client, output_path: str, shape: VideoShape) -> "_WrittenFile":
        """Download a result and write it."""
        self.output_path = output_path
        frames = track(client.download_frames(output_path), shape.frames, "Writing", quiet=_is_json())
        written = self.file.write(frames, self.fps, num_frames=shape.frames, scale=self.scale, audio=self.audio)
        self.output_path = None
        for note in written.notes:
            _note(f"Note: {note.rstrip('.')}.")
        size = shape.height * self.scale, shape.width * self.scale
        return _WrittenFile(self.file.path, written.num_frames, *size, float(self.fps), written.notes)

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


@dataclass(frozen=True)
class _WrittenFile:
    """A file that a command has written; the rate of an image is None."""

    path: Path
    num_frames: int
    height: int
    width: int
    fps: float | None
    notes: tuple[str, ...] = ()

    def echo(self) -> None:
        """Print one line about it."""
        rate = "" if self.fps is None else f", {self.fps:g} fps"
        frames = counted(self.num_frames, "frame")
        click.echo(f"{display_path(self.path)}: {frames}, {self.width}x{self.height}{rate}")

    def document(self) -> dict[str, Any]:
        """The same for --json."""
        return asdict(self) | {"path": display_path(self.path)}


class _GenerateCommand:
    """What `generate` asks the server for.

    Args:
        client: of the server.
        retry: waits for the server, if the user asked for that.
        request: the generation, without its input video.
        source: the input video.
        id: the name that the user gives it.
    """

    def __init__(
        self, client: Client, retry: Retry, request: GenerateFields, source: _Input | None, id: str | None
    ) -> None:
        self._client = client
        self._retry = retry
        self._request = request
        self._source = source
        self._id: str | None = id or new_id()
        self._is_named = id is not None

    def submit(self, *, as_json: bool) -> None:
        """Start the generation and print its id."""
        submit = functools.partial(self._client.generations.submit, id=self._id)
        found = self._try(lambda: submit(**self._request))
        if as_json:
            _echo_json(_dumped(found))
            return
        click.echo(found.id)
        where = f"waits at place {found.position}" if found.position else "has started"
        _note(f"It {where}. Follow it with: filmstrip attach {found.id}")

    def run(self, writer: "_ResultWriter", *, waits: bool, as_json: bool) -> None:
        """Generate with progress and write the file; exit with the code that says how it ended."""
        written: _WrittenFile | None = None
        with writer.kept():
            last = self._follow(writer, waits=waits)
            if last.seed is not None and self._request["seed"] == -1:
                _note(f"Seed: {last.seed} (--seed {last.seed} generates the same video again)")
            if last.unused:
                _note(f"Note: {self._request['pipeline_id']} does not use {', '.join(last.unused)}.")
            if last.output_path is not None and last.video_shape is not None:
                written = writer.write(self._client, last.output_path, last.video_shape)
        if as_json:
            result = {"id": self._id, "state": EVENT_NAMES[type(last)], **asdict(last)}
            _echo_json(result | {"file": written and written.document()})
        elif written is not None:
            written.echo()
        if isinstance(last, Cancelled):
            path = display_path(writer.file.path)
            kept = f"Cancelled: {path} has the {counted(last.frames_completed, 'frame')} generated so far."
            _note(kept if written else "Cancelled before the first frame: nothing was written.")
            sys.exit(EXIT_INTERRUPTED)

    def _follow(self, writer: "_ResultWriter", *, waits: bool) -> Complete | Cancelled:
        """Show the progress up to the last event."""
        last: Complete | Cancelled | None = None
        with ExitStack() as stack:
            events, cancel = self._try(lambda: self._start(stack))
            shown = stack.enter_context(GenerationProgress(Console(stderr=True, quiet=_is_json())))
            stack.enter_context(CancelOnInterrupt(cancel, shown.note))
            for event in events:
                if isinstance(event, Queued) and not waits:
                    raise Busy("another generation is running")
                if isinstance(event, Complete | Cancelled):
                    last, writer.output_path = event, event.output_path
                elif isinstance(event, ErrorEvent):
                    raise event.exception()
                else:
                    shown.show(event)
        assert last is not None, "the stream has a last event, or raises"
        return last

    def _start(self, stack: ExitStack) -> tuple[Iterator[Event], Callable[[], str]]:
        """Start the generation; its events, and what cancels it.

        Uses a generation with an id if the server has them: only those survive a broken connection.
        """
        stream = self._client.generations.start(id=self._id, on_disconnect="cancel", **self._request)
        try:
            return stack.enter_context(stream), stream.cancel
        except GenerationsUnsupported:
            if self._is_named:
                raise
            self._id = None
            return stack.enter_context(self._client.generate(**self._request)), self._client.cancel

    def _try(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Make an attempt with the input video; if the user asked to wait, repeat it until the server accepts it."""
        return self._retry.call(lambda: self._with_input(attempt))

    def _with_input(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Make an attempt with the input video uploaded; upload it again if it has expired in the meantime."""
        was_uploaded = "input_path" in self._request
        if self._source and not was_uploaded:
            uploaded = self._source.upload(self._client)
            self._request["input_path"] = uploaded.input_path
            self._request["num_frames"] = self._request["num_frames"] or uploaded.num_frames
        try:
            return attempt()
        except UnknownPath:
            if not was_uploaded:
                raise
            del self._request["input_path"]
            return self._with_input(attempt)


# -- Generations with an id ------------------------------------------------------------------------------------------


@main.command(epilog=_EXIT_CODES)
@_id_argument
@click.option(
    "--after",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Number of the last event that you already have.",
)
@_json_option("Print each event as one line of JSON; errors on stderr are JSON, too.")
@_server_options
def attach(*, id: str, after: int, as_json: bool, server: _ServerOptions) -> None:
    """Follow the generation ID until it ends.

    Ctrl-C stops following; the generation goes on. Exit code 0 means that the video is complete, 1 that it failed, 130
    that it was cancelled, or that you stopped following.
    """
    last: Event | None = None
    with server.client() as client:
        stream = client.generations.attach(id, after=after)
        try:
            with stream, GenerationProgress(Console(stderr=True, quiet=as_json)) as shown:
                for last in stream:
                    if as_json:
                        click.echo(json.dumps({"event": EVENT_NAMES[type(last)], "id": stream.after, **asdict(last)}))
                    else:
                        shown.show(last)
        except KeyboardInterrupt:
            command = shlex.join(["filmstrip", "attach", id, "--after", str(stream.after), *server.options()])
            _note(f"{id} goes on without this command. Follow it again with: {command}")
            raise
    if isinstance(last, ErrorEvent):
        raise last.exception()
    if isinstance(last, Cancelled):
        _note(f"{id} was cancelled; it has {counted(last.frames_completed, 'frame')}.")
        sys.exit(EXIT_INTERRUPTED)
    if isinstance(last, Complete) and not as_json:
        shape = last.video_shape
        click.echo(f"{id} is complete: {counted(shape.frames, 'frame')}, {shape.width}x{shape.height}")
        command = shlex.join(["filmstrip", "download", id, "-o", f"{id}.mp4", *server.options()])
        _note(f"Download it with: {command}")


@main.command(name="list", epilog=_EXIT_CODES)
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only generations in this state.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Most generations to list.  [default: all]")
@_json_option()
@_server_options
def list_generations(*, state: str | None, limit: int | None, as_json: bool, server: _ServerOptions) -> None:
    """List your generations, newest first."""
    with server.client() as client:
        found = list(client.generations.list(state=state, limit=limit))
    if as_json:
        _echo_json([_dumped(generation) for generation in found])
        return
    table = Table(*(Column(name, overflow="fold") for name in ("Id", "State", "Frames", "Created", "Note")))
    for generation in found:
        frames = f"{generation.frames}/{generation.num_frames}"
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(generation.created_at))
        table.add_row(*map(_cell, [generation.id, generation.state, frames, created, _remark(generation)]))
    _print_table(table)


def _remark(generation: Generation) -> str:
    if generation.position:
        return f"place {generation.position}"
    if generation.error:
        return generation.error.message
    return "" if generation.eta_s is None else f"about {generation.eta_s:.0f} s left"


@main.command(epilog=_EXIT_CODES)
@_id_argument
@_json_option()
@_server_options
def delete(*, id: str, as_json: bool, server: _ServerOptions) -> None:
    """Remove the generation ID with its files; end it first if it waits or runs."""
    with server.client() as client:
        client.generations.delete(id)
    if as_json:
        _echo_json({"id": id, "deleted": True})
    else:
        click.echo(f"{id} is deleted.")


_SERVER_FORMATS = frozenset((".mp4", ".webm", ".gif", ".png"))
_MAX_SERVER_SCALE = 8
_MAX_SERVER_SIDE = 4096
_SERVER_FPS = (0.1, 240.0)


@main.command(epilog=_EXIT_CODES)
@click.argument("name", metavar="ID", type=_sendable)
@click.option(
    "--frame",
    type=click.IntRange(0),
    metavar="N",
    help="Write only this frame, counted from 0, as a PNG.",
)
@click.option(
    "--audio",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Input video whose sound is kept, if the output shows its frames at its rate.",
)
@_file_options
@_json_option()
@_server_options
def download(
    *,
    name: str,
    frame: int | None,
    audio: Path | None,
    output: Path | None,
    fps: float | None,
    scale: int,
    as_json: bool,
    server: _ServerOptions,
) -> None:
    """Download the video of the generation ID and write it to a file.

    The generation must have ended; of a cancelled one, the frames generated so far are written. A name that starts with
    output- is the server's name for a result (`output_path`). Results are kept for an hour by default. `filmstrip
    generate` downloads its result itself, and shows this command if that fails.
    """
    with _open_output(_need_output(output)) as file, server.client() as client:
        if frame is not None and (file.path.suffix.lower() != ".png" or file.is_sequence):
            raise click.BadParameter("FILE must end in .png", param_hint="--frame")
        rate = fps or (probe(audio).fps if audio else None)
        writer = _ResultWriter(server, file, rate or DEFAULT_FPS, scale, audio)
        if name.startswith("output-"):
            if frame is not None:
                raise click.BadParameter("needs the id of a generation", param_hint="--frame")
            written = writer.write(client, name, client.output_shape(name))
        else:
            written = _download(client, _generation_id(name), writer, rate, frame)
    if as_json:
        _echo_json(written.document())
    else:
        written.echo()


def _download(
    client: Client, id: str, writer: _ResultWriter, fps: Fraction | float | None, frame: int | None
) -> _WrittenFile:
    """Download a generation, encoded by the server if it makes such a file: that is a small part of the frames."""
    found = client.generations.get(id)
    if not found.has_ended:
        doing = f"is at chunk {found.chunk} of {found.total_chunks}"
        if found.position:
            doing = f"waits at place {found.position}"
        raise _Failure(f"{id} has not ended: it {doing}; wait with: filmstrip attach {id}")
    if found.output_path is None or found.video_shape is None:
        reason = f": {found.error.message}" if found.error else ""
        raise _Failure(f"{id} has no frames; its state is {found.state}{reason}")
    shape, scale, path = found.video_shape, writer.scale, writer.file.path
    size = shape.height * scale, shape.width * scale
    if frame is not None:
        client.generations.download(id, path, "poster", frame=frame, scale=scale)
        return _WrittenFile(path, 1, *size, None)
    is_image = path.suffix.lower() == ".png"
    if (
        path.suffix.lower() in _SERVER_FORMATS
        and not writer.file.is_sequence
        and writer.audio is None
        and scale <= (1 if is_image else _MAX_SERVER_SCALE)  # the server does not enlarge contact sheets
        and max(size) <= _MAX_SERVER_SIDE
        and (fps is None or _SERVER_FPS[0] <= fps <= _SERVER_FPS[1])
    ):
        client.generations.download(id, path, fps=None if is_image else fps, scale=None if is_image else scale)
        return _WrittenFile(path, shape.frames, *size, None if is_image else float(probe(path).fps))
    return writer.write(client, found.output_path, shape)


def _print_table(table: Table) -> None:
    console = Console()
    if not console.is_terminal:  # whatever reads a pipe or a file has no width
        console = Console(width=_PIPE_WIDTH)
    console.print(table)


def _cell(text: str) -> Text:
    """Text without markup and control characters."""
    return Text(_one_line(text))


@main.command(epilog=_EXIT_CODES)
@_json_option()
@_server_options
def pipelines(*, as_json: bool, server: _ServerOptions) -> None:
    """List the server's pipelines and what they can do."""
    with server.client() as client:
        known = client.pipelines()
    if as_json:
        _echo_json([_dumped(pipeline) for pipeline in known])
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
    _print_table(table)
    for pipeline in known:
        if pipeline.reason:
            verb = pipeline.state if pipeline.state == "failed" else f"is {pipeline.state}"
            click.echo(f"{pipeline.id} {verb}: {_one_line(pipeline.reason)}")


def _feature_names(pipeline: PipelineInfo) -> list[str]:
    features = pipeline.features or PipelineFeatures()
    names = [name.replace("_", " ") for name, value in features if value is True]
    return names + [f"lora {name}" for name in features.loras]


@main.command(epilog=_EXIT_CODES)
@_json_option()
@_server_options
def status(*, as_json: bool, server: _ServerOptions) -> None:
    """Show whether the server is healthy.

    Exit code 1 means that it is starting, or that no pipeline can generate.
    """
    with server.client() as client:
        health = client.health()
        load = client.load_status()
    if as_json:
        _echo_json({"health": _dumped(health), "pipeline": _dumped(load)})
    else:
        click.echo(f"Server:    {health.status}{', generating' if health.generating else ''}")
        click.echo(f"Last load: {f'{load.pipeline_id} {load.status}' if load.pipeline_id else 'none'}")
        if load.error:
            click.echo(f"Error:     {_one_line(load.error)}")
        if health.degraded:
            click.echo(f"Degraded:  {', '.join(health.degraded)}; see `filmstrip pipelines`")
    sys.exit(0 if health.status == "healthy" else 1)


@main.command(epilog=_EXIT_CODES)
@click.argument("id", required=False, type=_generation_id)
@_json_option()
@_server_options
def cancel(*, id: str | None, as_json: bool, server: _ServerOptions) -> None:
    """End the generation ID, or else the running one.

    One that waits is cancelled at once, one that runs after its current chunk; its frames are kept.
    """
    with server.client() as client:
        found = id or _running_id(client)
        status = client.cancel() if found is None else client.generations.cancel(found)
    if as_json:
        _echo_json({"id": found, "status": status})
    elif status == "cancelling":
        click.echo("Cancelling after the current chunk.")
    elif status == "cancelled":
        click.echo(f"{found} is cancelled before it started.")
    else:
        click.echo("Nothing is running." if id is None else f"{id} has already ended.")


def _running_id(client: Client) -> str | None:
    """The id of the only running generation; None if none runs, or if the server has no generations with an id.

    Raises:
        UsageError: several run.
    """
    try:
        running = [generation.id for generation in client.generations.list(state="running")]
    except (FilmstripError, UnexpectedAnswer) as error:
        if is_unsupported(error):
            return None
        raise
    if len(running) > 1:
        raise click.UsageError(f"several generations are running; name one: {', '.join(running)}")
    return running[0] if running else None


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
