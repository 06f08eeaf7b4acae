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
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, Unpack

import httpx
import httpx_sse

from filmstrip import endpoints
from filmstrip.connection_settings import TIMEOUT_S, Verify, connection_options
from filmstrip.endpoints import AnswerCall, StreamCall
from filmstrip.errors import (
    ClientError,
    ConnectionFailed,
    FilmstripError,
    GenerationCancelled,
    ServerUnreachable,
    TimedOut,
    TlsUnsupported,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.http_errors import mapped_errors, mapped_proxy_errors, read_error, unexpected
from filmstrip.models import (
    LAST_EVENTS,
    Cancelled,
    Complete,
    ErrorEvent,
    Event,
    Health,
    LoadAnswer,
    LoadStatus,
    PipelineFeatures,
    PipelineInfo,
    Preview,
    Progress,
    UploadedData,
    UploadedVideo,
    completed,
    parse_event,
)
from filmstrip.request_fields import ChunkSpec, GenerateFields
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
    "BlobBuilder",
    "Cancelled",
    "ChunkSpec",
    "Client",
    "ClientError",
    "Complete",
    "ConnectionFailed",
    "ErrorEvent",
    "Event",
    "FilmstripError",
    "GenerateFields",
    "GenerationCancelled",
    "Health",
    "LoadAnswer",
    "LoadStatus",
    "PipelineFeatures",
    "PipelineInfo",
    "Preview",
    "Progress",
    "ServerUnreachable",
    "TimedOut",
    "TlsUnsupported",
    "UnexpectedAnswer",
    "UntrustedCertificate",
    "UploadedData",
    "UploadedVideo",
    "VideoShape",
    "as_vace_frames",
]

_STREAM_ENDED = "the stream ended before the generation"

