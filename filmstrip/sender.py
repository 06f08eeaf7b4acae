"""Sends the calls of `filmstrip.endpoints` with httpx, in plain code and in asyncio."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from typing import TypeVar

import httpx

from filmstrip.endpoints import AnswerCall, StreamCall
from filmstrip.http_errors import mapped_errors, read_error, unexpected

AnswerT = TypeVar("AnswerT")


class Sender:
    """Sends calls and maps what goes wrong to the errors of `filmstrip.errors`."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def send(self, call: AnswerCall[AnswerT], content: bytes | Iterator[bytes] | None = None) -> AnswerT:
        """Send a call and read its answer; `content` is a body that is not JSON."""
        with mapped_errors():
            response = self.http.send(call.build(self.http, content))
        return call.answer(response)

    @contextmanager
    def stream(self, call: StreamCall) -> Iterator[httpx.Response]:
        """Send a call whose answer is read piece by piece within the block."""
        with mapped_errors():
            response = self.http.send(call.build(self.http), stream=True)
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


class AsyncSender:
    """The same for asyncio; see `Sender`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def send(self, call: AnswerCall[AnswerT], content: bytes | AsyncIterator[bytes] | None = None) -> AnswerT:
        """Send a call and read its answer; `content` is a body that is not JSON."""
        with mapped_errors():
            response = await self.http.send(call.build(self.http, content))
        return call.answer(response)

    @asynccontextmanager
    async def stream(self, call: StreamCall) -> AsyncIterator[httpx.Response]:
        """Send a call whose answer is read piece by piece within the block."""
        with mapped_errors():
            response = await self.http.send(call.build(self.http), stream=True)
        async with aclosing(response):
            if not response.is_success:
                with mapped_errors():
                    await response.aread()
                raise read_error(response)
            if not call.is_answered_by(response):
                with mapped_errors():
                    raise unexpected(response, await anext(response.aiter_bytes(), b""))
            yield response
