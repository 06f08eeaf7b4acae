"""The Hypercorn side of a connection: replacements for the two Hypercorn classes whose behaviour does not fit.

- Malformed request: a head that is not HTTP, is too large or has no path never reaches the application, or crashes it,
  and Hypercorn answers with a bare status. Here the client gets a JSON error like any other.
- Upgrades: only HTTP/1.1 is supported; HTTP allows a server to ignore an offer to upgrade. Hypercorn's WebSocket ends
  in a 500 where there is no WebSocket route, and its HTTP/2 loses the connection when a client resets a stream.
- Pipelining: when a client sends a second request behind a running stream and then disconnects, Hypercorn leaves a task
  that waits forever.
- Shutdown: Hypercorn waits for clients that have stopped reading. Here they are cut off.
- Expect: Hypercorn sends 100 Continue before the application has seen the head. Here it is sent when the body is first
  read.
- Content-Length with Transfer-Encoding: Hypercorn keeps the connection open. Here it closes, as RFC 9112 requires.
- Stray bytes: Hypercorn treats bytes after the last request and empty lines before a request as errors that end the
  response in progress. Here they are ignored, as RFC 9112 says.
- Half-closed connections: Hypercorn considers a client gone that has closed its sending side. Here it still gets its
  response, unless that is an event stream.
- Lingering close: Hypercorn closes right after the last response. If the client is still sending, the kernel then
  resets the connection and the client loses the response. Here the rest is read for a while and discarded.
- Connection limit: Hypercorn accepts any number of connections, and keeps one open for five seconds after its client
  has left. Here there is a limit, and idle connections make room for new ones. Without a limit, silent connections
  would use up the process's file descriptors, and no file, process or gRPC channel could be opened any more.

Hypercorn has no extension points for these, so `install` replaces its classes. Its minor version is pinned for that
reason.
"""

import asyncio
import contextlib
import functools
import json
import logging
import re
import resource
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio import tcp_server
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.typing import ConnectionState

from filmstrip.errors import BadRequest, FilmstripError, HeadTooLarge, TooManyConnections

from .connection import EXCHANGE, Exchange

log = logging.getLogger(__name__)

HEAD_BYTES = 32 * 1024
READ_BYTES = 256 * 1024  # as much as uvloop reads from a socket at once; Hypercorn's default is 64 KiB
_LINGER_S = 2.0  # longest pause of a client that still sends after its response; also the time it has to read a refusal
_LONGEST_LINGER_S = 30.0  # how long it may go on sending altogether
_REFUSAL_S = 1.0  # how long an event stream may take to be refused after its client has closed its sending side
_HEAD = re.compile(rb".*?\n\r?\n", re.DOTALL)
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_FOLD = re.compile(rb"\n[ \t]")
_CLOSE = (b"connection", b"close")

RESERVED_DESCRIPTORS = 192  # for logs, Triton, the generation's files, threads and processes
_DESCRIPTORS_PER_CONNECTION = 2  # its socket, and the file that it uploads or downloads
_MIN_CONNECTIONS = 8
_MAX_REFUSED = 32
_WARNING_INTERVAL_S = 60.0


