"""Clients of a Filmstrip server: one that blocks, and one for asyncio.

    from filmstrip.client import Client, Complete

    with Client() as client:  # the server in FILMSTRIP_SERVER, else http://127.0.0.1:8000
        uploaded = client.upload(video)  # uint8 [F, H, W, C]
        with client.generate(pipeline_id="scribble", prompt="", input_path=uploaded.input_path) as events:
            for event in events:
                print(event)
        if isinstance(event, Complete):
            client.download_mp4(event.output_path, "scribble.mp4", fps=25)

A refusal of the server is raised as the class of its error code, and a failure on the way to it as a `ClientError`; see
`filmstrip.errors`. A generation that fails or is cancelled while it runs does not raise: that is its last event.
"""

import asyncio
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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, Self, TypeVar, Unpack
from urllib.parse import quote

import httpx
import httpx_sse
import numpy as np

from filmstrip.connection import (
    TIMEOUT_S,
    Verify,
    connection_options,
    mapped_errors,
    mapped_proxy_errors,
    read_error,
    unexpected,
)
from filmstrip.errors import (
    ClientError,
    ConnectionFailed,
    FilmstripError,
    ServerUnreachable,
    TimedOut,
    UnexpectedAnswer,
    UnknownPipeline,
    UntrustedCertificate,
)
from filmstrip.models import (
    LAST_EVENTS,
    CancelAnswer,
    Cancelled,
    Complete,
    ErrorEvent,
    Event,
    Health,
    LoadAnswer,
    LoadStatus,
    PipelineFeatures,
    PipelineInfo,
    PipelineList,
    Progress,
    UploadedAsset,
    UploadedData,
    UploadedVideo,
    parse_event,
)
from filmstrip.request_fields import ChunkSpec, GenerateFields
from filmstrip.video import open_mp4
from filmstrip.wire import (
    VIDEO_HEADER_BYTES,
    BlobBuilder,
    BodyChecker,
    Frame,
    FrameReader,
    Video,
    VideoReader,
    VideoShape,
    as_vace_frames,
    shape_of,
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
    "Health",
    "LoadAnswer",
    "LoadStatus",
    "PipelineFeatures",
    "PipelineInfo",
    "Progress",
    "ServerUnreachable",
    "TimedOut",
    "UnexpectedAnswer",
    "UntrustedCertificate",
    "UploadedData",
    "UploadedVideo",
    "VideoShape",
    "as_vace_frames",
]

EVENT_STREAM = "text/event-stream"
BINARY = "application/octet-stream"

AnswerT = TypeVar("AnswerT")
PieceT = TypeVar("PieceT")


# -- The endpoints ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call(Generic[AnswerT]):
    """A call of an endpoint: what it sends and how its answer is read.

    Attributes:
        method: the HTTP method.
        path: relative to the base URL.
        read: makes the answer from the body.
        params: the query.
        headers: in addition to those of every call.
        json: the body, where it is JSON.
        ok_statuses: statuses other than 2xx that carry an answer, not an error.
        stream: media type of an answer that is read as a stream.
    """

    method: str
    path: str
    read: Callable[[bytes], AnswerT]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    ok_statuses: frozenset[int] = frozenset()
    stream: str = ""

    def build(self, http: httpx.Client | httpx.AsyncClient, content: Any = None) -> httpx.Request:
        """The request, to be sent by `http`; `content` is a body that is not JSON."""
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, json=self.json, content=content
        )

    def answer(self, response: httpx.Response) -> AnswerT:
        """Read an answer, whose body must have been read.

        Raises:
            FilmstripError: the server refused; the class belongs to the error's code.
            UnexpectedAnswer: the answer is not Filmstrip's.
        """
        if not (response.is_success or response.status_code in self.ok_statuses):
            raise read_error(response)
        try:
            return self.read(response.content)
        except ValueError:  # pydantic's ValidationError is one, too
            raise unexpected(response) from None

    def is_stream(self, response: httpx.Response) -> bool:
        """Whether an answer is the stream that this call expects, and not a login page, for example."""
        media_type: str = response.headers.get("Content-Type", "")
        return media_type.partition(";")[0].strip().lower() == self.stream


def _upload_call(shape: VideoShape) -> _Call[UploadedVideo]:
    """Upload an input video of this shape."""
    headers = {
        "X-Video-Frames": str(shape.frames),
        "X-Video-Height": str(shape.height),
        "X-Video-Width": str(shape.width),
        "X-Video-Channels": str(shape.channels),
        **_binary(shape.num_bytes),
    }
    return _Call("POST", "/api/v1/generate/upload", UploadedVideo.model_validate_json, headers=headers)