AnswerT = TypeVar("AnswerT")
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
    ) -> None:
        options = connection_options(base_url, token, timeout_s, verify)
        with mapped_proxy_errors():
            self._http = httpx.Client(transport=transport, **options)

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
        return self._send(endpoints.upload(shape), video_body(video, shape))

    def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes]) -> UploadedData:
        """Upload a blob of arrays that chunk_specs point into."""
        return self._send(endpoints.upload_data(data), data if isinstance(data, bytes) else iter(data))

    def upload_asset(self, image: bytes | Path) -> str:
        """Upload a PNG, JPEG or WebP image; returns the path for image fields of a request."""
        body = image.read_bytes() if isinstance(image, Path) else image
        return self._send(endpoints.upload_asset(), body).path

    def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs, by its name on the server.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        self._send(endpoints.delete(name))

    def pipelines(self) -> list[PipelineInfo]:
        """What each pipeline of the server is and can do."""
        return self._send(endpoints.pipelines()).pipelines

    def pipeline(self, id: str) -> PipelineInfo:
        """What one pipeline is and can do.

        Raises:
            UnknownPipeline: the server doesn't have it.
        """
        return endpoints.find_pipeline(id, self.pipelines())

    def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> LoadAnswer:
        """Start to load pipelines; returns at once, with the status "loading" or "loaded"."""
        return self._send(endpoints.load(pipeline_ids, load_params))

    def load_status(self) -> LoadStatus:
        """How the last load of this client went, or goes."""
        return self._send(endpoints.load_status())

    def status(self) -> LoadStatus:
        """Deprecated name of `load_status`."""
        _warn_of_status()
        return self.load_status()

    def health(self) -> Health:
        """The server's health; its status is "healthy" when a generation would be accepted, or one runs."""
        return self._send(endpoints.health())

    def cancel(self) -> str:
        """End the running generation after its current chunk; returns "cancelling", or "idle" when nothing runs."""
        return self._send(endpoints.cancel()).status

    def run(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        on_event: Callable[[Event], None] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> Complete:
        """Generate a video and wait until it is complete; its `output_path` can then be downloaded.

        Args:
            request: fields of a GenerateRequest.
            on_event: called for each event, the last one included. An exception that it raises ends the generation.
            fields: fields of a GenerateRequest, which take precedence; None counts as not set.

        Raises:
            FilmstripError: the server refused the request, or the generation failed.
            GenerationCancelled: someone cancelled it; the exception names the frames generated so far.
            ConnectionFailed: the connection broke, which also ends the generation.
        """
        last: Event | None = None
        with self.generate(request, **fields) as events:
            for last in events:
                if on_event is not None:
                    on_event(last)
        return completed(last)

    @contextmanager
    def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Unpack[GenerateFields]
    ) -> Iterator[Iterator[Event]]:
        """Generate a video and follow its events: `with client.generate(...) as events`, then iterate over them.

        The stream ends after Complete, Cancelled or ErrorEvent. Leaving the block earlier closes the connection, which
        ends the generation and discards its frames; `cancel` keeps them.

        Args:
            request: fields of a GenerateRequest.
            fields: fields of a GenerateRequest, which take precedence; None counts as not set.

        Raises:
            FilmstripError: the server refused the request.
            ConnectionFailed: also if the stream ends without a last event.
        """
        with self._stream(endpoints.generate(request, fields)) as response:
            yield _read_events(response)

    def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; does not download its frames."""
        reader = FrameReader()
        with self._stream(endpoints.download(output_path, header_only=True)) as response, mapped_errors():
            for data in response.iter_bytes():
                next(reader.feed(data), None)
                if reader.shape is not None:
                    break
        return reader.required_shape()

    def download(self, output_path: str) -> Video:
        """Download an output as one array, uint8 [F, H, W, C]."""
        reader = VideoReader()
        with self._stream(endpoints.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                reader.feed(data)
        return reader.finish()

    def download_frames(self, output_path: str) -> Generator[Frame, None, None]:
        """Download an output frame by frame, uint8 [H, W, C]; only one frame at a time is in memory."""
        reader = FrameReader()
        with self._stream(endpoints.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                yield from reader.feed(data)
        reader.finish()

    def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Download an output, with its 20-byte header, into an open file; returns the number of bytes."""
        num_bytes = 0
        with self._stream(endpoints.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                num_bytes += file.write(data)
        return num_bytes

    def download_mp4(self, output_path: str, path: str | Path, fps: float) -> int:
        """Download an output and write it as an MP4, frame by frame; returns the number of frames."""
        with open_mp4(path) as output, closing(self.download_frames(output_path)) as frames:
            return output.write(frames, fps).num_frames

    def _send(self, call: AnswerCall[AnswerT], content: bytes | Iterator[bytes] | None = None) -> AnswerT:
        with mapped_errors():
            response = self._http.send(call.build(self._http, content))
        return call.answer(response)

    @contextmanager
    def _stream(self, call: StreamCall) -> Iterator[httpx.Response]:
        with mapped_errors():
            response = self._http.send(call.build(self._http), stream=True)
        with closing(response):
            if not response.is_success:
                with mapped_errors():
                    response.read()
                raise read_error(response)
            if not call.is_answered_by(response):
                with mapped_errors():
                    raise unexpected(response, next(response.iter_bytes(), b""))
            # Outside mapped_errors: an error in the caller's block is the caller's.
            yield response


class AsyncClient:
    """A client for asyncio; see `filmstrip.client.Client` for the arguments and the errors."""

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        verify: Verify = True,
    ) -> None:
        options = connection_options(base_url, token, timeout_s, verify)
        with mapped_proxy_errors():
            self._http = httpx.AsyncClient(transport=transport, **options)

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
        return await self._send(endpoints.upload(shape), _video_body(_pieces(video), shape))

    async def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes] | AsyncIterable[bytes]) -> UploadedData:
        """Upload a blob of arrays that chunk_specs point into."""
        return await self._send(endpoints.upload_data(data), data if isinstance(data, bytes) else _pieces(data))

    async def upload_asset(self, image: bytes | Path) -> str:
        """Upload a PNG, JPEG or WebP image; returns the path for image fields of a request."""
        body = await asyncio.to_thread(image.read_bytes) if isinstance(image, Path) else image
        return (await self._send(endpoints.upload_asset(), body)).path

    async def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs, by its name on the server.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        await self._send(endpoints.delete(name))

    async def pipelines(self) -> list[PipelineInfo]:
        """What each pipeline of the server is and can do."""
        return (await self._send(endpoints.pipelines())).pipelines

    async def pipeline(self, id: str) -> PipelineInfo:
        """What one pipeline is and can do."""
        return endpoints.find_pipeline(id, await self.pipelines())

    async def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> LoadAnswer:
        """Start to load pipelines; returns at once, with the status "loading" or "loaded"."""
        return await self._send(endpoints.load(pipeline_ids, load_params))

    async def load_status(self) -> LoadStatus:
        """How the last load of this client went, or goes."""
        return await self._send(endpoints.load_status())

    async def status(self) -> LoadStatus:
        """Deprecated name of `load_status`."""
        _warn_of_status()
        return await self.load_status()

    async def health(self) -> Health:
        """The server's health."""
        return await self._send(endpoints.health())

    async def cancel(self) -> str:
        """End the running generation after its current chunk; returns "cancelling", or "idle" when nothing runs."""
        return (await self._send(endpoints.cancel())).status

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
        async with self.generate(request, **fields) as events:
            async for last in events:
                if on_event is not None:
                    on_event(last)
        return completed(last)

    @asynccontextmanager
    async def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Unpack[GenerateFields]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Generate a video and follow its events: `async with client.generate(...) as events`, then `async for`."""
        async with (
            self._stream(endpoints.generate(request, fields)) as response,
            aclosing(_aread_events(response)) as events,
        ):
            yield events

    async def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; does not download its frames."""
        reader = FrameReader()
        async with self._stream(endpoints.download(output_path, header_only=True)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    next(reader.feed(data), None)
                    if reader.shape is not None:
                        break
        return reader.required_shape()

    async def download(self, output_path: str) -> Video:
        """Download an output as one array, uint8 [F, H, W, C]."""
        reader = VideoReader()
        async with self._stream(endpoints.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    reader.feed(data)
        return reader.finish()

    async def download_frames(self, output_path: str) -> AsyncGenerator[Frame, None]:
        """Download an output frame by frame; wrap it in `contextlib.aclosing` if you may stop early."""
        reader = FrameReader()
        async with self._stream(endpoints.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    for frame in reader.feed(data):
                        yield frame
        reader.finish()

    async def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Download an output, with its 20-byte header, into an open file; returns the number of bytes."""
        num_bytes = 0
        async with self._stream(endpoints.download(output_path)) as response:
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

    async def _send(self, call: AnswerCall[AnswerT], content: bytes | AsyncIterator[bytes] | None = None) -> AnswerT:
        with mapped_errors():
            response = await self._http.send(call.build(self._http, content))
        return call.answer(response)

    @asynccontextmanager
    async def _stream(self, call: StreamCall) -> AsyncIterator[httpx.Response]:
        with mapped_errors():
            response = await self._http.send(call.build(self._http), stream=True)
        async with aclosing(response):
            if not response.is_success:
                with mapped_errors():
                    await response.aread()
                raise read_error(response)
            if not call.is_answered_by(response):
                with mapped_errors():
                    raise unexpected(response, await anext(response.aiter_bytes(), b""))
            yield response


# -- Streams -----------------------------------------------------------------------------------------------------


def _read_events(response: httpx.Response) -> Iterator[Event]:
    with mapped_errors():
        for sse in httpx_sse.EventSource(response).iter_sse():
            event = parse_event(sse.event, sse.data)
            if event is not None:
                yield event
            if isinstance(event, LAST_EVENTS):
                return
    raise ConnectionFailed(_STREAM_ENDED)


async def _aread_events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    with mapped_errors():
        async with aclosing(httpx_sse.EventSource(response).aiter_sse()) as events:
            async for sse in events:
                event = parse_event(sse.event, sse.data)
                if event is not None:
                    yield event
                if isinstance(event, LAST_EVENTS):
                    return
    raise ConnectionFailed(_STREAM_ENDED)


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
