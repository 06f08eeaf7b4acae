"""The relay: a process for calls whose arrays Triton cannot read in shared memory.

Serialising megabytes for gRPC holds Python's lock for tens of milliseconds; in the relay, that never blocks the
frontend's event loop. Calls arrive as JSON lines on stdin, answers leave as JSON lines on stdout; the arrays are read
from and written to the files that the calls name.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar, cast

import tritonclient.grpc.aio as triton_aio
from pydantic import ConfigDict, TypeAdapter, ValidationError
from tritonclient.utils import InferenceServerException

from .inference import ChunkCall, ChunkResult, call_model, connect
from .tasks import spawn

log = logging.getLogger(__name__)

_SECRET_VARIABLE = "FILMSTRIP_TRITON_SECRET"  # noqa: S105
_LINE_BYTES = 64 * 2**20
_GRACE_S = 1.0


@dataclass(frozen=True)
class _Message:
    """A line to the relay: a call to make, or without one, the number of a call to cancel."""

    number: int
    call: ChunkCall | None = None


@dataclass(frozen=True)
class _Reply:
    """A line from the relay: the answer to a call, or Triton's error."""

    __pydantic_config__: ClassVar = ConfigDict(ser_json_inf_nan="constants")  # a model may report any seconds

    number: int
    answer: ChunkResult | None = None
    error: str = ""
    status: str | None = None


@dataclass(frozen=True)
class _ReplyNumber:
    """What must be readable of a reply, so that its call need not wait forever."""

    number: int


_MESSAGE = TypeAdapter(_Message)
_REPLY = TypeAdapter(_Reply)
_REPLY_NUMBER = TypeAdapter(_ReplyNumber)


def _parse_reply(line: bytes) -> _Reply:
    """The reply in a line; an error in its place if only its number can be read.

    Raises:
        ValidationError: not even that can be read.
    """
    try:
        return _REPLY.validate_json(line)
    except ValidationError:
        return _Reply(_REPLY_NUMBER.validate_json(line).number, error="the relay sent an answer that cannot be read")


class RelayDied(Exception):
    """The relay's process ended while a call was under way."""


class Relay:
    """The frontend's side: starts the process when it is first needed, and again after it has died."""

    def __init__(self, url: str, secret: str = "") -> None:
        self._url = url
        self._secret = secret
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[asyncio.subprocess.Process, dict[int, asyncio.Future[_Reply]]] = {}
        self._numbers = itertools.count(1)
        self._starting = asyncio.Lock()

    async def call(self, call: ChunkCall) -> ChunkResult:
        """Make a call through the relay; cancelling it cancels the call in Triton.

        Raises:
            InferenceServerException: as Triton's answer says.
            RelayDied: the process ended.
        """
        process = await self._running()
        number = next(self._numbers)
        future: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(process)
        if waiting is None:  # its answers can't be read any more
            raise RelayDied
        waiting[number] = future
        try:
            self._send(process, _Message(number, call))
            async with asyncio.timeout(call.timeout_s + _GRACE_S):  # the relay itself keeps to timeout_s
                reply = await future
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise InferenceServerException("the relay does not respond", "StatusCode.DEADLINE_EXCEEDED") from None
        except asyncio.CancelledError:
            self._send(process, _Message(number))
            raise
        finally:
            waiting.pop(number, None)
        if reply.answer is None:
            raise InferenceServerException(reply.error, reply.status)
        return reply.answer

    async def close(self) -> None:
        """End the process."""
        if self._process is not None and self._reader is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            await asyncio.wait([self._reader])
            self._process = None

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await spawn(
                    sys.executable,
                    *("-m", __name__, self._url),
                    env=os.environ | {_SECRET_VARIABLE: self._secret},  # not where every user of the machine reads it
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=_LINE_BYTES,
                    start_new_session=True,  # a terminal's Ctrl-C or hang-up is for the frontend, which ends the relay
                )
                answers = cast("asyncio.StreamReader", self._process.stdout)
                self._waiting[self._process] = {}
                self._reader = asyncio.create_task(self._read(self._process, answers), name="relay reader")
            return self._process

    @staticmethod
    def _send(process: asyncio.subprocess.Process, message: _Message) -> None:
        if process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(_MESSAGE.dump_json(message) + b"\n")

    async def _read(self, process: asyncio.subprocess.Process, answers: asyncio.StreamReader) -> None:
        """Pass on a process's answers until it ends; calls already sent to its successor are not affected."""
        waiting = self._waiting[process]
        try:
            async for line in answers:
                reply = _parse_reply(line)
                future = waiting.get(reply.number)
                if future is not None and not future.done():
                    future.set_result(reply)
            await process.wait()
        except ValidationError:  # nothing says whose answer it is, so the process's other calls end too
            log.error("the relay sent a line that cannot be read")
        finally:
            del self._waiting[process]
            if process.returncode is None:
                process.kill()
            for future in waiting.values():
                if not future.done():
                    future.set_exception(RelayDied())


# -- The process --------------------------------------------------------------------------------------------


async def _serve(url: str, secret: str) -> None:
    """Answer calls until stdin ends, as it does when the frontend ends."""
    os.umask(0o077)
    running: dict[int, asyncio.Task[None]] = {}
    async with connect(url, secret) as client:
        async for message in _messages():
            if message.call is not None:
                task = asyncio.create_task(_answer(client, message.number, message.call))
                running[message.number] = task
                task.add_done_callback(functools.partial(_forget, running, message.number))
            elif message.number in running:
                running[message.number].cancel()
        for task in list(running.values()):
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)


def _forget(running: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    del running[number]


async def _answer(client: triton_aio.InferenceServerClient, number: int, call: ChunkCall) -> None:
    try:
        reply = _Reply(number, await call_model(client, call))
    except InferenceServerException as error:
        reply = _Reply(number, error=str(error.message()), status=error.status())
    except OSError as error:  # somebody removed a file of the store
        reply = _Reply(number, error=f"relay: {error.strerror}")
    except ValueError as error:  # a nonsensical answer: the frontend must not wait forever
        reply = _Reply(number, error=f"relay: {error}")
    sys.stdout.buffer.write(_REPLY.dump_json(reply) + b"\n")
    sys.stdout.buffer.flush()


async def _messages() -> AsyncIterator[_Message]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield _MESSAGE.validate_json(line)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], os.environ.get(_SECRET_VARIABLE, "")))
