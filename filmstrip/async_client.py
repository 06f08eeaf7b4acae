"""The client for asyncio; every method is the one of `filmstrip.client.Client`, awaited."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx
import httpx_sse
import numpy as np

from filmstrip import calls, mp4
from filmstrip.calls import TIMEOUT_S, Call, UploadedData, UploadedVideo, Verify, mapped_errors
from filmstrip.client_errors import ConnectionFailed
from filmstrip.events import LAST_EVENTS, Event, parse_event
from filmstrip.geometry import VideoShape
from filmstrip.packing import BlobBuilder
from filmstrip.video_stream import BodyChecker, Frame, FrameReader, Video, VideoReader, shape_of

AnswerT = TypeVar("AnswerT")
PieceT = TypeVar("PieceT")


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
        options = calls.connection_options(base_url, token, timeout_s, verify)
        with calls.mapped_proxy_errors():
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
        """Send an input video: an array [F, H, W, C], or frames or bytes one after the other and their shape."""
        if isinstance(video, np.ndarray):
            shape = shape_of(video)
        if shape is None:
            raise ValueError("the shape of a video that comes in pieces must be given")
        return await self._send(calls.upload(shape), _video_body(_pieces(video), shape))

    async def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes] | AsyncIterable[bytes]) -> UploadedData:
        """Send a blob of arrays that chunk_specs point into."""
        if isinstance(data, bytes):
            return await self._send(calls.upload_data(len(data)), data)
        size = data.size if isinstance(data, BlobBuilder) else None
        return await self._send(calls.upload_data(size), _pieces(data))

    async def upload_asset(self, image: bytes | Path) -> str:
        """Send a PNG, JPEG or WebP image; gives the path that image fields of a request take."""
        body = await asyncio.to_thread(image.read_bytes) if isinstance(image, Path) else image
        return await self._send(calls.upload_asset(), body)

    async def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs by the name that the server gave it.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        await self._send(calls.delete(name))

    async def pipelines(self) -> list[dict[str, Any]]:
        """What each pipeline of the server is and can do."""
        return await self._send(calls.pipelines())

    async def pipeline(self, id: str) -> dict[str, Any]:
        """What one pipeline is and can do."""
        return calls.pick_pipeline(id, await self.pipelines())

    async def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> str:
        """Have pipelines loaded; answers at once with "loading" or "loaded"."""
        return await self._send(calls.load(pipeline_ids, load_params))

    async def status(self) -> dict[str, Any]:
        """How the last load went."""
        return await self._send(calls.status())

    async def health(self) -> dict[str, Any]:
        """The server's health."""
        return await self._send(calls.health())

    async def cancel(self) -> str:
        """End the generation under way after its current chunk; "cancelling", or "idle" when nothing runs."""
        return await self._send(calls.cancel())

    @asynccontextmanager
    async def generate(
        self, request: Mapping[str, Any] | None = None, /, **fields: Any
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Generate a video: `async with client.generate(...) as events`, then `async for event in events`."""
        call = calls.generate(calls.request_of(request, fields))
        async with self._stream(call) as response, aclosing(_events(response)) as events:
            yield events

    async def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; its frames are not fetched."""
        reader = FrameReader()
        async with self._stream(calls.download(output_path, header_only=True)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    next(reader.feed(data), None)
                    if reader.shape is not None:
                        return reader.shape
        raise ConnectionFailed("the download ended within its header")

    async def download(self, output_path: str) -> Video:
        """Fetch an output as one array [F, H, W, C]."""
        reader = VideoReader()
        async with self._stream(calls.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    reader.feed(data)
        return reader.finish()

    async def download_frames(self, output_path: str) -> AsyncGenerator[Frame, None]:
        """Fetch an output frame by frame; wrap it in `contextlib.aclosing` where you may stop early."""
        reader = FrameReader()
        async with self._stream(calls.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    for frame in reader.feed(data):
                        yield frame
        reader.finish()

    async def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Write an output, 20-byte header and all, into an open file; gives the number of bytes."""
        num_bytes = 0
        async with self._stream(calls.download(output_path)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    num_bytes += await asyncio.to_thread(file.write, data)
        return num_bytes

    async def download_mp4(self, output_path: str, path: str | Path, fps: float) -> int:
        """Fetch an output and encode it as it comes, in a thread; gives the number of frames."""
        with mp4.Writer(path, fps) as writer:
            async with aclosing(self.download_frames(output_path)) as frames:
                async for frame in frames:
                    await asyncio.to_thread(writer.add, frame)
        return writer.num_frames

    async def _send(self, call: Call[AnswerT], content: bytes | AsyncIterator[bytes] | None = None) -> AnswerT:
        with mapped_errors():
            response = await self._http.send(call.build(self._http, content))
        return call.answer(response)

    @asynccontextmanager
    async def _stream(self, call: Call[None]) -> AsyncIterator[httpx.Response]:
        with mapped_errors():
            response = await self._http.send(call.build(self._http), stream=True)
        async with aclosing(response):
            if not response.is_success:
                with mapped_errors():
                    await response.aread()
                raise calls.read_error(response)
            if not call.is_stream(response):
                with mapped_errors():
                    raise calls.unexpected(response, await anext(response.aiter_bytes(), b""))
            yield response


async def _events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    with mapped_errors():
        async with aclosing(httpx_sse.EventSource(response).aiter_sse()) as events:
            async for sse in events:
                event = parse_event(sse.event, sse.data)
                if event is not None:
                    yield event
                if isinstance(event, LAST_EVENTS):
                    return
    raise ConnectionFailed("the stream ended before the generation did")


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
