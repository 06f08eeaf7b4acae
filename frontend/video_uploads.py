"""Uploaded video files: decoded into the store, each in a process of its own that can do little harm."""

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from filmstrip.errors import BadVideo, DiskFull, FilmstripError, InternalError, InvalidField, TooLarge
from filmstrip.geometry import MAX_FPS_DENOMINATOR
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape

from .schema import VideoUploadQuery
from .store import Draft, Kind, Store, StoredFile
from .tasks import FairSemaphore
from .workers import VIDEO_WORKER, DecodeJob, Limits, running_worker

log = logging.getLogger(__name__)

_NUM_DECODERS = 2
_LIMITS = Limits(cpu_s=60, memory_bytes=2**30)
_WALL_S = 180.0  # the limit on CPU time is reached first, unless the machine is overloaded
_CLOCK_HZ = 1_000_000
_TOO_SLOW = "the video takes too long to decode; `start`, `end` and `max_frames` select a part of it"


@dataclass(frozen=True)
class DecodedVideo:
    """A video file that was decoded into the store.

    Attributes:
        file: the stored video.
        shape: its shape.
        fps: its frames per second.
        poster: its first frame, as a data URL of at most 32 KiB.
    """

    file: StoredFile
    shape: VideoShape
    fps: float
    poster: str


class _Described(BaseModel):
    """The first answer of a decoder: what the video is."""

    model_config = ConfigDict(extra="forbid")

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    fps: float = Field(gt=0)
    expected_bytes: int = Field(ge=0)
    poster: str = Field(max_length=64 * 2**10)


class _Answer(BaseModel):
    """Any later answer, or the first one if there is no video.

    Attributes:
        room: how many bytes of frames the decoder asks to write, in all.
        num_frames: all frames are written.
        refused: why the video is not decoded, for the client.
        is_too_large: the frames exceed the limit.
        failed: what else went wrong.
    """

    model_config = ConfigDict(extra="forbid")

    room: int = Field(0, ge=0)
    num_frames: int = Field(0, ge=0)
    refused: str = Field("", max_length=1000)
    is_too_large: bool = False
    failed: str = ""


class VideoDecoder:
    """Decodes video files; two at a time, and clients take turns."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns = FairSemaphore(_NUM_DECODERS)

    async def decode(self, spool: Draft, query: VideoUploadQuery, limit_bytes: int) -> DecodedVideo:
        """Decode a file into the store, as a video of the owner of the spool.

        Args:
            spool: the complete file.
            query: which part of it, at what rate and size.
            limit_bytes: most bytes of frames.

        Raises:
            BadVideo: it is not a video file, or is damaged, or takes more time or memory than a decoder may use.
            InvalidField: `end` is not after `start`.
            TooLarge: the frames exceed the limit; the message names values that fit.
            StorageFull: they exceed the limits on stored files.
        """
        job = _job(spool, query, limit_bytes)
        decoded = None
        async with self._turns.turn(spool.owner, spool):
            try:
                async with asyncio.timeout(_WALL_S), running_worker(VIDEO_WORKER, _LIMITS, "decode") as process:
                    decoded = await self._follow(process, job, spool.owner)
            except BaseException as error:
                if decoded is not None:  # cancelled while the process ended: nobody knows the file's name
                    self._store.remove(decoded.file.name)
                if isinstance(error, TimeoutError):
                    raise BadVideo(_TOO_SLOW) from None
                raise
        return decoded

    async def _follow(self, process: asyncio.subprocess.Process, job: DecodeJob, owner: str) -> DecodedVideo:
        lines = cast("asyncio.StreamWriter", process.stdin)
        answers = _answers(process)
        await _send(lines, asdict(job))
        described = _Described.model_validate(await anext(answers))
        expected = VIDEO_HEADER_BYTES + described.expected_bytes if described.expected_bytes else 0
        with self._store.draft(Kind.VIDEO, expected, owner=owner) as draft:
            await draft.append(bytes(VIDEO_HEADER_BYTES))
            await _send(lines, {"into": str(draft.path)})
            async for message in answers:
                answer = _Answer.model_validate(message)
                if answer.num_frames:
                    shape = VideoShape(answer.num_frames, described.height, described.width)
                    return self._commit(draft, shape, described)
                self._store.reserve(draft, VIDEO_HEADER_BYTES + answer.room)
                draft.written_bytes = max(draft.written_bytes, VIDEO_HEADER_BYTES + answer.room)
                await _send(lines, {})
        raise InternalError("the decoder ended without an answer")

    def _commit(self, draft: Draft, shape: VideoShape, described: _Described) -> DecodedVideo:
        draft.written_bytes = VIDEO_HEADER_BYTES + shape.num_bytes
        self._store.reserve(draft, draft.written_bytes)
        draft.write_header(shape)
        draft.fps = Fraction(described.fps).limit_denominator(MAX_FPS_DENOMINATOR)
        return DecodedVideo(draft.commit(), shape, described.fps, described.poster)


def _job(spool: Draft, query: VideoUploadQuery, limit_bytes: int) -> DecodeJob:
    if query.end is not None and query.end <= query.start:
        raise InvalidField(f"end: must be greater than start, {query.start:g}, got {query.end:g}", "end")
    return DecodeJob(
        path=str(spool.path),
        start=_exact(query.start, _CLOCK_HZ),
        end="" if query.end is None else _exact(query.end, _CLOCK_HZ),
        fps="" if query.fps is None else _exact(query.fps, MAX_FPS_DENOMINATOR),
        max_frames=query.max_frames,
        height=query.height,
        width=query.width,
        fit=query.fit,
        limit_bytes=limit_bytes,
    )


def _exact(number: float, max_denominator: int) -> str:
    """The fraction that was meant: 0.2 is 1/5, and not the float next to it."""
    return str(Fraction(number).limit_denominator(max_denominator))


async def _answers(process: asyncio.subprocess.Process) -> AsyncIterator[dict[str, Any]]:
    """The answers of a decoder.

    Raises:
        FilmstripError: it refuses the video, or its process ended.
    """
    async for line in cast("asyncio.StreamReader", process.stdout):
        if not line.endswith(b"\n"):
            break
        message = json.loads(line)
        if error := _error(message):
            raise error
        yield message
    await process.wait()
    if process.returncode == -signal.SIGXCPU:
        raise BadVideo(_TOO_SLOW)
    log.warning("the process that decoded a video exited with status %s", process.returncode)
    raise BadVideo("the video cannot be decoded within the limits on time and memory")


def _error(message: dict[str, Any]) -> FilmstripError | None:
    if not message.keys() & {"refused", "failed"}:
        return None
    answer = _Answer.model_validate(message)
    if answer.refused:
        return TooLarge(answer.refused) if answer.is_too_large else BadVideo(answer.refused)
    if answer.failed == "disk_full":
        return DiskFull("the server's disk is full")
    if answer.failed == "memory":
        return BadVideo("the video takes too much memory to decode; its frames may be too large")
    log.warning("a video could not be decoded: %s", answer.failed)
    return BadVideo("the video cannot be decoded")


async def _send(lines: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):  # the process has ended, which its answers show
        lines.write(json.dumps(message).encode() + b"\n")
        await lines.drain()
