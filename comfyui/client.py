"""The server calls that the nodes need, with the standard library and numpy only; each can be stopped while it waits.

Many node packs share ComfyUI's Python environment: without dependencies, none of them can break this one.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from .errors import FilmstripError
from .foreign_answers import describe
from .frames import Pixels

CANCEL_TIMEOUT_S = 2.0
LOAD_POLL_S = 0.5
_HEADER = struct.Struct("<5I")  # ndim, then F, H, W, C
_READ_BYTES = 2**16
CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 2**20
_READ_ERROR_BYTES = 2**16

_HOW_TO_GIVE_A_KEY = (
    " (save the key in ComfyUI's settings under Filmstrip, or give it as the token of the Server node, or in"
    " FILMSTRIP_TOKEN in ComfyUI's environment, which is sent only to the address that FILMSTRIP_SERVER names there)"
)
_GENERATIONS = "/api/v1/generations"
POLL_S = 0.1
_JOIN_S = 3.0

CLIENT_LIMIT_BYTES = 2**20

LAST_EVENTS = ("complete", "cancelled", "error")
"""Every generation ends with one of these events."""

_EVENT_KEYS = {
    "queued": ("position",),
    "preview": ("chunk", "image"),
    "progress": ("chunk", "total_chunks", "frames", "latency", "fps"),
    "complete": ("output_path", "video_shape", "num_frames", "num_chunks", "chunk_size"),
    "cancelled": ("frames_completed",),
    "error": ("error", "code"),
}

Bytes = bytes | memoryview
VideoShape = tuple[int, int, int, int]  # F, H, W, C
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class ServerAddress:
    """The address of a server and how to talk to it.

    Attributes:
        url: such as http://127.0.0.1:8000, without a trailing slash.
        token: sent as `Authorization: Bearer`; empty for none. Not part of the repr, so never in a log.
        timeout_s: longest silence of a connection.
    """

    url: str
    token: str = field(default="", repr=False)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class PipelineRef:
    """A pipeline of a server: what the FILMSTRIP_PIPELINE sockets carry."""

    server: ServerAddress
    id: str


def server_address(url: str, token: str = "", timeout_s: float = 60.0) -> ServerAddress:
    """Check an address.

    Raises:
        FilmstripError: it is not the address of an HTTP server.
    """
    stripped = url.strip().rstrip("/")
    try:
        parts = urlsplit(stripped)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # such as a port that is not a number, or an unclosed bracket
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise FilmstripError(f"{url!r} is not the address of a server, such as http://127.0.0.1:8000")
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise FilmstripError("the token has characters that cannot be sent in a header")
    return ServerAddress(stripped, token, timeout_s)


class ServerClient:
    """Talks to one server; a new connection for each call.

    Args:
        server: its address.
        poll: called every 0.1 s while a call waits; an exception that it raises ends the call.
        whole_timeout_s: longest time of a call; 0 for any.
        limit_bytes: longest answer in JSON; 0 for any.

    Attributes:
        known: the server's pipelines, as of its last list.
    """

    def __init__(
        self,
        server: ServerAddress,
        poll: Callable[[], None],
        *,
        whole_timeout_s: float = 0,
        limit_bytes: int = 0,
    ) -> None:
        self.server = server
        self._whole_timeout_s = whole_timeout_s
        self._limit_bytes = limit_bytes
        self.known: dict[str, dict[str, Any]] = {}
        self._poll = poll

    def health(self) -> str:
        """The server's health: "healthy" when a generation would be accepted, or one runs."""
        answer = self._json("GET", "/health", ok_statuses=frozenset({503}))  # 503 carries the same JSON
        return self._read(answer, lambda: str(answer["status"]))

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """What each pipeline is and can do, by its id."""
        answer = self._json("GET", "/api/v1/pipelines")
        known = self._read(answer, lambda: {str(info["id"]): _checked_info(info) for info in answer["pipelines"]})
        self.known = known
        return known

    def loaded_pipeline(self, id: str, show: Callable[[str], None]) -> dict[str, Any]:
        """What one pipeline is and can do; it is loaded first if it is not loaded, or not listed yet.

        Args:
            id: of the pipeline.
            show: shows the user what the call waits for.

        Raises:
            FilmstripError: the server does not have it (the message lists those it has), or it cannot run (the message
                says why).
        """
        known = self.pipelines()
        state = _state(known.get(id, {"state": "unloaded"}))
        if state == "failed":
            why = known[id].get("reason") or "it could not be loaded"
            raise FilmstripError(f"the pipeline {id} cannot run: {why}", "load_failed")
        if state != "ready":
            try:
                self._load(id, show)
            except FilmstripError as error:
                if error.code != "unknown_pipeline":
                    raise
            else:
                known = self.pipelines()
        if id not in known:
            names = ", ".join(known) or "none"
            raise FilmstripError(f"the server has no pipeline {id!r}; it has: {names}", "unknown_pipeline")
        info = known[id]
        if not info.get("chunk_size"):
            raise FilmstripError(f"the pipeline {id} is not ready: it is {_state(info)}", "load_failed")
        return info

    def _load(self, id: str, show: Callable[[str], None]) -> None:
        answer = self._send_json("POST", "/api/v1/pipeline/load", {"pipeline_ids": [id]})
        while answer.get("status") == "loading":
            show(f"the server is loading {id}")
            sleep_polling(LOAD_POLL_S, self._poll)
            answer = self._json("GET", "/api/v1/pipeline/status")
            if answer.get("pipeline_id") not in (None, id):
                return  # another load has started since: the list of pipelines decides
        if answer.get("status") == "error":
            why = answer.get("error") or "the server gives no reason"
            raise FilmstripError(f"the pipeline {id} could not be loaded: {why}", "load_failed")

    def upload(self, shape: VideoShape, frames: Iterable[Bytes]) -> str:
        """Upload an input video, uint8 of this shape; returns its `input_path`."""
        names = ("X-Video-Frames", "X-Video-Height", "X-Video-Width", "X-Video-Channels")
        headers = {name: str(size) for name, size in zip(names, shape, strict=True)}
        num_bytes = shape[0] * shape[1] * shape[2] * shape[3]
        return self._post_binary("/api/v1/generate/upload", "input_path", num_bytes, frames, headers)

    def upload_data(self, num_bytes: int, pieces: Iterable[Bytes]) -> str:
        """Upload a blob of arrays; returns its `data_blob_path`."""
        return self._post_binary("/api/v1/generate/upload-data", "data_blob_path", num_bytes, pieces)

    def upload_image(self, file: bytes) -> str:
        """Upload an image file; returns its path."""
        return self._post_binary("/api/v1/assets", "path", len(file), [file])

    def dry_run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Check a request without generating; `uploads` and image sizes in it stand for files not uploaded yet.

        Returns:
            `height`, `width`, `num_chunks` and `chunks` [{start, frames}] of the video.

        Raises:
            FilmstripError: the server would refuse it.
        """
        answer = self._send_generation("POST", f"{_GENERATIONS}?dry_run=1", request)
        return self._read(answer, lambda: {**answer, "starts": [int(chunk["start"]) for chunk in answer["chunks"]]})

    def find(self, id: str) -> dict[str, Any] | None:
        """A generation's state; None if the server has none with this id."""
        try:
            answer = self._json("GET", f"{_GENERATIONS}/{id}")
        except FilmstripError as error:
            if error.code == "not_found":
                return None
            raise
        return self._read(answer, lambda: {**answer, "state": str(answer["state"])})

    def submit(self, id: str, request: Mapping[str, Any]) -> None:
        """Start a generation, or queue it.

        Raises:
            FilmstripError: the server refused it (code `queue_full`: too many wait).
        """
        self._send_generation("PUT", f"{_GENERATIONS}/{id}", request)

    def _send_generation(self, method: str, path: str, request: Mapping[str, Any]) -> Any:
        try:
            return self._send_json(method, path, request)
        except FilmstripError as error:
            if error.code == "not_found":
                message = f"the Filmstrip server at {self.server.url} is older than these nodes; update it"
                raise FilmstripError(message, error.code) from None
            raise

    def delete(self, id: str) -> None:
        """End a generation and remove it; with a short timeout, and not stopped by `poll`: the user stops already."""
        server = replace(self.server, timeout_s=min(CANCEL_TIMEOUT_S, self.server.timeout_s))
        with Connection(server) as connection, contextlib.suppress(FilmstripError):
            connection.send("DELETE", f"{_GENERATIONS}/{id}", {})

    def follow(
        self, id: str, after: int, on_event: Callable[[StreamEvent], None], on_wait: Callable[[], None]
    ) -> StreamEvent:
        """Follow a generation; returns its last event.

        Args:
            id: of the generation.
            after: number of the last event that came before.
            on_event: called in this thread for each event.
            on_wait: called in this thread while no event comes.

        Raises:
            FilmstripError: the connection broke (`broken`, `timed_out`, `unreachable`), or the server refused.
        """
        events: queue.SimpleQueue[StreamEvent] = queue.SimpleQueue()
        with Connection(self.server) as connection:

            def work() -> StreamEvent:
                path = f"{_GENERATIONS}/{id}/events?after={after}"
                with connection.send("GET", path, {"Accept": "text/event-stream"}) as response:
                    connection.check_stream(response, "text/event-stream")
                    with connection.readable_errors():
                        for event in _events(response):
                            events.put(event)
                            if event.name in LAST_EVENTS:
                                return event
                raise FilmstripError("the server ended the stream before the generation was done", "broken")

            def deliver_and_poll() -> None:
                deliver()
                self._poll()
                on_wait()

            def deliver() -> None:
                with contextlib.suppress(queue.Empty):
                    while True:
                        on_event(events.get_nowait())

            try:
                last = while_polling(work, deliver_and_poll, connection.abort)
            except FilmstripError:
                deliver()
                raise
            deliver()
            return last

    def download(self, output_path: str, receive: Callable[[VideoShape, Iterator[Pixels]], ResultT]) -> ResultT:
        """Download an output; returns what `receive` makes of it, in another thread.

        Args:
            output_path: of the last event.
            receive: gets the shape and the frames, uint8 [H, W, C], one after the other in the same memory.
        """
        with Connection(self.server) as connection:

            def work() -> ResultT:
                path = f"/api/v1/generate/download?path={quote(output_path, safe='')}"
                with connection.send("GET", path, {}) as response:
                    connection.check_stream(response, "application/octet-stream")
                    body = _DownloadBody(response, connection)
                    shape = _read_header(bytes(body.read_into(np.empty(_HEADER.size, np.uint8))))
                    return receive(shape, body.frames(shape))

            return while_polling(work, self._poll, connection.abort)

    def _send_json(self, method: str, path: str, value: Mapping[str, Any]) -> Any:
        body = json.dumps(value).encode()
        return self._json(method, path, {"Content-Type": "application/json", "Content-Length": str(len(body))}, [body])

    def _json(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Iterable[Bytes] = (),
        ok_statuses: frozenset[int] = frozenset(),
    ) -> Any:
        with Connection(self.server) as connection:

            def work() -> Any:
                response = connection.send(method, path, headers or {}, body, ok_statuses)
                with response, connection.readable_errors():
                    raw = response.read(self._limit_bytes + 1) if self._limit_bytes else response.read()
                if self._limit_bytes and len(raw) > self._limit_bytes:
                    raise foreign_answer(response, b"", self.server)
                try:
                    return json.loads(raw)
                except ValueError:
                    raise foreign_answer(response, raw, self.server) from None

            return while_polling(work, self._poll_until(), connection.abort)

    def _poll_until(self) -> Callable[[], None]:
        """`poll`, which also ends a call that takes too long in all."""
        if not self._whole_timeout_s:
            return self._poll
        until = time.monotonic() + self._whole_timeout_s

        def poll() -> None:
            self._poll()
            if time.monotonic() > until:
                raise FilmstripError(f"no answer within {self._whole_timeout_s:g} s", "timed_out")

        return poll

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
                f"{self.server.url} is not a Filmstrip server: it answered {shown}", "not_filmstrip"
            ) from None


