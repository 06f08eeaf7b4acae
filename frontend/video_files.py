"""Video files made from outputs: MP4, WebM, GIF and PNG, encoded when somebody asks for them, and kept in the store.

An encoder runs in a process of its own, with low priority. It ends when nobody waits for it any more.
"""

import asyncio
import contextlib
import json
import logging
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field

from filmstrip.errors import (
    DiskFull,
    FilmstripError,
    InternalError,
    InvalidField,
    Overloaded,
    ShuttingDown,
    UnknownPath,
)
from filmstrip.geometry import MAX_FPS_DENOMINATOR
from filmstrip.wire import VideoShape

from .schema import VideoFileQuery, VideoFormat
from .store import MAX_VARIANTS, DerivedFile, Draft, Store, StoredFile, open_stored
from .tasks import FairSemaphore, in_thread
from .workers import VIDEO_WORKER, EncodeJob, Limits, running_worker

log = logging.getLogger(__name__)

MAX_VIDEO_FILE_SIDE = 4096
"""Longest side of a frame, once it is enlarged."""
CONTENT_TYPES = {
    VideoFormat.MP4: "video/mp4",
    VideoFormat.WEBM: "video/webm",
    VideoFormat.GIF: "image/gif",
    VideoFormat.PNG: "image/png",
}
_DEFAULT_CRF = {VideoFormat.MP4: 18, VideoFormat.WEBM: 24}
_NUM_ENCODERS = 2
_NUM_GROWING = 4
"""These mostly wait for frames."""
_LIMITS = Limits(cpu_s=0, memory_bytes=3 * 2**30, niceness=10)  # the CPU time of an encoder is not limited
_PIECE_BYTES = 256 * 2**10
_PADDING = struct.pack(">I4s", 32 * 2**10, b"free").ljust(32 * 2**10, b"\0")
"""An empty box. Chromium looks at what it has received in blocks of this size, and would show a small video late."""


@dataclass(frozen=True)
class Variant:
    """What to make of an output.

    Attributes:
        format: of the file.
        fps: frames per second; None for PNG.
        crf: quality of MP4 and WebM, 0 (best) to 51.
        scale: how many times to enlarge each frame.
        frame: index of the frame for a PNG; None is a contact sheet.
    """

    format: VideoFormat
    fps: Fraction | None = None
    crf: int | None = None
    scale: int = 1
    frame: int | None = None

    @classmethod
    def of(cls, query: VideoFileQuery, shape: VideoShape, default_fps: Fraction | float) -> "Variant":
        """Check a query against the output's shape, and fill in the defaults.

        Args:
            query: of the request.
            shape: of the output; its number of frames may still grow.
            default_fps: for a query without `fps`.

        Raises:
            InvalidField: an option does not apply to the format, or the file would be too large.
        """
        file_format = query.format
        is_image = file_format is VideoFormat.PNG
        if query.crf is not None and file_format not in _DEFAULT_CRF:
            raise InvalidField(f"crf: {file_format} has no such option; only mp4 and webm do", "crf")
        if query.fps is not None and is_image:
            raise InvalidField("fps: a png has no frame rate", "fps")
        if query.frame is not None and not is_image:
            raise InvalidField("frame: only a png shows one frame", "frame")
        if query.scale != 1 and is_image and query.frame is None:
            raise InvalidField("scale: a contact sheet has a fixed size; `frame` selects one frame", "scale")
        if query.frame is not None and query.frame >= shape.frames:
            raise InvalidField(f"frame: the video has frames 0 to {shape.frames - 1}, got {query.frame}", "frame")
        longest = max(shape.height, shape.width)
        if longest * query.scale > MAX_VIDEO_FILE_SIDE and not (is_image and query.frame is None):
            fits = MAX_VIDEO_FILE_SIDE // longest
            remedy = f"at most scale={fits} fits" if fits else "download it without `format`"
            raise InvalidField(
                f"scale: {shape.width * query.scale}x{shape.height * query.scale} exceeds {MAX_VIDEO_FILE_SIDE} "
                f"pixels per side; {remedy}",
                "scale",
            )
        return cls(
            file_format,
            None if is_image else Fraction(query.fps or default_fps).limit_denominator(MAX_FPS_DENOMINATOR),
            query.crf if query.crf is not None else _DEFAULT_CRF.get(file_format),
            query.scale,
            query.frame,
        )

    @property
    def key(self) -> str:
        """The variant as a part of a file name."""
        fps = f"{self.fps.numerator}_{self.fps.denominator}" if self.fps else ""
        return "-".join(
            str("" if part is None else part) for part in (self.format, fps, self.crf, self.scale, self.frame)
        )

    @property
    def content_type(self) -> str:
        """Media type of the file."""
        return CONTENT_TYPES[self.format]