def raise_descriptor_limit() -> int:
    """Raise the soft limit on file descriptors to the hard limit, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connection_limit(configured: int, descriptors: int) -> int:
    """The configured number of connections, or as many as this number of file descriptors allows."""
    if descriptors == resource.RLIM_INFINITY:
        return configured
    return min(configured, max(_MIN_CONNECTIONS, (descriptors - RESERVED_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION))


class Closable(Protocol):
    """What the connection limit needs to know of a connection."""

    @property
    def is_in_use(self) -> bool:
        """Closing it now would lose bytes in transit."""

    def cut(self) -> None:
        """Close it."""


class OpenConnections:
    """The open connections: busy ones, which have a request in progress, and idle ones, longest idle first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._busy: set[Closable] = set()
        self._idle: dict[Closable, None] = {}
        self._refused: dict[Closable, None] = {}
        self._cutting: asyncio.Task[None] | None = None
        self._warned_at = -_WARNING_INTERVAL_S

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    def admit(self, connection: Closable) -> bool:
        """Add a new connection as an idle one. Over the limit, the one that has been idle longest is closed for it.

        Returns:
            Whether to serve it. False when all others are busy; a few refused connections may stay open until their
            clients have read why.
        """
        if len(self) < self.limit or self._cut_one_idle():
            self._idle[connection] = None
            return True
        if len(self._refused) == _MAX_REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            oldest.cut()
        self._refused[connection] = None
        return False

    def _cut_one_idle(self) -> bool:
        victim = next((connection for connection in self._idle if not connection.is_in_use), None)
        self._warn("idle connections are closed" if victim else "new connections are refused")
        if victim is None:
            return False
        del self._idle[victim]
        victim.cut()
        return True

    def mark_busy(self, connection: Closable) -> None:
        """Note that a request has started."""
        self._idle.pop(connection, None)
        self._busy.add(connection)

    def mark_idle(self, connection: Closable) -> None:
        """Note that its request has been answered."""
        self._busy.discard(connection)
        self._idle[connection] = None

    def remove(self, connection: Closable) -> None:
        """Note that it is closed."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)
        self._refused.pop(connection, None)

    def cut_idle_when(self, stopping: Callable[[], Awaitable[None]]) -> None:
        """Close idle connections when the server stops."""
        if self._cutting is None:
            self._cutting = asyncio.create_task(self._cut_idle(stopping), name="cut idle connections")

    async def _cut_idle(self, stopping: Callable[[], Awaitable[None]]) -> None:
        await stopping()
        for connection in [connection for connection in self._idle if not connection.is_in_use]:
            connection.cut()

    def _warn(self, consequence: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_INTERVAL_S:
            self._warned_at = now
            log.warning("the limit of %d connections is reached: %s", self.limit, consequence)


class _Parser(h11.Connection):
    """h11's parser, hiding from Hypercorn that a client waits for 100 Continue, which it would send at once."""

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        return False

    def receive_data(self, data: bytes) -> None:
        """Take bytes, unless the connection's last request has arrived: what follows it is ignored (RFC 9112, 9.6)."""
        if not data or self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Folded header lines are an error, because proxies and servers read them differently."""
        if self.their_state is h11.MUST_CLOSE and self.trailing_data[0]:
            return h11.NEED_DATA
        if self.their_state in (h11.IDLE, h11.DONE):
            if empty := _EMPTY_LINES.match(self.trailing_data[0]):  # some clients send one after a body: RFC 9112, 2.2
                self._receive_buffer.maybe_extract_at_most(empty.end())
            if self.trailing_data == (b"\r", False):
                return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            head = _HEAD.match(self.trailing_data[0])
            if head and _FOLD.search(head[0]):
                raise h11.RemoteProtocolError("folded header lines")
        return super().next_event()


class _ClosedParser(H11WSConnection):
    """Replaces the parser of a connection whose client is gone: nothing to read, and nobody to send to."""

    client_is_waiting_for_100_continue = False

    def __init__(self) -> None:
        self.buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        pass

    def send(self, event: object) -> bytes:  # noqa: ARG002
        return b""


class HttpProtocol(H11Protocol):
    """HTTP/1.1 on one connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection = _Parser(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        self._exchange = self._new_exchange()
        self._input_has_ended = False
        self._hanging_up: asyncio.TimerHandle | None = None

    async def handle(self, event: Event) -> None:
        """Handle bytes from the client, or the end of the connection."""
        await super().handle(event)
        if isinstance(event, Closed):
            self.stay()
            self.connection = _ClosedParser()
            await self.can_read.set()

    async def end_input(self) -> bool:
        """Note that the client has closed its sending side; returns whether it still waits for a response."""
        self._input_has_ended = True
        await self.handle(RawData(b""))
        is_complete = self.connection.their_state is not h11.ERROR
        if self.stream is None or not is_complete or (self._exchange.streams and self._exchange.has_begun):
            return False
        if self._exchange.streams:
            self._hang_up_soon()
        return True

    @property
    def is_cut_short(self) -> bool:
        """The client has sent, or may be sending, more than the requests that were answered."""
        return self.connection.their_state in (h11.SEND_BODY, h11.ERROR) or bool(self.connection.trailing_data[0])

    async def _check_protocol(self, event: h11.Request) -> None:
        """Ignore offers to upgrade to HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        fields: dict[bytes, bytes] = dict(request.headers)
        is_chunked = b"transfer-encoding" in fields
        if (
            not _has_path(request.target)
            or not all(_is_host(value) for name, value in request.headers if name == b"host")
            or (is_chunked and request.http_version < b"1.1")  # its length is ambiguous: RFC 9112, 6.1
        ):
            await self._send_error_response(BadRequest.status)
            await self.send(Closed())
            return
        self._exchange = self._new_exchange()
        if is_chunked and b"content-length" in fields:  # a proxy may have used the other header
            self._exchange.closes = True
            fields.pop(b"content-length")
        if b"expect" in fields and request.http_version >= b"1.1":
            has_body = is_chunked or int(fields.get(b"content-length", 0)) > 0
            self._exchange.awaits_continue = has_body
            self._exchange.closes |= fields[b"expect"].lower() != b"100-continue"  # refused later
        self.connection_state = ConnectionState(self.connection_state | {EXCHANGE: self._exchange})
        fields.pop(b"upgrade", None)  # no WebSocket
        headers = [(name, value) for name, value in request.headers if name in fields]
        await super()._create_stream(
            h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        )

    def let_go(self) -> None:
        """Drop the references to itself, so that memory is freed now and not at the next garbage collection."""
        del self._exchange, self.connection_state

    def _new_exchange(self) -> Exchange:
        return Exchange(self._ask_for_body, self._expect_stream)

    async def _ask_for_body(self) -> None:
        self._exchange.awaits_continue = False
        if self.connection.client_is_waiting_for_100_continue:  # type: ignore[union-attr]
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    def _expect_stream(self) -> None:
        self._exchange.streams = True
        if self._input_has_ended:
            self._hang_up_soon()

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of the response."""
        if isinstance(event, Response) and event.status_code >= 200:
            self.stay()
            exchange = self._exchange
            exchange.has_begun = True
            exchange.streams = _is_event_stream(event.headers)
            if exchange.streams and self._input_has_ended:
                self.connection = _ClosedParser()
                self.task_group.spawn(self._hang_up)  # it cancels the current task
            elif exchange.closes or exchange.awaits_continue or self._input_has_ended:
                event = replace(event, headers=[*event.headers, _CLOSE])
        await super().stream_send(event)

    def _hang_up_soon(self) -> None:
        """Hang up after a moment: only a refusal is of use to this client."""
        spawn = functools.partial(self.task_group.spawn, self._hang_up)
        self._hanging_up = asyncio.get_running_loop().call_later(_REFUSAL_S, spawn)

    def stay(self) -> None:
        """Cancel a pending hang-up."""
        if self._hanging_up is not None:
            self._hanging_up.cancel()

    async def _hang_up(self) -> None:
        """Treat the client as gone."""
        await self.handle(Closed())
        await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        error: FilmstripError = BadRequest("malformed HTTP request")
        if status_code == HeadTooLarge.status:
            error = HeadTooLarge(f"the request line and headers exceed the limit of {HEAD_BYTES} bytes")
        body = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            _CLOSE,
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=error.status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class TcpConnection(tcp_server.TCPServer):
    """One accepted socket (Hypercorn makes a TCPServer for each)."""

    def __init__(self, connections: OpenConnections, refused_body_bytes: int, *args: Any) -> None:
        super().__init__(*args)
        self._connections = connections
        self._refused_body_bytes = refused_body_bytes
        self._linger_until = 0.0
        self._lingering: asyncio.TimerHandle | None = None
        self._first: bytes | None = b""
        self._input_has_ended = False
        self._output_has_ended = False

    async def run(self) -> None:
        """Serve the connection until it closes."""
        try:
            self._connections.cut_idle_when(self.context.terminated.wait)
            if not self._connections.admit(self):
                await self._refuse()
            elif await self._wait_for_first_bytes():
                await super().run()
        except asyncio.CancelledError:  # asyncio.streams of Python 3.11 would log it as an error
            if not self.context.terminated.is_set():
                raise
        finally:
            self._connections.remove(self)
            if self._lingering is not None:
                self._lingering.cancel()
            if hasattr(self, "protocol"):  # not refused, and the client has sent something
                self._http.stay()
                self._http.let_go()
                del self.protocol
            if (error := self.reader.exception()) is not None:
                error.__traceback__ = None  # its frames refer to this connection: a cycle

    @property
    def is_in_use(self) -> bool:
        """Received bytes wait to be read, or sent bytes wait to be taken by the client.

        What arrives after the last response does not count: it is discarded.
        """
        if self._output_has_ended:
            return False
        received = cast("bytearray", self.reader._buffer)  # type: ignore[attr-defined]
        return bool(received) or self.writer.transport.get_write_buffer_size() > 0

    def cut(self) -> None:
        """Close it, to make room for another connection."""
        self.writer.close()

    async def protocol_send(self, event: Event) -> None:
        """Handle what the protocol sends, or its end."""
        if isinstance(event, Closed):
            await self._end()
            return
        if isinstance(event, Updated):
            (self._connections.mark_idle if event.idle else self._connections.mark_busy)(self)
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        """Read until the client closes its sending side, or is gone."""
        discarded_bytes = 0
        while data := await self._read():
            if not self._output_has_ended:
                await self._http.handle(RawData(data))
            else:
                discarded_bytes += len(data)
                if discarded_bytes > self._refused_body_bytes:
                    break
                self._linger()
        if data is not None and not self._output_has_ended and not self.writer.is_closing():
            self._input_has_ended = True
            if await self._http.end_input():
                return
        await self._http.handle(Closed())
        await self._close()

    async def _wait_for_first_bytes(self) -> bool:
        """Wait for the first bytes. Until they come, a connection costs little: there may be many silent ones."""
        timer = self.loop.call_later(self.config.keep_alive_timeout, self.cut)
        self._first = await self._read()
        timer.cancel()
        if not self._first:
            await self._close()
        return bool(self._first)

    async def _read(self) -> bytes | None:
        """The next bytes; empty at the end of the stream, None after a reset."""
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            return await self.reader.read(READ_BYTES)
        except OSError:
            return None

    async def _end(self) -> None:
        """Close the connection after the last response; if the client is still sending, give it time to read it first.

        Closing earlier would reset the connection, and the client's kernel would drop the response.
        """
        if self._output_has_ended:
            return
        self._output_has_ended = True
        if self._http.is_cut_short and not self._input_has_ended and not self.context.terminated.is_set():
            self._connections.mark_idle(self)
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.write_eof()
            self._linger_until = self.loop.time() + _LONGEST_LINGER_S
            self._linger()
        else:
            await self._close()

    def _linger(self) -> None:
        """Close the connection once the client stops sending, or takes too long."""
        if self._lingering is not None:
            self._lingering.cancel()
        when = min(self.loop.time() + _LINGER_S, self._linger_until)
        self._lingering = self.loop.call_at(when, self.writer.close)

    async def _refuse(self) -> None:
        """Answer that there is no room, and close."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.writer.write(_refusal_of_connection())
            self.writer.write_eof()
            async with asyncio.timeout(_LINGER_S):
                while await self._read():
                    pass
        await self._close()

    async def _close(self) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self.writer.transport.abort()
        await super()._close()

    @property
    def _http(self) -> HttpProtocol:
        return cast("HttpProtocol", self.protocol.protocol)


@functools.cache
def _refusal_of_connection() -> bytes:
    error = TooManyConnections("the server has reached its connection limit; try again soon")
    body = json.dumps(error.body()).encode()
    head = (
        f"HTTP/1.1 {error.status} Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {error.headers['Retry-After']}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name.lower() == b"content-type" and value.partition(b";")[0].strip().lower() == b"text/event-stream"
        for name, value in headers
    )


def _has_path(target: bytes) -> bool:
    """Whether a request's target is a path or an absolute URL; Quart crashes on others. Hypercorn unquotes it first."""
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    try:
        return path.startswith("/") or urlsplit(path).scheme in ("http", "https")
    except ValueError:
        return False


def _is_host(value: bytes) -> bool:
    """Whether every label of a host is short enough: Werkzeug raises where no error handler applies."""
    try:
        value.decode("latin1").lower().partition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True


def install(connections: OpenConnections, refused_body_bytes: int) -> None:
    """Make Hypercorn use these classes for all new connections.

    Args:
        connections: the open connections, with their limit.
        refused_body_bytes: how much of what a client sends after its last response is read.
    """
    hypercorn.protocol.H11Protocol = HttpProtocol  # type: ignore[attr-defined]
    hypercorn.asyncio.run.TCPServer = functools.partial(TcpConnection, connections, refused_body_bytes)  # type: ignore[assignment,attr-defined]