def _events(response: http.client.HTTPResponse) -> Iterator[StreamEvent]:
    reader = EventReader()
    while data := response.read1(_READ_BYTES):
        yield from reader.feed(data)


def _checked_info(info: Mapping[str, Any]) -> dict[str, Any]:
    size = info["chunk_size"]
    # Null while the server does not know it: the pipeline was never loaded, or cannot be.
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError("no chunk size")
    return {**info, "features": dict(info["features"] or {})}


def _state(info: Mapping[str, Any]) -> str:
    """`ready`, `loading`, `unloaded` or `failed`; some servers only say whether it is loaded."""
    state = info.get("state")
    return str(state) if state else "ready" if info.get("loaded", True) else "unloaded"


def _read_header(raw: bytes) -> VideoShape:
    ndim, *shape = _HEADER.unpack(raw)
    frames, height, width, channels = shape
    if ndim != 4 or 0 in shape:
        raise FilmstripError("the server did not send a video", "not_filmstrip")
    return frames, height, width, channels


class _DownloadBody:
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
                raise FilmstripError("the Filmstrip server closed the connection during the download", "broken")
            filled += num_bytes
        return array

    def frames(self, shape: VideoShape) -> Iterator[Pixels]:
        """The frames of a video, each in the same memory."""
        frame = np.empty(shape[1:], np.uint8)
        for _ in range(shape[0]):
            yield self.read_into(frame)


