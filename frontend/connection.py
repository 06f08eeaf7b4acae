"""The Quart side of a connection: back-pressure on request bodies, and clean-up bound to the connection.

Quart appends whatever arrives to the body, so a slow reader lets a whole upload pile up in memory. Here the receiving
side waits once a body holds `HIGH_WATER_BYTES`, and Hypercorn then stops reading the socket.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Request
from quart.asgi import ASGIHTTPConnection
from quart.wrappers.request import Body

from filmstrip.errors import SlowBody

HIGH_WATER_BYTES = 2 * 2**20
_PIECE_OVERHEAD_BYTES = 64  # of an object and its place in the queue: a body may arrive byte by byte
_EXIT_STACK = "filmstrip.exit_stack"
EXCHANGE = "filmstrip.exchange"
"""The key of the request's `Exchange` in the state of its ASGI scope."""


@dataclass
class Exchange:
    """What a request and its connection tell each other beyond ASGI.

    Attributes:
        ask_for_body: sends 100 Continue to a client that waits for it.
        expect_stream: announces that the response will be an event stream, unless the request is refused.
        awaits_continue: the client has sent `Expect: 100-continue`, and its body has not been asked for yet.
        closes: the connection must close after the response.
        streams: the response is or will be an event stream; a client that closes its sending side then counts as gone.
        has_begun: the response has started.
    """

    ask_for_body: Callable[[], Awaitable[None]]
    expect_stream: Callable[[], None]
    awaits_continue: bool = False
    closes: bool = False
    streams: bool = False
    has_begun: bool = False


@dataclass(frozen=True)
class Pace:
    """How slow a client may be with its body.

    Attributes:
        pause_s: longest pause; the average rate does not count before that time.
        bytes_per_s: lowest average rate after it.
    """

    pause_s: float
    bytes_per_s: int


class BoundedBody(Body):
    """A request body that holds a bounded number of bytes and can be iterated once."""

    exchange: Exchange | None = None

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._received_all = False
        self._discarding = False
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

    async def feed(self, piece: bytes) -> None:
        """Add a piece from the connection; returns when there is room for the next one."""
        if self._discarding:
            return
        self._pieces.append(piece)
        self._held_bytes += len(piece) + _PIECE_OVERHEAD_BYTES
        self._changed.set()
        while self._held_bytes >= HIGH_WATER_BYTES and not self._discarding:
            self._drained.clear()
            await self._drained.wait()

    def set_complete(self) -> None:
        """Note that the last piece has arrived."""
        self._received_all = True
        self._changed.set()

    async def __anext__(self) -> bytes:
        """The next piece, as it arrived."""
        await self._arrival()
        if not self._pieces:
            raise StopAsyncIteration
        piece = self._pieces.popleft()
        self._held_bytes -= len(piece) + _PIECE_OVERHEAD_BYTES
        if self._held_bytes < HIGH_WATER_BYTES:
            self._drained.set()
        return piece

    async def _arrival(self) -> None:
        """Wait until there is a piece, or the end."""
        if self._awaits_continue:
            await cast("Exchange", self.exchange).ask_for_body()
        while not self._pieces and not self._received_all:
            self._changed.clear()
            await self._changed.wait()

    @property
    def _awaits_continue(self) -> bool:
        return self.exchange is not None and self.exchange.awaits_continue

    async def pieces(self, pace: Pace) -> AsyncIterator[bytes]:
        """The body piece by piece.

        Raises:
            SlowBody: it arrives slower than `pace` allows.
        """
        clock = asyncio.get_running_loop().time
        waited_s = 0.0  # for the client; processing a piece does not count
        received = 0
        while True:
            if not self._pieces and not self._received_all:
                began = clock()
                try:
                    async with asyncio.timeout(pace.pause_s):
                        await self._arrival()
                except TimeoutError:
                    raise SlowBody(f"the request body paused for {pace.pause_s:g} s") from None
                waited_s += clock() - began
                if waited_s > pace.pause_s and received < pace.bytes_per_s * waited_s:
                    raise SlowBody(f"the request body arrives at less than {pace.bytes_per_s} bytes per second")
            try:
                piece = await anext(self)
            except StopAsyncIteration:
                return
            received += len(piece)
            yield piece

    async def discard(self, limit_bytes: int, wait_s: float) -> None:
        """Discard the rest of the body; unless all of it arrives soon, the connection closes after the response.

        Nothing is read while the client waits for 100 Continue: it sends no body if it gets another response.

        Args:
            limit_bytes: most bytes to wait for.
            wait_s: longest wait.
        """
        with contextlib.suppress(TimeoutError):
            if not self._awaits_continue:
                async with asyncio.timeout(wait_s):
                    await self._skip(limit_bytes)
        if self.exchange is not None and not self._received_all:
            self.exchange.closes = True
        self._discarding = True
        self._pieces.clear()
        self._drained.set()

    async def _skip(self, limit_bytes: int) -> None:
        async for piece in self:
            limit_bytes -= len(piece)
            if limit_bytes < 0:
                break


class BoundedRequest(Request):
    """A Quart request with a bounded body."""

    body_class = BoundedBody
    body: BoundedBody


class Connection(ASGIHTTPConnection):
    """One request and its response; whatever was registered with `on_close` runs at its end, however it ends."""

    _handler: asyncio.Task[None] | None = None

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request."""
        async with AsyncExitStack() as stack:
            cast("dict[str, object]", self.scope)[_EXIT_STACK] = stack
            try:
                await super().__call__(receive, send)
            finally:
                await self._end_handler()

    def _create_request_from_scope(self, send: ASGISendCallable) -> Request:
        request = super()._create_request_from_scope(send)
        cast("BoundedBody", request.body).exchange = _exchange(request)
        return request

    async def handle_request(self, request: Request, send: ASGISendCallable) -> None:
        """Answer the request."""
        self._handler = asyncio.current_task()
        await super().handle_request(request, send)

    async def _end_handler(self) -> None:
        """Cancel Quart's handler, which keeps running when the connection's own task is cancelled, as at a shutdown."""
        handler, self._handler = self._handler, None  # its exception's traceback holds this connection: a cycle
        if handler is not None:
            handler.cancel()
            await asyncio.wait([handler])

    async def handle_messages(self, request: Request, receive: ASGIReceiveCallable) -> None:
        """Feed the body until the client disconnects."""
        body = cast("BoundedBody", request.body)
        while True:
            message = await receive()
            if message["type"] == "http.request":
                await body.feed(message.get("body", b""))
                if not message.get("more_body", False):
                    body.set_complete()
            elif message["type"] == "http.disconnect":
                return


def on_close(request: Request) -> AsyncExitStack:
    """The stack of clean-ups that run when this request ends: answered, disconnected or cancelled."""
    return cast("AsyncExitStack", cast("dict[str, object]", request.scope)[_EXIT_STACK])


def will_stream(request: Request) -> None:
    """Announce that the response will be an event stream, or a file that is made for it, unless the request is refused.

    Until a response begins, a client that closes its sending side counts as gone, after a moment for a refusal. On an
    event stream it does so until the end.
    """
    exchange = _exchange(request)
    if exchange is not None:
        exchange.expect_stream()


def _exchange(request: Request) -> Exchange | None:
    """The request's exchange; None under a server other than ours."""
    state = cast("dict[str, Any]", cast("dict[str, object]", request.scope).get("state") or {})
    return cast("Exchange | None", state.get(EXCHANGE))
