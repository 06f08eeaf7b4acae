"""Clients of a Filmstrip server, one for plain code and one for asyncio.

    from filmstrip.client import Client, Complete

    with Client() as client:  # the server that FILMSTRIP_SERVER names, else http://127.0.0.1:8000
        uploaded = client.upload(video)  # uint8 [F, H, W, C]
        with client.generate(pipeline_id="scribble", prompt="", input_path=uploaded.input_path) as events:
            for event in events:
                print(event)
        if isinstance(event, Complete):
            client.download_mp4(event.output_path, "scribble.mp4", fps=25)

What the server refuses is raised as the class of its code (`filmstrip.errors`); what goes wrong on the way to
it as a `filmstrip.client_errors.ClientError`. A generation that fails or is cancelled under way is no
exception but its last event.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx
import httpx_sse
import numpy as np

from filmstrip import calls, mp4
from filmstrip.async_client import AsyncClient
from filmstrip.calls import TIMEOUT_S, Call, UploadedData, UploadedVideo, Verify, mapped_errors
from filmstrip.client_errors import (
    ClientError,
    ConnectionFailed,
    ServerUnreachable,
    TimedOut,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.events import LAST_EVENTS, Cancelled, Complete, ErrorEvent, Event, Progress, parse_event
from filmstrip.geometry import VideoShape
from filmstrip.packing import BlobBuilder, as_vace_frames
from filmstrip.video_stream import Frame, FrameReader, Video, VideoReader, shape_of, video_body

__all__ = [
    "AsyncClient",
    "BlobBuilder",
    "Cancelled",
    "Client",
    "ClientError",
    "Complete",
    "ConnectionFailed",
    "ErrorEvent",
    "Event",
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

AnswerT = TypeVar("AnswerT")


class Client:
    """A client that blocks; safe to use from several threads, so that one can cancel what another waits for.

    Args:
        base_url: of the server, such as http://127.0.0.1:8000. None is the environment's: FILMSTRIP_SERVER, else
            http://127.0.0.1:8000.
        token: sent as `Authorization: Bearer`, where the server or a proxy asks for a key. None is FILMSTRIP_TOKEN,
            but only for the environment's server: it never goes to another. An empty one sends none.
        timeout_s: longest silence of a connection. A generation whose pipeline must be loaded first is silent
            until that is done: call `load` and follow `status` before it, or give more time.
        transport: httpx's seam, for tests.
        verify: how the server's TLS certificate is checked: True by the usual authorities; a PEM file (or a folder of
            them) with the authorities to trust instead; an SSL context; False not at all.

    Raises:
        ValueError: the URL is not one of an HTTP server, the token cannot be sent in a header, or `verify` names a
            file without certificates.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
        verify: Verify = True,
    ) -> None:
        options = calls.connection_options(base_url, token, timeout_s, verify)
        with calls.mapped_proxy_errors():
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
        """Send an input video.

        Args:
            video: an array [F, H, W, C]; or its frames [H, W, C], or runs of its bytes, one after the other:
                then no more than one of them is in memory.
            shape: of the whole video; needed unless it is one array.

        Raises:
            ValueError: the video isn't uint8, or has more or fewer frames than its shape says.
        """
        if isinstance(video, np.ndarray):
            shape = shape_of(video)
        if shape is None:
            raise ValueError("the shape of a video that comes in pieces must be given")
        return self._send(calls.upload(shape), video_body(video, shape))

    def upload_data(self, data: bytes | BlobBuilder | Iterable[bytes]) -> UploadedData:
        """Send a blob of arrays that chunk_specs point into."""
        if isinstance(data, bytes):
            return self._send(calls.upload_data(len(data)), data)
        size = data.size if isinstance(data, BlobBuilder) else None
        return self._send(calls.upload_data(size), iter(data))

    def upload_asset(self, image: bytes | Path) -> str:
        """Send a PNG, JPEG or WebP image; gives the path that image fields of a request take."""
        return self._send(calls.upload_asset(), image.read_bytes() if isinstance(image, Path) else image)

    def delete(self, name: str) -> None:
        """Delete one of this client's uploads, assets or outputs by the name that the server gave it.

        Raises:
            UnknownPath: the server has no such file of this client.
            InUse: a generation or a download uses it.
        """
        self._send(calls.delete(name))

    def pipelines(self) -> list[dict[str, Any]]:
        """What each pipeline of the server is and can do."""
        return self._send(calls.pipelines())

    def pipeline(self, id: str) -> dict[str, Any]:
        """What one pipeline is and can do.

        Raises:
            UnknownPipeline: the server doesn't have it.
        """
        return calls.pick_pipeline(id, self.pipelines())

    def load(self, pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None = None) -> str:
        """Have pipelines loaded; answers at once with "loading" or "loaded"."""
        return self._send(calls.load(pipeline_ids, load_params))

    def status(self) -> dict[str, Any]:
        """How the last load went: "status", "pipeline_id", "load_params", "error"..."""
        return self._send(calls.status())

    def health(self) -> dict[str, Any]:
        """The server's health; its "status" is "healthy" when a generation would be accepted, or one runs."""
        return self._send(calls.health())

    def cancel(self) -> str:
        """End the generation under way after its current chunk; "cancelling", or "idle" when nothing runs."""
        return self._send(calls.cancel())

    @contextmanager
    def generate(self, request: Mapping[str, Any] | None = None, /, **fields: Any) -> Iterator[Iterator[Event]]:
        """Generate a video: `with client.generate(...) as events`, then iterate over the events.

        The stream ends after Complete, Cancelled or ErrorEvent. Leaving the block earlier closes the
        connection, which ends the generation and drops its frames; `cancel` keeps them.

        Args:
            request: the fields of a GenerateRequest.
            fields: likewise, as keywords, which win; None counts as not given.

        Raises:
            FilmstripError: the server refused, before anything was generated.
            ConnectionFailed: also when the stream ends without a last event.
        """
        call = calls.generate(calls.request_of(request, fields))
        with self._stream(call) as response:
            yield _events(response)

    def output_shape(self, output_path: str) -> VideoShape:
        """The shape of an output; its frames are not fetched."""
        reader = FrameReader()
        with self._stream(calls.download(output_path, header_only=True)) as response, mapped_errors():
            for data in response.iter_bytes():
                next(reader.feed(data), None)
                if reader.shape is not None:
                    return reader.shape
        raise ConnectionFailed("the download ended within its header")

    def download(self, output_path: str) -> Video:
        """Fetch an output as one array [F, H, W, C]."""
        reader = VideoReader()
        with self._stream(calls.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                reader.feed(data)
        return reader.finish()

    def download_frames(self, output_path: str) -> Generator[Frame, None, None]:
        """Fetch an output frame by frame, [H, W, C]; no more than one frame is in memory."""
        reader = FrameReader()
        with self._stream(calls.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                yield from reader.feed(data)
        reader.finish()

    def download_to(self, output_path: str, file: BinaryIO) -> int:
        """Write an output, 20-byte header and all, into an open file; gives the number of bytes."""
        num_bytes = 0
        with self._stream(calls.download(output_path)) as response, mapped_errors():
            for data in response.iter_bytes():
                num_bytes += file.write(data)
        return num_bytes

    def download_mp4(self, output_path: str, path: str | Path, fps: float) -> int:
        """Fetch an output and encode it as it comes; gives the number of frames. See `mp4.write`."""
        with closing(self.download_frames(output_path)) as frames:
            return mp4.write(path, frames, fps)

    def _send(self, call: Call[AnswerT], content: bytes | Iterator[bytes] | None = None) -> AnswerT:
        with mapped_errors():
            response = self._http.send(call.build(self._http, content))
        return call.answer(response)

    @contextmanager
    def _stream(self, call: Call[None]) -> Iterator[httpx.Response]:
        with mapped_errors():
            response = self._http.send(call.build(self._http), stream=True)
        with closing(response):
            if not response.is_success:
                with mapped_errors():
                    response.read()
                raise calls.read_error(response)
            if not call.is_stream(response):
                with mapped_errors():
                    raise calls.unexpected(response, next(response.iter_bytes(), b""))
            # Not within mapped_errors: what the caller's block raises is the caller's.
            yield response


def _events(response: httpx.Response) -> Iterator[Event]:
    with mapped_errors():
        for sse in httpx_sse.EventSource(response).iter_sse():
            event = parse_event(sse.event, sse.data)
            if event is not None:
                yield event
            if isinstance(event, LAST_EVENTS):
                return
    raise ConnectionFailed("the stream ended before the generation did")