@dataclass(frozen=True)
class Growth:
    """How far a source of frames has come.

    Attributes:
        num_frames: frames that can be read.
        output: the output, once all frames are there.
    """

    num_frames: int
    output: StoredFile | None = None


class FrameSource(Protocol):
    """Frames that can be encoded, complete or still arriving."""

    @property
    def name(self) -> str:
        """Unique among all sources; that of the output if it is complete."""

    @property
    def owner(self) -> str:
        """The client that it belongs to."""

    @property
    def shape(self) -> VideoShape:
        """Its height, width and channels; the number of frames is not read."""

    @property
    def fps(self) -> Fraction | None:
        """Its frames per second, if they are known."""

    def open(self) -> int:
        """Open the file with the frames for reading: a 20-byte header, then uint8 [F, H, W, 3].

        Returns:
            A file descriptor, which the caller closes.
        """

    def growth(self) -> AsyncIterator[Growth]:
        """How many frames there are now, and again whenever there are more; the last one has the output.

        Raises:
            FilmstripError: the frames are gone, as the generation failed.
        """


@dataclass(frozen=True)
class CompleteOutput:
    """A finished output as a source of frames."""

    file: StoredFile

    @property
    def name(self) -> str:
        """The output's name."""
        return self.file.name

    @property
    def owner(self) -> str:
        """The output's owner."""
        return self.file.owner

    @property
    def shape(self) -> VideoShape:
        """The output's shape."""
        assert self.file.shape is not None
        return self.file.shape

    @property
    def fps(self) -> Fraction | None:
        """The output's frame rate."""
        return self.file.fps

    def open(self) -> int:
        """Open the output's file."""
        return open_stored(self.file.path)

    async def growth(self) -> AsyncIterator[Growth]:
        """All frames at once."""
        yield Growth(self.shape.frames, self.file)


class _Answer(BaseModel):
    """A line from an encoder.

    Attributes:
        grown: bytes of the growing file so far.
        is_waiting: the encoder has encoded all frames that there are; the growing file ends with a whole fragment.
        is_whole: the growing file is complete.
        written: bytes of the file so far.
        done: the file is complete; a digest of its content.
        failed: why there is no file.
    """

    model_config = ConfigDict(extra="forbid")

    grown: int = Field(0, ge=0)
    is_waiting: bool = False
    is_whole: bool = False
    written: int = Field(0, ge=0)
    done: str = ""
    failed: str = ""