def _upload_data_call(num_bytes: int | None) -> _Call[UploadedData]:
    """Upload a blob; a size of None is not known beforehand."""
    return _Call("POST", "/api/v1/generate/upload-data", UploadedData.model_validate_json, headers=_binary(num_bytes))


def _upload_asset_call() -> _Call[UploadedAsset]:
    """Upload an image."""
    return _Call("POST", "/api/v1/assets", UploadedAsset.model_validate_json, headers=_binary(None))


def _pipelines_call() -> _Call[PipelineList]:
    """List the pipelines."""
    return _Call("GET", "/api/v1/pipelines", PipelineList.model_validate_json)


def _load_call(pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None) -> _Call[LoadAnswer]:
    """Load pipelines."""
    ids = [pipeline_ids] if isinstance(pipeline_ids, str) else list(pipeline_ids)
    body: dict[str, Any] = {"pipeline_ids": ids}
    if load_params is not None:
        body["load_params"] = dict(load_params)
    return _Call("POST", "/api/v1/pipeline/load", LoadAnswer.model_validate_json, json=body)


def _status_call() -> _Call[LoadStatus]:
    """The status of the last load."""
    return _Call("GET", "/api/v1/pipeline/status", LoadStatus.model_validate_json)


def _health_call() -> _Call[Health]:
    """Whether a generation would be accepted; 503 carries the same JSON."""
    return _Call("GET", "/health", Health.model_validate_json, ok_statuses=frozenset({503}))


def _cancel_call() -> _Call[CancelAnswer]:
    """End the running generation after its current chunk."""
    return _Call("POST", "/api/v1/generate/cancel", CancelAnswer.model_validate_json)


def _generate_call(request: Mapping[str, Any]) -> _Call[None]:
    """Start a generation; the answer is a stream of events."""
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    return _Call("POST", "/api/v1/generate", _nothing, headers=headers, json=dict(request), stream=EVENT_STREAM)


def _download_call(output_path: str, *, header_only: bool = False) -> _Call[None]:
    """Download an output video, or only its 20-byte header; the answer is binary."""
    # No compression: it would cost the server far more than the saved bytes are worth.
    headers = {"Accept-Encoding": "identity"}
    if header_only:
        headers["Range"] = f"bytes=0-{VIDEO_HEADER_BYTES - 1}"
    params = {"path": output_path}
    return _Call("GET", "/api/v1/generate/download", _nothing, params, headers, stream=BINARY)


def _delete_call(name: str) -> _Call[None]:
    """Delete a stored file; the answer has no body."""
    return _Call("DELETE", f"/api/v1/files/{quote(name, safe='')}", _no_body)


def _request_of(request: Mapping[str, Any] | None, fields: Mapping[str, object]) -> dict[str, Any]:
    """The body of a generate request, from a dict and keywords; a keyword of None counts as not set."""
    return {**(request or {}), **{name: value for name, value in fields.items() if value is not None}}


def pick_pipeline(id: str, pipelines: Sequence[PipelineInfo]) -> PipelineInfo:
    """The pipeline with this id.

    Raises:
        UnknownPipeline: there is none; the message lists those there are.
    """
    for pipeline in pipelines:
        if pipeline.id == id:
            return pipeline
    names = ", ".join(pipeline.id for pipeline in pipelines) or "none"
    raise UnknownPipeline(f"there is no pipeline {id!r}; this server has: {names}")


def _binary(num_bytes: int | None) -> dict[str, str]:
    headers = {"Content-Type": BINARY}
    if num_bytes is not None:
        # So that the server can refuse a body that is too large before it reads it.
        headers["Content-Length"] = str(num_bytes)
    return headers


def _nothing(_body: bytes) -> None:
    """The answer is read as a stream."""


def _no_body(body: bytes) -> None:
    """The answer has no body; a login page that a network answers with has one.

    Raises:
        ValueError: it has one.
    """
    if body:
        raise ValueError("the answer has a body")


# -- The clients --------------------------------------------------------------------------------------------------


