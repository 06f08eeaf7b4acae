"""Generations with an id: `client.generations` of both clients, docs/client.md.

What needs no I/O is in `filmstrip.endpoints` and `filmstrip.following`, once for both.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, aclosing, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import httpx_sse

from filmstrip import endpoints
from filmstrip.errors import (
    ClientError,
    ConnectionFailed,
    FilmstripError,
    StreamBroken,
)
from filmstrip.following import MAX_RECONNECTS, STREAM_ENDED, Following, check_supported
from filmstrip.http_errors import mapped_errors
from filmstrip.models import Complete, DryRunPlan, Event, Generation, completed
from filmstrip.request_fields import MAX_PAGE, GenerateFields
from filmstrip.sender import AsyncSender, Sender
from filmstrip.video.write import open_replacement
from filmstrip.wire import Video, VideoReader

OnDisconnect = Literal["continue", "cancel"]
FileFormat = Literal["mp4", "webm", "gif", "poster", "contact-sheet"]

_LEAVING_S = 5.0


class EventStream(Iterator[Event]):
    """The events of a generation up to its last one, across broken connections; each event comes once and in order.

    Iterate over it, within `with` if you may stop early. It connects at the first event, or at the start of the block.

    Attributes:
        id: of the generation.

    Raises:
        NotFound: the server has no such generation of this client.
        StreamBroken: the connection broke, and connecting again failed repeatedly; attach to its `id` after its
            `after` later.
    """

    def __init__(self, sender: Sender, following: Following, *, is_owned: bool = False) -> None:
        self.id = following.id
        self._sender = sender
        self._following = following
        self._is_owned = is_owned
        self._connection = ExitStack()
        self._events: Iterator[httpx_sse.ServerSentEvent] | None = None
        self._must_cancel = False

    @property
    def after(self) -> int:
        """Number of the last event received; `attach` continues from it."""
        return self._following.after

    def __enter__(self) -> Self:
        try:
            while self._events is None:
                try:
                    self._connect()
                except (ClientError, FilmstripError) as error:
                    self._pause(error)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(error)

    def __next__(self) -> Event:
        while not self._following.is_complete:
            try:
                event = self._receive()
            except (ClientError, FilmstripError) as error:
                self._pause(error)
            else:
                if event is not None:
                    return event
        self.close()
        raise StopIteration

    def cancel(self) -> str:
        """Cancel the generation, or as soon as its request is accepted; other threads may call it.

        Returns:
            "cancelled" at once while it waits, "cancelling" after its current chunk, or "idle" if it has ended.
        """
        self._must_cancel = True
        return self._cancel() if self._following.has_connected else "cancelling"

    def _cancel(self) -> str:
        status = self._sender.send(endpoints.cancel_generation(self.id)).status
        self._must_cancel = False
        return status

    def close(self) -> None:
        """Close the connection."""
        self._events = None
        self._connection.close()

    def _connect(self) -> None:
        response = self._connection.enter_context(self._sender.stream(self._following.call()))
        self._following.connected()
        if self._must_cancel:
            self._cancel()
        self._events = httpx_sse.EventSource(response).iter_sse()

    def _receive(self) -> Event | None:
        if self._events is None:
            self._connect()
        assert self._events is not None
        with mapped_errors():
            event = next(self._events, None)
        if event is None:
            raise ConnectionFailed(STREAM_ENDED)
        return self._following.receive(event.event, event.data, event.id)

    def _pause(self, error: ClientError | FilmstripError) -> None:
        self.close()
        time.sleep(self._following.pause_s(error))

    def _leave(self, error: BaseException | None) -> None:
        self.close()
        if self._is_owned and _is_left_behind(self._following, error):
            with suppress(ClientError, FilmstripError):
                self._sender.send(endpoints.delete_generation(self.id, _LEAVING_S))


class AsyncEventStream(AsyncIterator[Event]):
    """The same for asyncio; see `EventStream`."""

    def __init__(self, sender: AsyncSender, following: Following, *, is_owned: bool = False) -> None:
        self.id = following.id
        self._sender = sender
        self._following = following
        self._is_owned = is_owned
        self._connection = AsyncExitStack()
        self._events: AsyncIterator[httpx_sse.ServerSentEvent] | None = None
        self._must_cancel = False

    @property
    def after(self) -> int:
        """Number of the last event received; `attach` continues from it."""
        return self._following.after

    async def __aenter__(self) -> Self:
        try:
            while self._events is None:
                try:
                    await self._connect()
                except (ClientError, FilmstripError) as error:
                    await self._pause(error)
        except BaseException as error:
            await self._leave(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave(error)

    async def __anext__(self) -> Event:
        while not self._following.is_complete:
            try:
                event = await self._receive()
            except (ClientError, FilmstripError) as error:
                await self._pause(error)
            else:
                if event is not None:
                    return event
        await self.aclose()
        raise StopAsyncIteration

    async def cancel(self) -> str:
        """Cancel the generation, or as soon as its request is accepted; other tasks may call it."""
        self._must_cancel = True
        return await self._cancel() if self._following.has_connected else "cancelling"

    async def _cancel(self) -> str:
        status = (await self._sender.send(endpoints.cancel_generation(self.id))).status
        self._must_cancel = False
        return status

    async def aclose(self) -> None:
        """Close the connection."""
        self._events = None
        await self._connection.aclose()

    async def _connect(self) -> None:
        response = await self._connection.enter_async_context(self._sender.stream(self._following.call()))
        self._following.connected()
        if self._must_cancel:
            await self._cancel()
        events = aclosing(httpx_sse.EventSource(response).aiter_sse())
        self._events = await self._connection.enter_async_context(events)

    async def _receive(self) -> Event | None:
        if self._events is None:
            await self._connect()
        assert self._events is not None
        with mapped_errors():
            event = await anext(self._events, None)
        if event is None:
            raise ConnectionFailed(STREAM_ENDED)
        return self._following.receive(event.event, event.data, event.id)

    async def _pause(self, error: ClientError | FilmstripError) -> None:
        await self.aclose()
        await asyncio.sleep(self._following.pause_s(error))

    async def _leave(self, error: BaseException | None) -> None:
        await self.aclose()
        if self._is_owned and _is_left_behind(self._following, error):
            with suppress(ClientError, FilmstripError):
                await self._sender.send(endpoints.delete_generation(self.id, _LEAVING_S))


def _is_left_behind(following: Following, error: BaseException | None) -> bool:
    """Whether a generation that ends with its client may still wait or run."""
    if following.is_complete or isinstance(error, StreamBroken):  # the caller may attach to it again
        return False
    return following.has_connected or not isinstance(error, Exception)  # not one that was refused


class Generations:
    """Generations with an id, of a blocking client: they wait for their turn and go on without their client.

    Every method takes ids of this client's own generations; for others the server answers `NotFound`.
    """

    def __init__(self, sender: Sender, max_reconnects: int = MAX_RECONNECTS) -> None:
        self._sender = sender
        self._max_reconnects = max_reconnects

    def submit(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        id: str | None = None,
        idempotency_key: str | None = None,
        on_disconnect: OnDisconnect | None = None,
        previews: Mapping[str, int] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> Generation:
        """Start a generation and return at once; it waits for its turn.

        The same request again under the same id or key is the same generation, so a submission can be repeated if it is
        unclear whether the server has received it.

        Args:
            request: fields of a GenerateRequest.
            id: 1 to 64 letters, digits, - and _; None for a random one.
            idempotency_key: another name for it, if the server should make the id.
            on_disconnect: "cancel" ends it when nobody has followed its events for 15 seconds; None is "continue".
            previews: {"every": n, "width": pixels}: send small images of the frames.
            fields: fields of a GenerateRequest, which take precedence; None counts as not set.

        Raises:
            GenerationsUnsupported: the server is too old.
            IdTaken: this client has a generation of this id with another request.
            QueueFull: no more generations may wait.
            FilmstripError: the server refused the request.
            ValueError: the id or the key cannot be sent.
        """
        body = endpoints.submission_body(endpoints.request_body(request, fields), on_disconnect, previews)
        call = endpoints.submit(body, id, idempotency_key)
        following = Following(call.path.rpartition("/")[2], max_reconnects=self._max_reconnects, start=call)
        while True:
            try:
                return self._sender.send(call)
            except (ClientError, FilmstripError) as error:
                time.sleep(following.pause_s(error))

    def start(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        id: str | None = None,
        on_disconnect: OnDisconnect | None = None,
        previews: Mapping[str, int] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> EventStream:
        """Start a generation and follow its events: `with client.generations.start(...) as events`, then iterate.

        With `on_disconnect="cancel"`, leaving the block before the last event deletes the generation. See `submit` for
        the other arguments and the errors, which are raised at the start of the block.
        """
        body = endpoints.submission_body(endpoints.request_body(request, fields), on_disconnect, previews)
        name = id or endpoints.new_id()
        following = Following(name, max_reconnects=self._max_reconnects, start=endpoints.submit_and_follow(body, name))
        return EventStream(self._sender, following, is_owned=on_disconnect == "cancel")

    def attach(self, id: str, *, after: int = 0) -> EventStream:
        """Follow the events of a generation, from the first one on or after the one with a number."""
        return EventStream(self._sender, Following(id, after, max_reconnects=self._max_reconnects))

    def wait(self, id: str, *, on_event: Callable[[Event], None] | None = None) -> Complete:
        """Wait until a generation is complete; it goes on if you stop waiting.

        Raises:
            FilmstripError: it failed.
            GenerationCancelled: someone cancelled it; the exception names the frames generated so far.
        """
        last: Event | None = None
        with self.attach(id) as events:
            for last in events:
                if on_event is not None:
                    on_event(last)
        return completed(last)

    def get(self, id: str) -> Generation:
        """The state of a generation, with its request."""
        return self._sender.send(endpoints.generation(id))

    def list(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Generation]:
        """This client's generations without their requests, newest first; the next page is fetched when it is needed.

        Args:
            state: only those in this state; see `filmstrip.models.State`.
            limit: most of them; None for all.
        """
        after, left = None, limit
        while left is None or left > 0:
            page_size = MAX_PAGE if left is None else min(left, MAX_PAGE)
            page = self._sender.send(endpoints.generation_page(state, page_size, after))
            yield from page.generations
            after = page.next
            if after is None:
                return
            left = None if left is None else left - len(page.generations)

    def cancel(self, id: str) -> str:
        """Cancel a generation and keep the frames generated so far.

        Returns:
            "cancelled" at once while it waits, "cancelling" after its current chunk, or "idle" if it has ended.
        """
        return self._sender.send(endpoints.cancel_generation(id)).status

    def delete(self, id: str) -> None:
        """End a generation as soon as the model stops, and remove it with its files; returns when its slot is free."""
        self._sender.send(endpoints.delete_generation(id))

    def frames(self, id: str, start: int = 0, stop: int | None = None) -> Video:
        """Download frames made so far, uint8 [F, H, W, C], from `start` up to `stop`; None for all so far.

        Raises:
            NotReady: there are none yet.
            RangeNotSatisfiable: the frame `start` is not made yet.
        """
        reader = VideoReader()
        with self._sender.stream(endpoints.generation_frames(id, start, stop)) as response, mapped_errors():
            for data in response.iter_bytes():
                reader.feed(data)
        return reader.finish()

    def download(
        self,
        id: str,
        path: str | Path,
        format: FileFormat | None = None,
        *,
        fps: float | Fraction | None = None,
        crf: int | None = None,
        scale: int | None = None,
        frame: int | None = None,
    ) -> int:
        """Download a generation as a file that the server encodes; returns the number of bytes.

        The MP4 of a generation that still runs arrives as it grows, and is complete when the generation ends.

        Args:
            id: of the generation.
            path: file to write; an existing one is replaced once the new one is complete.
            format: "mp4", "webm", "gif", "poster" (a PNG of one frame) or "contact-sheet" (a PNG of up to 24 frames).
                None: by the suffix of `path`; .png is the contact sheet.
            fps: frames per second; None for the rate of an input video file, else 16.
            crf: quality of mp4 and webm, from 0 (best) to 51.
            scale: how many times to enlarge the frames, 1 to 8.
            frame: index of the frame of a poster.

        Raises:
            NotReady: the generation has not ended; for mp4, it has no frames yet.
            ValueError: the suffix does not select a format.
            VideoFileError: the file cannot be written.
        """
        options: dict[str, object] = {"fps": fps, "crf": crf, "scale": scale, "frame": frame}
        call = endpoints.generation_file(id, format or endpoints.file_format(path), **options)
        with open_replacement(path) as file:
            with self._sender.stream(call) as response, mapped_errors():
                for data in response.iter_bytes():
                    file.write(data)
            return file.tell()

    def dry_run(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        uploads: Mapping[str, Any] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> DryRunPlan:
        """Check a request and plan its chunks, without running it.

        Args:
            request: fields of a GenerateRequest.
            uploads: {"input_shape": [F, H, W, C], "blob_bytes": n} for files that are not uploaded yet.
            fields: fields of a GenerateRequest, which take precedence; None counts as not set.

        Raises:
            FilmstripError: what the request would be refused with.
            TooManyRequests: more than 60 dry runs within a minute.
        """
        call = endpoints.dry_run(endpoints.request_body(request, fields), uploads)
        try:
            return self._sender.send(call)
        except (ClientError, FilmstripError) as error:
            check_supported(error)
            raise


class AsyncGenerations:
    """The same for asyncio; see `Generations` for the arguments and the errors."""

    def __init__(self, sender: AsyncSender, max_reconnects: int = MAX_RECONNECTS) -> None:
        self._sender = sender
        self._max_reconnects = max_reconnects

    async def submit(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        id: str | None = None,
        idempotency_key: str | None = None,
        on_disconnect: OnDisconnect | None = None,
        previews: Mapping[str, int] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> Generation:
        """Start a generation and return at once; it waits for its turn."""
        body = endpoints.submission_body(endpoints.request_body(request, fields), on_disconnect, previews)
        call = endpoints.submit(body, id, idempotency_key)
        following = Following(call.path.rpartition("/")[2], max_reconnects=self._max_reconnects, start=call)
        while True:
            try:
                return await self._sender.send(call)
            except (ClientError, FilmstripError) as error:
                await asyncio.sleep(following.pause_s(error))

    def start(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        id: str | None = None,
        on_disconnect: OnDisconnect | None = None,
        previews: Mapping[str, int] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> AsyncEventStream:
        """Start a generation and follow its events: `async with client.generations.start(...) as events`."""
        body = endpoints.submission_body(endpoints.request_body(request, fields), on_disconnect, previews)
        name = id or endpoints.new_id()
        following = Following(name, max_reconnects=self._max_reconnects, start=endpoints.submit_and_follow(body, name))
        return AsyncEventStream(self._sender, following, is_owned=on_disconnect == "cancel")

    def attach(self, id: str, *, after: int = 0) -> AsyncEventStream:
        """Follow the events of a generation, from the first one on or after the one with a number."""
        return AsyncEventStream(self._sender, Following(id, after, max_reconnects=self._max_reconnects))

    async def wait(self, id: str, *, on_event: Callable[[Event], None] | None = None) -> Complete:
        """Wait until a generation is complete; it goes on if you stop waiting."""
        last: Event | None = None
        async with self.attach(id) as events:
            async for last in events:
                if on_event is not None:
                    on_event(last)
        return completed(last)

    async def get(self, id: str) -> Generation:
        """The state of a generation, with its request."""
        return await self._sender.send(endpoints.generation(id))

    async def list(self, *, state: str | None = None, limit: int | None = None) -> AsyncGenerator[Generation, None]:
        """This client's generations without their requests, newest first, for `async for`."""
        after, left = None, limit
        while left is None or left > 0:
            page_size = MAX_PAGE if left is None else min(left, MAX_PAGE)
            page = await self._sender.send(endpoints.generation_page(state, page_size, after))
            for found in page.generations:
                yield found
            after = page.next
            if after is None:
                return
            left = None if left is None else left - len(page.generations)

    async def cancel(self, id: str) -> str:
        """Cancel a generation and keep the frames generated so far."""
        return (await self._sender.send(endpoints.cancel_generation(id))).status

    async def delete(self, id: str) -> None:
        """End a generation as soon as the model stops, and remove it with its files; returns when its slot is free."""
        await self._sender.send(endpoints.delete_generation(id))

    async def frames(self, id: str, start: int = 0, stop: int | None = None) -> Video:
        """Download frames made so far, uint8 [F, H, W, C], from `start` up to `stop`; None for all so far."""
        reader = VideoReader()
        async with self._sender.stream(endpoints.generation_frames(id, start, stop)) as response:
            with mapped_errors():
                async for data in response.aiter_bytes():
                    reader.feed(data)
        return reader.finish()

    async def download(
        self,
        id: str,
        path: str | Path,
        format: FileFormat | None = None,
        *,
        fps: float | Fraction | None = None,
        crf: int | None = None,
        scale: int | None = None,
        frame: int | None = None,
    ) -> int:
        """Download a generation as a file that the server encodes; returns the number of bytes."""
        options: dict[str, object] = {"fps": fps, "crf": crf, "scale": scale, "frame": frame}
        call = endpoints.generation_file(id, format or endpoints.file_format(path), **options)
        with open_replacement(path) as file:
            async with self._sender.stream(call) as response:
                with mapped_errors():
                    async for data in response.aiter_bytes():
                        await asyncio.to_thread(file.write, data)
            return file.tell()

    async def dry_run(
        self,
        request: Mapping[str, Any] | None = None,
        /,
        *,
        uploads: Mapping[str, Any] | None = None,
        **fields: Unpack[GenerateFields],
    ) -> DryRunPlan:
        """Check a request and plan its chunks, without running it."""
        call = endpoints.dry_run(endpoints.request_body(request, fields), uploads)
        try:
            return await self._sender.send(call)
        except (ClientError, FilmstripError) as error:
            check_supported(error)
            raise