# -- Connections ---------------------------------------------------------------------------------------------------


class Connection:
    """One request and its answer; close it after use."""

    def __init__(self, server: ServerAddress) -> None:
        self._server = server
        parts = urlsplit(server.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._prefix = parts.path
        self._http = kind(parts.hostname or "", parts.port, timeout=min(CONNECT_TIMEOUT_S, server.timeout_s))
        self._socket: socket.socket | None = None
        self._aborted = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def abort(self) -> None:
        """End the request from another thread; the thread that waits for it gets an error."""
        self._aborted = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it was closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[Bytes] = (),
        ok_statuses: frozenset[int] = frozenset(),
    ) -> http.client.HTTPResponse:
        """Send a request; returns the answer, whose body is still to be read.

        `ok_statuses` are statuses other than 2xx that carry an answer, not an error.

        Raises:
            FilmstripError: the server refused, or it could not be reached.
        """
        with self.readable_errors():
            response = self._send(method, path, headers, body)
            if response.status // 100 != 2 and response.status not in ok_statuses:
                raise read_error(response, self._server)
        return response

    def check_stream(self, response: http.client.HTTPResponse, media_type: str) -> None:
        """Check that an answer is a stream of this type, and not a login page, for example.

        Raises:
            FilmstripError: it is something else.
        """
        with self.readable_errors():
            if response.headers.get_content_type() != media_type:
                raise foreign_answer(response, response.peek(), self._server)

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterable[Bytes]
    ) -> http.client.HTTPResponse:
        self._http.connect()
        self._socket = self._http.sock
        if self._aborted:
            raise FilmstripError("the request was cancelled", "cancelled")
        self._socket.settimeout(self._server.timeout_s)
        self._http.putrequest(method, self._prefix + path)
        if self._server.token:
            self._http.putheader("Authorization", f"Bearer {self._server.token}")
        for name, value in headers.items():
            self._http.putheader(name, value)
        self._http.endheaders()
        try:
            for whole in body:
                raw = memoryview(whole).cast("B")
                for start in range(0, raw.nbytes, _PIECE_BYTES):
                    self._http.send(raw[start : start + _PIECE_BYTES])
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a body answers and closes: its answer says more than the broken pipe.
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._http.getresponse()
            raise
        return self._http.getresponse()

    @contextlib.contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Map errors of the standard library to FilmstripErrors; nothing else does."""
        url = self._server.url
        try:
            yield
        except TimeoutError:
            if self._socket is None:
                raise FilmstripError(f"cannot reach a Filmstrip server at {url}: no answer", "unreachable") from None
            silence = f"{self._server.timeout_s:g} s"
            raise FilmstripError(f"the Filmstrip server at {url} sent nothing for {silence}", "timed_out") from None
        except ssl.SSLError as error:
            why = error.reason or "TLS failed"
            raise FilmstripError(
                f"cannot open a TLS connection to the Filmstrip server at {url}: {why}", "unreachable"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            if self._socket is None:
                why = getattr(error, "strerror", None) or "no connection"
                raise FilmstripError(f"cannot reach a Filmstrip server at {url}: {why}", "unreachable") from None
            raise FilmstripError(f"lost the connection to the Filmstrip server at {url}", "broken") from None


def read_error(response: http.client.HTTPResponse, server: ServerAddress) -> FilmstripError:
    """The error that an error answer carries."""
    body = response.read(_READ_ERROR_BYTES)
    try:
        error: Any = json.loads(body)["error"]
        message, code, blamed = error["message"], error["code"], error.get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        return foreign_answer(response, body, server)
    if not isinstance(message, str) or not isinstance(code, str):
        return foreign_answer(response, body, server)
    if code == "unauthorized":
        message += _HOW_TO_GIVE_A_KEY
    return FilmstripError(message, code, None if blamed is None else str(blamed))


def foreign_answer(response: http.client.HTTPResponse, body: bytes, server: ServerAddress) -> FilmstripError:
    """The error for an answer that does not come from Filmstrip."""
    message = describe(server.url, response.status, response.headers.get, body)
    return FilmstripError(message + (_HOW_TO_GIVE_A_KEY if response.status == 401 else ""), "not_filmstrip")


# -- Events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamEvent:
    """One event of a generation: its name and its data, and its number; 0 if it has none."""

    name: str
    data: dict[str, Any]
    number: int = 0


class EventReader:
    """Reads the events of a generation from the bytes of its stream, which may be split anywhere."""

    def __init__(self) -> None:
        self._pending = b""
        self._name = ""
        self._number = 0
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[StreamEvent]:
        """Take the next bytes; yield the events that they complete. Unknown event names are skipped.

        Raises:
            FilmstripError: the stream is not Filmstrip's.
        """
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode(errors="replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> StreamEvent | None:
        if not line:
            name, number, data = self._name, self._number, "\n".join(self._data)
            self._name, self._number, self._data = "", 0, []
            return _read_event(name, number, data) if name in _EVENT_KEYS else None
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            self._name = value
        elif key == "data":
            self._data.append(value)
        elif key == "id" and value.isdecimal():
            self._number = int(value)
        return None  # a comment, or part of an event


def _read_event(name: str, number: int, data: str) -> StreamEvent:
    try:
        raw = json.loads(data)
        missing = [key for key in _EVENT_KEYS[name] if key not in raw]
    except (ValueError, TypeError):
        missing = ["JSON"]
        raw = None
    if not isinstance(raw, dict) or missing:
        raise FilmstripError(
            f"unexpected {name} event, from another version of Filmstrip or another program: {data[:80]!r}",
            "not_filmstrip",
        )
    return StreamEvent(name, raw, number)


# -- Waiting -------------------------------------------------------------------------------------------------------


def while_polling(work: Callable[[], ResultT], poll: Callable[[], None], abort: Callable[[], None]) -> ResultT:
    """Do the work in a thread that the user can stop: call `poll` every 0.1 s meanwhile.

    Args:
        work: runs in a thread of its own.
        poll: runs in this thread; an exception (ComfyUI's interrupt) ends the wait.
        abort: makes the work end soon; called after `poll` has raised.

    Raises:
        BaseException: what the work or the poll raised.
    """
    outcome: Future[ResultT] = Future()
    done = threading.Event()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed over, to be raised in the thread that waits
            outcome.set_exception(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="filmstrip", daemon=True)
    thread.start()
    try:
        poll()
        while not done.wait(POLL_S):
            poll()
    except BaseException:
        abort()
        thread.join(_JOIN_S)  # a connection attempt cannot be aborted: the thread then ends by itself later
        raise
    return outcome.result()


def sleep_polling(seconds: float, poll: Callable[[], None]) -> None:
    """Sleep, calling `poll` every 0.1 s."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        poll()
        time.sleep(min(POLL_S, left))