class VideoFiles:
    """Encodes outputs, each variant once, and remembers the files in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._encodings: set[_Encoding] = set()
        self._turns = FairSemaphore(_NUM_ENCODERS)
        self._growing_turns = FairSemaphore(_NUM_GROWING)
        self._is_closed = False

    async def file(self, output: StoredFile, variant: Variant) -> DerivedFile:
        """The file of a finished output; waits until it is encoded.

        Raises:
            StorageFull: there is no room for it.
            Overloaded: too many variants of this output are in use.
        """
        found = self._store.derived(output.name, variant.key)
        if found is not None:
            return found
        with self._joined(CompleteOutput(output), variant, is_growing=False) as encoding:
            return await encoding.result()

    @contextlib.contextmanager
    def following(self, source: FrameSource, variant: Variant) -> Iterator[AsyncIterator[bytes]]:
        """A fragmented MP4 of frames that may still be arriving, piece by piece as it grows.

        A reader that falls behind holds up neither the encoder nor other readers. Once the frames are complete, the
        same packets make the file that `file` gives.

        Raises:
            Overloaded: too many variants of this source are being made.
        """
        assert variant.format is VideoFormat.MP4, "other formats do not grow"
        with self._joined(source, variant, is_growing=True) as encoding:
            yield encoding.pieces()

    async def close(self) -> None:
        """End all encoders."""
        self._is_closed = True
        await asyncio.gather(*(encoding.end() for encoding in list(self._encodings)))

    async def discard(self, name: str) -> None:
        """End the encoders of a source, so that its files can be removed."""
        await asyncio.gather(*(encoding.end() for encoding in list(self._encodings) if name in encoding.names))

    @contextlib.contextmanager
    def _joined(self, source: FrameSource, variant: Variant, *, is_growing: bool) -> Iterator["_Encoding"]:
        """The encoding of this variant, begun if necessary; it ends when the last one that joined it leaves."""
        if self._is_closed:
            raise ShuttingDown("the server is stopping")
        running = [other for other in self._encodings if source.name in other.names and not other.is_ending]
        encoding = next((other for other in running if other.variant == variant and other.grows >= is_growing), None)
        if encoding is None:
            if len(running) + self._store.held_variants(source.name) >= MAX_VARIANTS:
                raise Overloaded(f"{MAX_VARIANTS} variants of this video are in use; try again when one is done")
            turns = self._growing_turns if is_growing else self._turns
            encoding = _Encoding(self._store, source, variant, turns, is_growing=is_growing)
            self._encodings.add(encoding)
            encoding.when_done(self._encodings.discard)
        encoding.join()
        try:
            yield encoding
        finally:
            encoding.leave()


class _Encoding:
    """One variant that is being encoded.

    Attributes:
        names: of the source and, as soon as it exists, of the output.
        variant: what is made.
        grows: whether it also makes a file that can be read as it grows.
        is_ending: nobody waits for it any more.
    """

    def __init__(
        self,
        store: Store,
        source: FrameSource,
        variant: Variant,
        turns: FairSemaphore,
        *,
        is_growing: bool,
    ) -> None:
        self._store = store
        self._source = source
        self._turns = turns
        self._output: StoredFile | None = None
        self._grown: Draft | None = None
        self._grown_fd: int | None = None  # stays open for those who still read
        self._grown_bytes = 0
        self._padded_at: list[int] = []  # places in the growing file where readers get padding
        self._is_whole = False
        self._changed = asyncio.Event()
        self._num_waiting = 0
        self.names = {source.name}
        self.variant = variant
        self.grows = is_growing
        self.is_ending = False
        self._task = asyncio.create_task(self._run(), name=f"encode {variant.key}")

    def when_done(self, callback: Callable[["_Encoding"], None]) -> None:
        """Call this as soon as none of its work runs any more."""

        def done(task: asyncio.Task[DerivedFile]) -> None:
            if not task.cancelled():
                task.exception()  # nobody may be left to retrieve it
            self._notify()
            callback(self)

        self._task.add_done_callback(done)

    async def result(self) -> DerivedFile:
        """The file, once it is complete."""
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled():
                raise UnknownPath("path: the video has just been removed, or the server is stopping") from None
            raise

    async def pieces(self) -> AsyncIterator[bytes]:
        """The growing file, from its start."""
        offset = num_padded = 0
        while True:
            changed = self._changed
            stop = self._padded_at[num_padded] if num_padded < len(self._padded_at) else self._grown_bytes
            if self._grown_fd is not None and offset < stop:
                piece = await in_thread(os.pread, self._grown_fd, min(_PIECE_BYTES, stop - offset), offset)
                if not piece:
                    raise InternalError("the growing file was truncated")
                offset += len(piece)
                yield piece
                del piece  # otherwise it is held together with the next one
            elif num_padded < len(self._padded_at):
                num_padded += 1
                yield _PADDING
            elif self._is_whole:
                return
            elif self._task.done():
                await self.result()  # raises why it is not whole
            else:
                await changed.wait()

    def join(self) -> None:
        """Count one more that waits for the file or reads it."""
        self._num_waiting += 1

    def leave(self) -> None:
        """Count one less; after the last one, the encoder ends."""
        self._num_waiting -= 1
        if not self._num_waiting:
            self.cancel()
            if self._grown_fd is not None:
                os.close(self._grown_fd)
                self._grown_fd = None

    def cancel(self) -> None:
        """End the encoder, if it still runs."""
        self.is_ending = True
        self._task.cancel()

    async def end(self) -> None:
        """End the encoder and wait until its process has ended."""
        self.cancel()
        await asyncio.wait([self._task])

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> DerivedFile:
        async with self._turns.turn(self._source.owner, self._source.name):
            with contextlib.ExitStack() as stack:
                whole = stack.enter_context(self._store.derive(self._source.owner))
                if self.grows:
                    self._grown = stack.enter_context(self._store.derive(self._source.owner))
                    self._grown_fd = os.dup(self._grown.fd)
                digest = await self._encode(whole, stack)
                assert self._output is not None
                return self._store.commit_derived(whole, self._output, self.variant.key, digest)

    async def _encode(self, whole: Draft, stack: contextlib.ExitStack) -> str:
        """Encode into the drafts; returns the digest of the file."""
        fd = self._source.open()
        stack.callback(os.close, fd)
        async with running_worker(VIDEO_WORKER, _LIMITS, "encode", pass_fds=(fd,)) as process:
            feeding = asyncio.create_task(self._feed(process, self._job(fd, whole), stack))
            try:
                async for line in cast("asyncio.StreamReader", process.stdout):
                    answer = _Answer.model_validate_json(line)
                    if answer.failed:
                        raise _error(answer.failed)
                    self._account(answer, whole)
                    if answer.done:
                        return answer.done
                if feeding.done():
                    feeding.result()  # raises if the frames are gone
                await process.wait()
                raise _error(f"its process ended with status {process.returncode}")
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])

    def _job(self, fd: int, whole: Draft) -> EncodeJob:
        shape, variant = self._source.shape, self.variant
        return EncodeJob(
            fd=fd,
            height=shape.height,
            width=shape.width,
            into=str(whole.path),
            growing_into=str(self._grown.path) if self._grown else "",
            format=variant.format.value,
            fps=str(variant.fps or 1),
            crf=variant.crf,
            scale=variant.scale,
            frame=variant.frame,
        )

    async def _feed(self, process: asyncio.subprocess.Process, job: EncodeJob, stack: contextlib.ExitStack) -> None:
        """Tell the encoder what to do, and how many frames there are."""
        lines = cast("asyncio.StreamWriter", process.stdin)
        try:
            await _send(lines, asdict(job))
            async for growth in self._source.growth():
                if growth.output is not None:
                    self._output = growth.output
                    stack.enter_context(self._store.holding(growth.output))
                    self.names.add(growth.output.name)
                await _send(lines, {"num_frames": growth.num_frames, "is_finished": growth.output is not None})
        except FilmstripError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise

    def _account(self, answer: _Answer, whole: Draft) -> None:
        """Count what was written towards the limits of the store."""
        if answer.written:
            self._store.reserve(whole, answer.written)
            whole.written_bytes = answer.written
        if answer.grown:
            assert self._grown is not None
            self._store.reserve(self._grown, answer.grown)
            self._grown.written_bytes = self._grown_bytes = answer.grown
            padded_at = self._padded_at[-1] if self._padded_at else 0
            if answer.is_waiting and padded_at < answer.grown < padded_at + len(_PADDING):
                self._padded_at.append(answer.grown)
            if answer.is_whole:
                self._is_whole = True
                self._store.reserve(whole, answer.grown)  # it will have about the same size
            self._notify()


async def _send(lines: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):  # the process has ended, which its answers show
        lines.write(json.dumps(message).encode() + b"\n")
        await lines.drain()


def _error(reason: str) -> FilmstripError:
    if reason == "disk_full":
        return DiskFull("the server's disk is full")
    log.error("a video could not be encoded: %s", reason)
    return InternalError("the video could not be encoded; see the server's log")
