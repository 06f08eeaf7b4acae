"""The seam between the HTTP endpoints and what runs generations.

`LocalJobs` is the implementation for one machine. Another one may keep its queue, its records and its events on other
machines: only `frame_source` refers to a process, and everything that may need the network is awaited.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from filmstrip.models import State
from filmstrip.wire import VideoShape

from .events import NumberedEvent
from .schema import CancelStatus, GenerateRequest, OnDisconnect, PreviewOptions
from .video_files import FrameSource


class EntryPoint(StrEnum):
    """The endpoints that take generations."""

    GENERATE = "generate"
    """POST /api/v1/generate: the generation ends with its client's stream."""

    RESOURCE = "generations"
    """/api/v1/generations and /v1/videos: the generation goes on without its client."""


MAX_SHOWN_PROMPT = 1000


@dataclass(frozen=True)
class Submission:
    """A generation to start.

    Attributes:
        client: who asks for it.
        id: its id, unique within the client; None lets `submit` make one.
        request: with the client's defaults filled in; `submit` draws a random seed.
        entry_point: the endpoint that takes it.
        idempotency_key: the client's other name for it.
        on_disconnect: what to do when nobody follows it any more.
        previews: which previews to make; None for none.
        video_fps: frames per second of its video files; None for those of the input video, or the default.
        own_files: stored inputs that are for it alone, and are removed at its end.
    """

    client: str
    id: str | None
    request: GenerateRequest
    entry_point: EntryPoint = EntryPoint.RESOURCE
    idempotency_key: str | None = None
    on_disconnect: OnDisconnect = "continue"
    previews: PreviewOptions | None = None
    video_fps: float | None = None
    own_files: tuple[str, ...] = ()


class Record(BaseModel):
    """What is kept of a generation, without its request and its events.

    Attributes:
        seq: its place in the order in which generations were accepted, from 1.
        client, id: its name; an id is unique within its client.
        entry_point: the endpoint that took it.
        pipeline_id: the pipeline.
        prompt: the start of its prompt, at most `MAX_SHOWN_PROMPT` characters.
        digest: hash of the request as it was sent, by which a repeated request is recognised.
        idempotency_key: the client's other name for it.
        seed: the number used.
        defaulted: fields of the stored request that come from the client's defaults.
        unused: fields of the request that the pipeline has no use for, sorted.
        pipelines: the pipelines of its chain.
        inputs: stored files that it reads.
        assets: inputs that only this generation uses, such as images from data URLs; removed at its end.
        previews: which previews to make; None for none.
        request_bytes: size of its request.
        preview_bytes: size of its previews so far.
        created_at, started_at, ended_at, expires_at: Unix times in seconds.
        chunk, frames: chunks and pixel frames generated so far.
        fps: pixel frames generated per second.
        video_fps: frames per second of its video files; None for the default.
        height, width: of the output, in pixels.
        output_path: name of the output in the store.
        video_shape: of the output, [F, H, W, C].
    """

    model_config = ConfigDict(frozen=True)

    seq: int
    client: str
    id: str
    entry_point: EntryPoint = Field(validation_alias=AliasChoices("entry_point", "door"))  # `door` in older records
    state: State
    pipeline_id: str = ""
    prompt: str = ""
    digest: str
    idempotency_key: str | None = None
    on_disconnect: OnDisconnect = "continue"
    previews: PreviewOptions | None = None
    seed: int
    defaulted: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    request_bytes: int = 0
    preview_bytes: int = 0
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    chunk: int = 0
    total_chunks: int
    frames: int = 0
    num_frames: int
    fps: float | None = None
    video_fps: float | None = None
    height: int = 0
    width: int = 0
    error_code: str | None = None
    error_message: str | None = None
    output_path: str | None = None
    video_shape: VideoShape | None = None