class Client:
    """A client that blocks. Several threads can use it, so that one can cancel what another waits for.

    Args:
        base_url: URL of the server, such as http://127.0.0.1:8000. None: FILMSTRIP_SERVER of the environment, else
            http://127.0.0.1:8000.
        token: sent as `Authorization: Bearer`, if the server or a proxy needs a key. None: FILMSTRIP_TOKEN of the
            environment, only for the environment's server. An empty string sends none.
        timeout_s: longest silence of a connection. A generation whose pipeline must be loaded first is silent until it
            is loaded: call `load` and poll `status` first, or allow more time.
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
        if isinstance(video, np.ndarray):
            shape = shape_of(video)
        if shape is None:
            raise ValueError("shape is required unless the video is one array")
        return self._send(_upload_call(shape), video_body(video, shape))

    def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes]) -> UploadedData:
        """Upload a blob of arrays that chunk_specs point into."""
        if isinstance(data, bytes):
            return self._send(_upload_data_call(len(data)), data)
        size = data.size if isinstance(data, BlobBuilder) else None
        return self._send(_upload_data_call(size), iter(data))

    def upload_asset(self, image: bytes | Path) -> str:
        """Upload a PNG, JPEG or WebP image; returns the path for image fields of a request."""
        body = image.read_bytes() if isinstance(image, Path) else image
        return self._send(_upload_asset_call(), body).path

    def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs, by its name on the server.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        self._send(_delete_call(name))

    def pipelines(self) -> list[PipelineInfo]:
        """What each pipeline of the server is and can do."""
        return self._send(_pipelines_call()).pipelines

    def pipeline(self, id: str) -> PipelineInfo:
        """What one pipeline is and can do.

        Raises:
            UnknownPipeline: the server doesn't have it.
        """
        return pick_pipeline(id, self.pipelines())

    def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> LoadAnswer:
        """Start to load pipelines; returns at once, with the status "loading" or "loaded"."""
        return self._send(_load_call(pipeline_ids, load_params))

    def status(self) -> LoadStatus:
        """How the last load of this client went."""
        return self._send(_status_call())

    def health(self) -> Health:
        """The server's health; its status is "healthy" when a generation would be accepted, or one runs."""
        return self._send(_health_call())

    def cancel(self) -> str:
        """End the running generation after its current chunk; returns "cancelling", or "idle" when nothing runs."""
        return self._send(_cancel_call()).status

    @contextmanager
    def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Unpack[GenerateFields]
    ) -> Iterator[Iterator[Event]]:
        """Generate a video: `with client.generate(...) as events`, then iterate over the events.

        The stream ends after Complete, Cancelled or ErrorEvent. Leaving the block earlier closes the connection, which
        ends the generation and discards its frames; `cancel` keeps them.

        Args:
            request: fields of a GenerateRequest.
            fields: the same as keywords, which take precedence; None counts as not set.

        Raises:
            FilmstripError: the server refused the request.
            ConnectionFailed: also if the stream ends without a last event.
        """
        call = _generate_call(_request_of(request, fields))
        with self._stream(call) as response:
            yield _read_events(response)

    def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; does not download its frames."""
        reader = FrameReader()
        with self._stream(_download_call(output_path, header_only=True)) as response, mapped_errors():
            for data in response.iter_bytes():
                next(reader.feed(data), None)
                if reader.shape is not None:
                    return reader.shape
        raise ConnectionFailed("the download ended inside its header")

    def download(self, output_path: str) -> Video:
        """Download an output as one array, uint8 [F, H, W, C]."""
        reader = VideoReader()
        with self._stream(_download_call(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                reader.feed(data)
        return reader.finish()

    def download_frames(self, output_path: str) -> Generator[Frame, None, None]:
        """Download an output frame by frame, uint8 [H, W, C]; only one frame at a time is in memory."""
        reader = FrameReader()
        with self._stream(_download_call(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                yield from reader.feed(data)
        reader.finish()

    def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Download an output, with its 20-byte header, into an open file; returns the number of bytes."""
        num_bytes = 0
        with self._stream(_download_call(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                num_bytes += file.write(data)
        return num_bytes

    def download_mp4(self, output_path: str, path: str | Path, fps: float) -> int:
        """Download an output and write it as an MP4, frame by frame; returns the number of frames."""
        with open_mp4(path) as output, closing(self.download_frames(output_path)) as frames:
            return output.write(frames, fps).num_frames

    def _send(self, call: _Call[AnswerT], content: bytes | Iterator[bytes] | None = None) -> AnswerT:
        with mapped_errors():
            response = self._http.send(call.build(self._http, content))
        return call.answer(response)

    @contextmanager
    def _stream(self, call: _Call[None]) -> Iterator[httpx.Response]:
        with mapped_errors():
            response = self._http.send(call.build(self._http), stream=True)
        with closing(response):
            if not response.is_success:
                with mapped_errors():
                    response.read()
                raise read_error(response)
            if not call.is_stream(response):
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
        if isinstance(video, np.ndarray):
            shape = shape_of(video)
        if shape is None:
            raise ValueError("shape is required unless the video is one array")
        return await self._send(_upload_call(shape), _video_body(_pieces(video), shape))

    async def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes] | AsyncIterable[bytes]) -> UploadedData:
        """Upload a blob of arrays that chunk_specs point into."""
        if isinstance(data, bytes):
            return await self._send(_upload_data_call(len(data)), data)
        size = data.size if isinstance(data, BlobBuilder) else None
        return await self._send(_upload_data_call(size), _pieces(data))

    async def upload_asset(self, image: bytes | Path) -> str:
        """Upload a PNG, JPEG or WebP image; returns the path for image fields of a request."""
        body = await asyncio.to_thread(image.read_bytes) if isinstance(image, Path) else image
        return (await self._send(_upload_asset_call(), body)).path

    async def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs, by its name on the server.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        await self._send(_delete_call(name))

    async def pipelines(self) -> list[PipelineInfo]:
        """What each pipeline of the server is and can do."""
        return (await self._send(_pipelines_call())).pipelines

    async def pipeline(self, id: str) -> PipelineInfo:
        """What one pipeline is and can do."""
        return pick_pipeline(id, await self.pipelines())

    async def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> LoadAnswer:
        """Start to load pipelines; returns at once, with the status "loading" or "loaded"."""
        return await self._send(_load_call(pipeline_ids, load_params))

    async def status(self) -> LoadStatus:
        """How the last load went."""
        return await self._send(_status_call())

    async def health(self) -> Health:
        """The server's health."""
        return await self._send(_health_call())

    async def cancel(self) -> str:
        """End the running generation after its current chunk; returns "cancelling", or "idle" when nothing runs."""
        return (await self._send(_cancel_call())).status

    @asynccontextmanager
    async def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Unpack[GenerateFields]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Generate a video: `async with client.generate(...) as events`, then `async for event in events`."""
        call = _generate_call(_request_of(request, fields))
        async with self._stream(call) as response, aclosing(_aread_events(response)) as events:
            yield events

    async def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; does not download its frames."""
        reader = FrameReader()
        async with self._stream(_download_call(output_path, header_only=True)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    next(reader.feed(data), None)
                    if reader.shape is not None:
                        return reader.shape
        raise ConnectionFailed("the download ended inside its header")

    async def download(self, output_path: str) -> Video:
        """Download an output as one array, uint8 [F, H, W, C]."""
        reader = VideoReader()
        async with self._stream(_download_call(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    reader.feed(data)
        return reader.finish()

    async def download_frames(self, output_path: str) -> AsyncGenerator[Frame, None]:
        """Download an output frame by frame; wrap it in `contextlib.aclosing` if you may stop early."""
        reader = FrameReader()
        async with self._stream(_download_call(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    for frame in reader.feed(data):
                        yield frame
        reader.finish()

    async def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Download an output, with its 20-byte header, into an open file; returns the number of bytes."""
        num_bytes = 0
        async with self._stream(_download_call(output_path)) as response:
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

    async def _send(self, call: _Call[AnswerT], content: bytes | AsyncIterator[bytes] | None = None) -> AnswerT:
        with mapped_errors():
            response = await self._http.send(call.build(self._http, content))
        return call.answer(response)

    @asynccontextmanager
    async def _stream(self, call: _Call[None]) -> AsyncIterator[httpx.Response]:
        with mapped_errors():
            response = await self._http.send(call.build(self._http), stream=True)
        async with aclosing(response):
            if not response.is_success:
                with mapped_errors():
                    await response.aread()
                raise read_error(response)
            if not call.is_stream(response):
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
    raise ConnectionFailed("the stream ended before the generation")


async def _aread_events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    with mapped_errors():
        async with aclosing(httpx_sse.EventSource(response).aiter_sse()) as events:
            async for sse in events:
                event = parse_event(sse.event, sse.data)
                if event is not None:
                    yield event
                if isinstance(event, LAST_EVENTS):
                    return
    raise ConnectionFailed("the stream ended before the generation")


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
