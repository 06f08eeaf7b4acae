"""The calls of a server that the nodes need; each can be stopped while it waits."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from .connection import Bytes, Connection, Server, foreign_answer
from .errors import FilmstripError
from .events import LAST_EVENTS, Event, EventReader
from .frames import Pixels
from .waiting import sleep_polling, while_polling

CANCEL_TIMEOUT_S = 2.0
LOAD_POLL_S = 0.5
_HEADER = struct.Struct("<5I")  # ndim, then T, H, W, C
_READ_BYTES = 2**16

Shape = tuple[int, int, int, int]  # F, H, W, C
ResultT = TypeVar("ResultT")


class Client:
    """Talks to one server; a new connection for each call.

    Args:
        server: where it is.
        poll: called every 0.1 s while a call waits; what it raises ends the call.

    Attributes:
        pipeline_ids: the server's pipelines, as it listed them last.
    """

    def __init__(self, server: Server, poll: Callable[[], None]) -> None:
        self.server = server
        self.pipeline_ids: tuple[str, ...] = ()
        self._poll = poll

    def health(self) -> str:
        """The server's health: "healthy" when a generation would be accepted, or one runs."""
        answer = self._json("GET", "/health", also_good=frozenset({503}))  # which says no, in the same words
        return self._read(answer, lambda: str(answer["status"]))

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """What each pipeline is and can do, by its id."""
        answer = self._json("GET", "/api/v1/pipelines")
        known = self._read(answer, lambda: {str(facts["id"]): _read_facts(facts) for facts in answer["pipelines"]})
        self.pipeline_ids = tuple(known)
        return known

    def ready_pipeline(self, id: str, tell: Callable[[str], None]) -> dict[str, Any]:
        """What one pipeline is and can do; it is loaded first when it is not, or not listed yet.

        Args:
            id: of the pipeline.
            tell: shows the user what is waited for.

        Raises:
            FilmstripError: the server does not have it, and the message lists those it has; or it cannot run, and the
                message says why.
        """
        known = self.pipelines()
        state = _state(known.get(id, {"state": "unloaded"}))
        if state == "failed":
            why = known[id].get("reason") or "it could not be loaded"
            raise FilmstripError(f"the pipeline {id} cannot run: {why}", "load_failed")
        if state != "ready":
            try:
                self._load(id, tell)
            except FilmstripError as error:
                if error.code != "unknown_pipeline":
                    raise
            else:
                known = self.pipelines()
        if id not in known:
            names = ", ".join(known) or "none"
            raise FilmstripError(f"the server has no pipeline {id!r}; it has: {names}", "unknown_pipeline")
        facts = known[id]
        if not facts.get("chunk_size"):
            raise FilmstripError(f"the pipeline {id} is not ready: it is {_state(facts)}", "load_failed")
        return facts

    def _load(self, id: str, tell: Callable[[str], None]) -> None:
        body = json.dumps({"pipeline_ids": [id]}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        answer = self._json("POST", "/api/v1/pipeline/load", headers, [body])
        while answer.get("status") == "loading":
            tell(f"the server is loading {id}")
            sleep_polling(LOAD_POLL_S, self._poll)
            answer = self._json("GET", "/api/v1/pipeline/status")
            if answer.get("pipeline_id") not in (None, id):
                return  # another load took its place: what the list says holds
        if answer.get("status") == "error":
            why = answer.get("error") or "the server does not say why"
            raise FilmstripError(f"the pipeline {id} could not be loaded: {why}", "load_failed")

    def upload(self, shape: Shape, frames: Iterable[Bytes]) -> str:
        """Send an input video, uint8 of this shape; gives its `input_path`."""
        names = ("X-Video-Frames", "X-Video-Height", "X-Video-Width", "X-Video-Channels")
        headers = {name: str(size) for name, size in zip(names, shape, strict=True)}
        num_bytes = shape[0] * shape[1] * shape[2] * shape[3]
        return self._post_binary("/api/v1/generate/upload", "input_path", num_bytes, frames, headers)

    def upload_data(self, num_bytes: int, pieces: Iterable[Bytes]) -> str:
        """Send a blob of arrays; gives its `data_blob_path`."""
        return self._post_binary("/api/v1/generate/upload-data", "data_blob_path", num_bytes, pieces)

    def upload_image(self, file: bytes) -> str:
        """Send an image file; gives its path."""
        return self._post_binary("/api/v1/assets", "path", len(file), [file])

    def cancel(self) -> None:
        """End the generation under way; short of patience, and not stopped by `poll`: it is how one stops."""
        server = replace(self.server, timeout_s=min(CANCEL_TIMEOUT_S, self.server.timeout_s))
        with Connection(server) as connection:
            connection.send("POST", "/api/v1/generate/cancel", {"Content-Length": "0"})

    def generate(self, request: Mapping[str, Any], on_event: Callable[[Event], None]) -> Event:
        """Generate a video; gives the last event. When `poll` raises, the server is told to cancel at once.

        Args:
            request: the fields of a GenerateRequest.
            on_event: called in this thread, for each event.

        Raises:
            FilmstripError: the server refused (code `busy`: another generation runs), or the stream broke off.
        """
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Accept": "text/event-stream"}
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with Connection(self.server) as connection:
            accepted = False

            def work() -> Event:
                nonlocal accepted
                with connection.send("POST", "/api/v1/generate", headers, [body]) as response:
                    connection.check_stream(response, "text/event-stream")
                    accepted = True
                    with connection.readable_errors():
                        for event in _events(response):
                            events.put(event)
                            if event.name in LAST_EVENTS:
                                return event
                raise FilmstripError("the server ended the stream before the generation was done", "broken")

            def tell_and_poll() -> None:
                tell()
                self._poll()

            def tell() -> None:
                with contextlib.suppress(queue.Empty):
                    while True:
                        on_event(events.get_nowait())

            def stop() -> None:
                # Not before it was accepted: the generation that runs would be another's. Closing ends ours as well.
                if accepted:
                    with contextlib.suppress(FilmstripError):
                        self.cancel()
                connection.abort()

            last = while_polling(work, tell_and_poll, stop)
            tell()
            return last

    def download(self, output_path: str, receive: Callable[[Shape, Iterator[Pixels]], ResultT]) -> ResultT:
        """Fetch an output; gives what `receive` makes of it, in another thread.

        Args:
            output_path: of the last event.
            receive: is given the shape and the frames, uint8 [H, W, C], one after the other in the same memory.
        """
        with Connection(self.server) as connection:

            def work() -> ResultT:
                path = f"/api/v1/generate/download?path={quote(output_path, safe='')}"
                with connection.send("GET", path, {}) as response:
                    connection.check_stream(response, "application/octet-stream")
                    body = _Body(response, connection)
                    shape = _read_header(bytes(body.read_into(np.empty(_HEADER.size, np.uint8))))
                    return receive(shape, body.frames(shape))

            return while_polling(work, self._poll, connection.abort)

    # -- How ------------------------------------------------------------------------------------------------------

    def _json(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Iterable[Bytes] = (),
        also_good: frozenset[int] = frozenset(),
    ) -> Any:
        with Connection(self.server) as connection:

            def work() -> Any:
                response = connection.send(method, path, headers or {}, body, also_good)
                with response, connection.readable_errors():
                    raw = response.read()
                try:
                    return json.loads(raw)
                except ValueError:
                    raise foreign_answer(response, raw, self.server) from None

            return while_polling(work, self._poll, connection.abort)

    def _post_binary(
        self, path: str, key: str, num_bytes: int, body: Iterable[Bytes], more: Mapping[str, str] | None = None
    ) -> str:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(num_bytes), **(more or {})}
        answer = self._json("POST", path, headers, body)
        return self._read(answer, lambda: str(answer[key]))

    def _read(self, answer: object, read: Callable[[], ResultT]) -> ResultT:
        try:
            return read()
        except (ValueError, KeyError, TypeError):
            shown = repr(answer)[:80]
            raise FilmstripError(
                f"{self.server.url} is no Filmstrip server: it answered {shown}", "not_filmstrip"
            ) from None


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    reader = EventReader()
    while data := response.read1(_READ_BYTES):
        yield from reader.feed(data)