class GenerationView(NamedTuple):
    """A generation as its client sees it.

    Attributes:
        record: what is kept of it.
        position: its place in the queue, 1 for the next one; None if it does not wait or the place cannot be told.
        eta_s: seconds until its end, as far as they can be estimated.
        request: as it runs, in JSON; None in lists.
    """

    record: Record
    position: int | None = None
    eta_s: float | None = None
    request: str | None = None


class Submitted(NamedTuple):
    """The generation of a submission, with its request; if it is not new, it was there already."""

    generation: GenerationView
    is_new: bool


class QueuedEvent(NamedTuple):
    """The place in the queue has changed; the event has no number and is not repeated to later followers."""

    position: int


Followed = NumberedEvent | QueuedEvent | None
"""What a follower gets; None after a long silence."""


class Page(NamedTuple):
    """Some of a client's generations, in order, and the `after` of the next page, or None if there is none."""

    generations: list[GenerationView]
    next: str | None


class FramesSoFar(Protocol):
    """The frames that a generation has made so far."""

    @property
    def shape(self) -> VideoShape:
        """[F, H, W, C]."""

    def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes of the frames from `start` up to `stop`, piece by piece."""


class Jobs(Protocol):
    """Accepts, runs and remembers generations. A client sees its own only: those of others are unknown to it."""

    @property
    def is_closed(self) -> bool:
        """No more generations are accepted or started."""

    @property
    def is_generating(self) -> bool:
        """A generation runs."""

    async def close(self, timeout_s: float) -> None:
        """Accept no more generations, and end what runs within the time; what waits starts after a restart."""

    async def submit(self, submission: Submission) -> Submitted:
        """Accept a generation, which starts at once or waits for its turn.

        Raises:
            IdTaken: the client has a generation of this id or key with another request.
            QueueFull: no more generations may wait.
            Busy: the same, for one that comes by /generate.
            FilmstripError: the request cannot be served.
        """

    async def get(self, client: str, id: str, *, with_request: bool = True) -> GenerationView:
        """A generation, with its request unless that is not needed.

        Raises:
            NotFound: the client has no such generation, or it has expired.
        """

    async def list(
        self,
        client: str,
        *,
        state: State | None = None,
        limit: int = 20,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> Page:
        """The client's generations, newest first.

        Args:
            client: whose.
            state: only those in this state.
            limit: most of them.
            after: only those that follow this one.
            oldest_first: the other way round.

        Raises:
            NotFound: there is no generation `after`.
        """

    def follow(
        self, client: str, id: str, *, after: int = 0, silence_s: float
    ) -> AbstractAsyncContextManager[AsyncIterator[Followed]]:
        """Follow a generation's events up to its last one; while the context lasts, somebody follows it.

        The iterator ends early if the server stops and the generation survives that.

        Args:
            client: whose generation.
            id: which.
            after: number of the last event that the follower has.
            silence_s: longest silence before a None.

        Raises:
            NotFound: see `get`; on entering the context.
        """

    async def cancel(self, client: str, id: str) -> CancelStatus:
        """Cancel a generation: at once if it waits, otherwise after its current chunk.

        Raises:
            NotFound: see `get`.
        """

    async def cancel_streams(self, client: str) -> bool:
        """Cancel the client's generations that came by /generate; False if there are none."""

    async def delete(self, client: str, id: str) -> None:
        """End a generation as soon as the model stops and remove it with its files; returns when its slot is free.

        Raises:
            NotFound: see `get`.
        """

    def frames(self, client: str, id: str) -> AbstractAsyncContextManager[FramesSoFar]:
        """The frames that a generation has made so far, readable while the context lasts.

        Raises:
            NotFound: see `get`.
            NotReady: there are none.
        """

    async def frame_source(self, client: str, id: str) -> FrameSource:
        """The frames of a generation for an encoder: of its output, or of a video that still grows.

        Raises:
            NotFound: see `get`.
            NotReady: it has not started, or ended without frames.
        """
