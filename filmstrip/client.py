"""Clients of a Filmstrip server: a blocking one, and one for asyncio.

    from filmstrip.client import Client

    with Client() as client:  # the server in FILMSTRIP_SERVER, else http://127.0.0.1:8000
        uploaded = client.upload(video)  # uint8 [F, H, W, C]
        complete = client.run(pipeline_id="scribble", prompt="", input_path=uploaded.input_path, on_event=print)
        client.download_mp4(complete.output_path, "scribble.mp4", fps=25)

A refusal of the server is raised as the class of its error code, and a failure on the way to it as a `ClientError`; see
`filmstrip.errors`. `run` also raises if the generation fails or is cancelled while it runs; with `generate` that is the
last event.

What needs no I/O is in `filmstrip.endpoints` and `filmstrip.wire`, once for both clients.
"""

import asyncio
import os
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, closing, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeVar, Unpack

import httpx
import httpx_sse

from filmstrip import endpoints
from filmstrip.connection_settings import TIMEOUT_S, Verify, connection_options
from filmstrip.errors import (
    ClientError,
    ConnectionFailed,
    EmptyBody,
    FilmstripError,
    GenerationCancelled,
    GenerationsUnsupported,
    ServerUnreachable,
    StreamBroken,
    TimedOut,
    TlsUnsupported,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.following import MAX_RECONNECTS, STREAM_ENDED
from filmstrip.generations import AsyncEventStream, AsyncGenerations, EventStream, Generations
from filmstrip.http_errors import mapped_errors, mapped_proxy_errors
from filmstrip.models import (
    LAST_EVENTS,
    Cancelled,
    Complete,
    DryRunPlan,
    ErrorEvent,
    Event,
    Generation,
    Health,
    LoadAnswer,
    LoadStatus,
    PipelineFeatures,
    PipelineInfo,
    Preview,
    Progress,
    Queued,
    UploadedData,
    UploadedVideo,
    completed,
    parse_event,
)
from filmstrip.request_fields import ChunkSpec, GenerateFields
from filmstrip.sender import AsyncSender, Sender
from filmstrip.video import open_mp4
from filmstrip.wire import (
    BlobBuilder,
    BodyChecker,
    Frame,
    FrameReader,
    Video,
    VideoReader,
    VideoShape,
    as_vace_frames,
    upload_shape,
    video_body,
)

__all__ = [
    "AsyncClient",
    "AsyncEventStream",
    "AsyncGenerations",
    "BlobBuilder",
    "Cancelled",
    "ChunkSpec",
    "Client",
    "ClientError",
    "Complete",
    "ConnectionFailed",
    "DryRunPlan",
    "ErrorEvent",
    "Event",
    "EventStream",
    "FilmstripError",
    "GenerateFields",
    "Generation",
    "GenerationCancelled",
    "Generations",
    "GenerationsUnsupported",
    "Health",
    "LoadAnswer",
    "LoadStatus",
    "PipelineFeatures",
    "PipelineInfo",
    "Preview",
    "Progress",
    "Queued",
    "ServerUnreachable",
    "StreamBroken",
    "TimedOut",
    "TlsUnsupported",
    "UnexpectedAnswer",
    "UntrustedCertificate",
    "UploadedData",
    "UploadedVideo",
    "VideoShape",
    "as_vace_frames",
]

Fit = Literal["cover", "contain", "fill"]
_PIECE_BYTES = 2**18

PieceT = TypeVar("PieceT")


class Client:
    """A blocking client. Threads can share it, so that one can cancel the generation that another waits for.

    Args:
        base_url: URL of the server, such as http://127.0.0.1:8000. None: FILMSTRIP_SERVER of the environment, else
            http://127.0.0.1:8000.
        token: sent as `Authorization: Bearer`, if the server or a proxy needs a key. None: FILMSTRIP_TOKEN of the
            environment, only for the environment's server. An empty string sends none.
        timeout_s: longest silence of a connection. A generation whose pipeline must be loaded first is silent until it
            is loaded: call `load` and poll `load_status` first, or allow more time.
        transport: an httpx transport, for tests.
        verify: how to check the server's TLS certificate. True: with the default authorities. A PEM file, or a folder
            of them: with these authorities instead. An SSL context, or False for no check.
        max_reconnects: how often in a row to connect again when the events of a generation with an id break off.

    Attributes:
        generations: generations with an id, which go on without their client: submit, attach, list, cancel, download.

    Raises:
        ValueError: the URL is not that of an HTTP server, the token cannot be sent in a header, or the file of
            `verify` has no certificates.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
        verify: Verify = True,
        *,
        max_reconnects: int = MAX_RECONNECTS,
    ) -> None:
        options = connection_options(base_url, token, timeout_s, verify)
        with mapped_proxy_errors():
            self._http = httpx.Client(transport=transport, **options)
        self._sender = Sender(self._http)
        self.generations = Generations(self._sender, max_reconnects)
        self._runs: set[EventStream] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def upload(self, video: Video | Iterable[Frame | bytes], shape: VideoShape | None = None) -> UploadedVideo:
        """Upload an input video.

        Args:
            video: uint8. An array [F, H, W, C]; or an iterable of frames [H, W, C], or of pieces of their bytes, of
                which only one at a time is in memory.
            shape: shape of the whole video; required unless it is one array.

        Raises:
            ValueError: the video is not uint8, or does not have the number of frames that its shape says.
        """
        shape = upload_shape(video, shape)
        return self._sender.send(endpoints.upload(shape), video_body(video, shape))

    def upload_file(
        self,
        file: BinaryIO,
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | Fraction | None = None,
        max_frames: int | None = None,
        width: int | None = None,
        height: int | None = None,
        fit: Fit | None = None,
    ) -> UploadedVideo:
        """Upload an MP4, MOV, WebM or MKV file, which the server decodes.

        Args:
            file: open in binary mode, at its start.
            start: first second of the part to decode.
            end: second to stop at.
            fps: frames per second; None keeps the file's own rate.
            max_frames: most frames.
            width: of the frames, in pixels; with only one side, the other one keeps the proportions.
            height: likewise.
            fit: for a video of another shape: "cover" crops it, "contain" adds black bars, "fill" stretches it. None is
                "cover".

        Raises:
            BadVideo: the server cannot decode the file.
            TooLarge: its frames exceed the limit; the message names values that fit.
            BadHeader: the server is too old to decode video files.
        """
        part = {"start": start, "end": end, "fps": fps, "max_frames": max_frames}
        call = endpoints.upload_file(_size(file), **part, width=width, height=height, fit=fit)
        return self._sender.send(call, _read_pieces(file))

    def decodes_video_files(self) -> bool:
        """Whether the server has `upload_file`; asks it by an upload without a body, which every server refuses."""
        try:
            self._sender.send(endpoints.upload_file(0), b"")
        except (FilmstripError, UnexpectedAnswer) as error:
            return isinstance(error, EmptyBody)
        return False

    def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes]) -> UploadedData:
        """Upload a blob of arrays that chunk_specs point into."""
        return self._sender.send(endpoints.upload_data(data), data if isinstance(data, bytes) else iter(data))

    def upload_asset(self, image: bytes | Path) -> str:
        """Upload a PNG, JPEG or WebP image; returns the path for image fields of a request."""
        body = image.read_bytes() if isinstance(image, Path) else image
        return self._sender.send(endpoints.upload_asset(), body).path

    def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs, by its name on the server.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        self._sender.send(endpoints.delete(name))

    def pipelines(self) -> list[PipelineInfo]:
        """What each pipeline of the server is and can do."""
        return self._sender.send(endpoints.pipelines()).pipelines

    def pipeline(self, id: str) -> PipelineInfo:
        """What one pipeline is and can do.

        Raises:
            UnknownPipeline: the server doesn't have it.
        """
        return endpoints.find_pipeline(id, self.pipelines())

    def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> LoadAnswer:
        """Start to load pipelines; returns at once, with the status "loading" or "loaded"."""
        return self._sender.send(endpoints.load(pipeline_ids, load_params))

    def load_status(self) -> LoadStatus:
        """How the last load of this client went, or goes."""
        return self._sender.send(endpoints.load_status())

    def status(self) -> LoadStatus:
        """Deprecated name of `load_status`."""
        _warn_of_status()
        return self.load_status()

    def health(self) -> Health:
        """The server's health; its status is "healthy" when a generation would be accepted, or one runs."""
        return self._sender.send(endpoints.health())

    def cancel(self) -> str:
        """End what `run` and `generate` run, after its current chunk; returns "cancelling", or "idle" if nothing runs.

        Other generations with an id have `generations.cancel`.
        """
        statuses = [run.cancel() for run in list(self._runs)]
        statuses.append(self._sender.send(endpoints.cancel()).status)
        return "idle" if set(statuses) == {"idle"} else "cancelling"

    def run(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], None] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> Complete:
        """Generate a video and wait until it is complete; its `output_path` can then be downloaded.

        It is a generation with an id: it waits for its turn, and a broken connection is made again. On a server without
        generations with an id (it answers 404, 405 or 501), it runs as in `generate`.

        Args:
            request: fields of a GenerateRequest.
            on_event: called for each event, the last one included. An exception that it raises ends the generation.
            fields: fields of a GenerateRequest, which take precedence; None counts as not set.

        Raises:
            FilmstripError: the server refused the request, or the generation failed.
            GenerationCancelled: someone cancelled it; the exception names the frames generated so far.
            StreamBroken: the connection broke for longer than reconnecting helps. The server cancels the generation
                soon after, and `generations.get` of the exception's `id` tells what became of it.
            ConnectionFailed: the server cannot be reached.
        """
        last: Event | None = None
        stream = self.generations.start(request, on_disconnect="cancel", **fields)
        with ExitStack() as stack:
            events: Iterator[Event] = stream
            self._runs.add(stream)
            stack.callback(self._runs.discard, stream)
            try:
                stack.enter_context(stream)
            except GenerationsUnsupported:
                self._runs.discard(stream)
                events = stack.enter_context(self.generate(request, **fields))
            for last in events:
                if on_event is not None:
                    on_event(last)
        return completed(last)

    @contextmanager
    def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Unpack[GenerateFields]
    ) -> Iterator[Iterator[Event]]:
        """Generate a video the classic way: `with client.generate(...) as events`, then iterate over the events.

        The generation lives as long as the connection, and is refused while another one runs. `generations.start` is
        the same for a generation that waits for its turn and survives a broken connection.

        The stream ends after Complete, Cancelled or ErrorEvent. Leaving the block earlier closes the connection, which
        ends the generation and discards its frames; `cancel` keeps them.

        Args:
            request: fields of a GenerateRequest.
            fields: fields of a GenerateRequest, which take precedence; None counts as not set.

        Raises:
            FilmstripError: the server refused the request.
            Busy: another generation runs.
            ConnectionFailed: also if the stream ends without a last event.
        """
        with self._sender.stream(endpoints.generate(request, fields)) as response:
            yield _read_events(response)

    def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; does not download its frames."""
        reader = FrameReader()
        with self._sender.stream(endpoints.download(output_path, header_only=True)) as response, mapped_errors():
            for data in response.iter_bytes():
                next(reader.feed(data), None)
                if reader.shape is not None:
                    break
        return reader.required_shape()

    def download(self, output_path: str) -> Video:
        """Download an output as one array, uint8 [F, H, W, C]."""
        reader = VideoReader()
        with self._sender.stream(endpoints.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                reader.feed(data)
        return reader.finish()

    def download_frames(self, output_path: str) -> Generator[Frame, None, None]:
        """Download an output frame by frame, uint8 [H, W, C]; only one frame at a time is in memory."""
        reader = FrameReader()
        with self._sender.stream(endpoints.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                yield from reader.feed(data)
        reader.finish()

    def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Download an output, with its 20-byte header, into an open file; returns the number of bytes."""
        num_bytes = 0
        with self._sender.stream(endpoints.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                num_bytes += file.write(data)
        return num_bytes

    def download_mp4(self, output_path: str, path: str | Path, fps: float) -> int:
        """Download an output and write it as an MP4, frame by frame; returns the number of frames."""
        with open_mp4(path) as output, closing(self.download_frames(output_path)) as frames:
            return output.write(frames, fps).num_frames


class AsyncClient:
    """A client for asyncio; see `filmstrip.client.Client` for the arguments and the errors."""

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        verify: Verify = True,
        *,
        max_reconnects: int = MAX_RECONNECTS,
    ) -> None:
        options = connection_options(base_url, token, timeout_s, verify)
        with mapped_proxy_errors():
            self._http = httpx.AsyncClient(transport=transport, **options)
        self._sender = AsyncSender(self._http)
        self.generations = AsyncGenerations(self._sender, max_reconnects)
        self._runs: set[AsyncEventStream] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def upload(
        self,
        video: Video | Iterable[Frame | bytes] | AsyncIterable[Frame | bytes],
        shape: VideoShape | None = None,
    ) -> UploadedVideo:
        """Upload an input video: an array [F, H, W, C], or an iterable of frames or bytes, and its shape."""
        shape = upload_shape(video, shape)
        return await self._sender.send(endpoints.upload(shape), _video_body(_pieces(video), shape))

    async def upload_file(
        self,
        file: BinaryIO,
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | Fraction | None = None,
        max_frames: int | None = None,
        width: int | None = None,
        height: int | None = None,
        fit: Fit | None = None,
    ) -> UploadedVideo:
        """Upload an MP4, MOV, WebM or MKV file, which the server decodes."""
        part = {"start": start, "end": end, "fps": fps, "max_frames": max_frames}
        call = endpoints.upload_file(_size(file), **part, width=width, height=height, fit=fit)
        return await self._sender.send(call, _pieces(_read_pieces(file)))

    async def decodes_video_files(self) -> bool:
        """Whether the server has `upload_file`; asks it by an upload without a body, which every server refuses."""
        try:
            await self._sender.send(endpoints.upload_file(0), b"")
        except (FilmstripError, UnexpectedAnswer) as error:
            return isinstance(error, EmptyBody)
        return False

    async def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes] | AsyncIterable[bytes]) -> UploadedData:
        """Upload a blob of arrays that chunk_specs point into."""
        return await self._sender.send(endpoints.upload_data(data), data if isinstance(data, bytes) else _pieces(data))

    async def upload_asset(self, image: bytes | Path) -> str:
        """Upload a PNG, JPEG or WebP image; returns the path for image fields of a request."""
        body = await asyncio.to_thread(image.read_bytes) if isinstance(image, Path) else image
        return (await self._sender.send(endpoints.upload_asset(), body)).path

    async def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs, by its name on the server.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        await self._sender.send(endpoints.delete(name))

    async def pipelines(self) -> list[PipelineInfo]:
        """What each pipeline of the server is and can do."""
        return (await self._sender.send(endpoints.pipelines())).pipelines

    async def pipeline(self, id: str) -> PipelineInfo:
        """What one pipeline is and can do."""
        return endpoints.find_pipeline(id, await self.pipelines())

    async def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> LoadAnswer:
        """Start to load pipelines; returns at once, with the status "loading" or "loaded"."""
        return await self._sender.send(endpoints.load(pipeline_ids, load_params))

    async def load_status(self) -> LoadStatus:
        """How the last load of this client went, or goes."""
        return await self._sender.send(endpoints.load_status())

    async def status(self) -> LoadStatus:
        """Deprecated name of `load_status`."""
        _warn_of_status()
        return await self.load_status()

    async def health(self) -> Health:
        """The server's health."""
        return await self._sender.send(endpoints.health())

    async def cancel(self) -> str:
        """End what `run` and `generate` run, after its current chunk; returns "cancelling", or "idle"."""
        statuses = [await run.cancel() for run in list(self._runs)]
        statuses.append((await self._sender.send(endpoints.cancel())).status)
        return "idle" if set(statuses) == {"idle"} else "cancelling"

    async def run(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], None] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> Complete:
        """Generate a video and wait until it is complete; its `output_path` can then be downloaded."""
        last: Event | None = None
        stream = self.generations.start(request, on_disconnect="cancel", **fields)
        async with AsyncExitStack() as stack:
            events: AsyncIterator[Event] = stream
            self._runs.add(stream)
            stack.callback(self._runs.discard, stream)
            try:
                await stack.enter_async_context(stream)
            except GenerationsUnsupported:
                self._runs.discard(stream)
                events = await stack.enter_async_context(self.generate(request, **fields))
            async for last in events:
                if on_event is not None:
                    on_event(last)
        return completed(last)

    @asynccontextmanager
    async def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Unpack[GenerateFields]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Generate a video the classic way: `async with client.generate(...) as events`, then `async for`."""
        async with (
            self._sender.stream(endpoints.generate(request, fields)) as response,
            aclosing(_aread_events(response)) as events,
        ):
            yield events

    async def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; does not download its frames."""
        reader = FrameReader()
        async with self._sender.stream(endpoints.download(output_path, header_only=True)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    next(reader.feed(data), None)
                    if reader.shape is not None:
                        break
        return reader.required_shape()

    async def download(self, output_path: str) -> Video:
        """Download an output as one array, uint8 [F, H, W, C]."""
        reader = VideoReader()
        async with self._sender.stream(endpoints.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    reader.feed(data)
        return reader.finish()

    async def download_frames(self, output_path: str) -> AsyncGenerator[Frame, None]:
        """Download an output frame by frame; wrap it in `contextlib.aclosing` if you may stop early."""
        reader = FrameReader()
        async with self._sender.stream(endpoints.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    for frame in reader.feed(data):
                        yield frame
        reader.finish()

    async def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Download an output, with its 20-byte header, into an open file; returns the number of bytes."""
        num_bytes = 0
        async with self._sender.stream(endpoints.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    num_bytes += await asyncio.to_thread(file.write, data)
        return num_bytes

    async def download_mp4(self, output_path: str, path: str | Path, fps: float) -> int:
        """Download an output and write it as an MP4, frame by frame, in a thread; returns the number of frames."""
        with open_mp4(path) as output:
            output.start(fps)
            async with aclosing(self.download_frames(output_path)) as frames:
                async for frame in frames:
                    await asyncio.to_thread(output.add, frame)
            return output.commit().num_frames


# -- Streams -----------------------------------------------------------------------------------------------------


def _read_events(response: httpx.Response) -> Iterator[Event]:
    with mapped_errors():
        for sse in httpx_sse.EventSource(response).iter_sse():
            event = parse_event(sse.event, sse.data)
            if event is not None:
                yield event
            if isinstance(event, LAST_EVENTS):
                return
    raise ConnectionFailed(STREAM_ENDED)


async def _aread_events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    with mapped_errors():
        async with aclosing(httpx_sse.EventSource(response).aiter_sse()) as events:
            async for sse in events:
                event = parse_event(sse.event, sse.data)
                if event is not None:
                    yield event
                if isinstance(event, LAST_EVENTS):
                    return
    raise ConnectionFailed(STREAM_ENDED)


def _size(file: BinaryIO) -> int:
    """Bytes of a file from its current position on."""
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end - here


def _read_pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


async def _pieces(source: Iterable[PieceT] | AsyncIterable[PieceT]) -> AsyncIterator[PieceT]:
    if isinstance(source, AsyncIterable):
        async for piece in source:
            yield piece
    else:
        for piece in source:
            yield piece


async def _video_body(frames: AsyncIterator[Frame | bytes], shape: VideoShape) -> AsyncIterator[bytes]:
    checker = BodyChecker(shape)
    async for frame in frames:
        yield checker.add(frame)
    checker.finish()


def _warn_of_status() -> None:
    warnings.warn("status() is deprecated: its name is load_status()", DeprecationWarning, stacklevel=3)
