"""Carries arrays to and from a Triton that cannot reach our shared memory, in a process of its own.

Turning megabytes into a gRPC message and back holds Python's lock for tens of milliseconds; done here, it never
holds the frontend's event loop. Calls come as JSON lines on stdin, answers go as JSON lines to stdout; the
arrays themselves are read from and written to the files that the calls name.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, cast

import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from .call import SECRET_VARIABLE, ChunkAnswer, ChunkCall, call_model, connect
from .tasks import spawn

_LINE_BYTES = 64 * 2**20
_GRACE_S = 1.0


class RelayDied(Exception):
    """The relay's process ended while a call was under way."""


class Relay:
    """The frontend's side: starts the process when it is first needed, and again when it has died."""

    def __init__(self, url: str, secret: str = "") -> None:
        self._url = url
        self._secret = secret
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[asyncio.subprocess.Process, dict[int, asyncio.Future[dict[str, Any]]]] = {}
        self._numbers = itertools.count(1)
        self._starting = asyncio.Lock()

    async def call(self, call: ChunkCall) -> ChunkAnswer:
        """Make a call through the relay; cancelling it cancels the call in Triton.

        Raises:
            InferenceServerException: as Triton's answer says.
            RelayDied: the process ended.
        """
        process = await self._running()
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(process)
        if waiting is None:  # its answers can't be read any more
            raise RelayDied
        waiting[number] = answer
        try:
            self._send(process, {"number": number, "call": call.to_json()})
            async with asyncio.timeout(call.timeout_s + _GRACE_S):  # the relay itself keeps to timeout_s
                raw = await answer
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise InferenceServerException("the relay hangs", "StatusCode.DEADLINE_EXCEEDED") from None
        except asyncio.CancelledError:
            self._send(process, {"number": number})
            raise
        finally:
            waiting.pop(number, None)
        if "error" in raw:
            raise InferenceServerException(raw["error"], raw["status"])
        return ChunkAnswer(tuple(raw["shape"]), raw["report"])

    async def close(self) -> None:
        """End the process."""
        if self._process is not None and self._reader is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            await self._reader
            self._process = None

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await spawn(
                    sys.executable,
                    *("-m", __name__, self._url),
                    env=os.environ | {SECRET_VARIABLE: self._secret},  # not where every user of the machine reads it
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
    def _send(process: asyncio.subprocess.Process, message: dict[str, Any]) -> None:
        if process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(json.dumps(message, default=str).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process, answers: asyncio.StreamReader) -> None:
        """Hand out a process's answers until it ends; calls already sent to its successor are not its own."""
        waiting = self._waiting[process]
        try:
            async for line in answers:
                raw = json.loads(line)
                answer = waiting.get(raw["number"])
                if answer is not None and not answer.done():
                    answer.set_result(raw)
            await process.wait()
        finally:
            del self._waiting[process]
            if process.returncode is None:
                process.kill()
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(RelayDied())


# -- The process --------------------------------------------------------------------------------------------


async def _serve(url: str, secret: str) -> None:
    """Answer calls until stdin ends, which it does when the frontend is gone."""
    os.umask(0o077)
    running: dict[int, asyncio.Task[None]] = {}
    async with connect(url, secret) as client:
        async for message in _lines():
            number = message["number"]
            if "call" in message:
                task = asyncio.create_task(_answer(client, number, ChunkCall.from_json(message["call"])))
                running[number] = task
                task.add_done_callback(functools.partial(_forget, running, number))
            elif number in running:
                running[number].cancel()
        for task in list(running.values()):
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)


def _forget(running: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    del running[number]


async def _answer(client: triton_aio.InferenceServerClient, number: int, call: ChunkCall) -> None:
    try:
        answer: dict[str, Any] = asdict(await call_model(client, call))
    except InferenceServerException as error:
        answer = {"error": error.message(), "status": error.status()}
    except OSError as error:  # a file of the store was removed under our hands
        answer = {"error": f"relay: {error.strerror}", "status": None}
    except ValueError as error:  # an answer of no sense: somebody waits all the same
        answer = {"error": f"relay: {error}", "status": None}
    sys.stdout.write(json.dumps({"number": number, **answer}) + "\n")
    sys.stdout.flush()


async def _lines() -> AsyncIterator[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield json.loads(line)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], os.environ.get(SECRET_VARIABLE, "")))