def _read_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    size = facts["chunk_size"]
    # Null where the server does not know: of a pipeline that was never loaded, or cannot be.
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError("no chunk size")
    return {**facts, "features": dict(facts["features"] or {})}


def _state(facts: Mapping[str, Any]) -> str:
    """`ready`, `loading`, `unloaded` or `failed`; older servers only say whether it is loaded."""
    state = facts.get("state")
    return str(state) if state else "ready" if facts.get("loaded", True) else "unloaded"


def _read_header(raw: bytes) -> Shape:
    ndim, *shape = _HEADER.unpack(raw)
    frames, height, width, channels = shape
    if ndim != 4 or 0 in shape:
        raise FilmstripError("the server sent something else than a video", "not_filmstrip")
    return frames, height, width, channels


class _Body:
    """Reads the body of an answer into arrays."""

    def __init__(self, response: http.client.HTTPResponse, connection: Connection) -> None:
        self._response = response
        self._connection = connection

    def read_into(self, array: Pixels) -> Pixels:
        """Fill the array."""
        raw = array.data.cast("B")
        filled = 0
        while filled < raw.nbytes:
            with self._connection.readable_errors():
                num_bytes = self._response.readinto(raw[filled:])
            if not num_bytes:
                raise FilmstripError("the download broke off: the Filmstrip server went away, or was stopped", "broken")
            filled += num_bytes
        return array

    def frames(self, shape: Shape) -> Iterator[Pixels]:
        """The frames of a video, each in the same memory."""
        frame = np.empty(shape[1:], np.uint8)
        for _ in range(shape[0]):
            yield self.read_into(frame)
