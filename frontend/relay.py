"""One inference call of a model, and the relay: a process for calls whose arrays Triton cannot read in shared memory.

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
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, cast

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from pydantic import ConfigDict, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from tritonclient.grpc import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from filmstrip import contract
from filmstrip.contract import TensorSpec
from filmstrip.errors import UnknownPath
from filmstrip.triton_server import NO_PROXY, SECRET_HEADER

from .tasks import spawn

log = logging.getLogger(__name__)

GRPC_MESSAGE_BYTES = 2**31 - 1
CHANNEL_ARGUMENTS = [  # they replace all of tritonclient's defaults
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),  # pings every 2 s kill a running chunk: 'Too many pings'
    ("grpc.max_reconnect_backoff_ms", 1000),
    NO_PROXY,
]


SECRET_VARIABLE = "FILMSTRIP_TRITON_SECRET"  # noqa: S105


class SendSecret(InferenceServerClientPlugin):  # type: ignore[misc]
    """Lets tritonclient send the secret of Triton's restricted protocols with every call."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __call__(self, request: Any) -> None:
        """See tritonclient."""
        request.headers[SECRET_HEADER] = self._secret


def connect(url: str, secret: str) -> triton_aio.InferenceServerClient:
    """A client of the Triton at `url`; it connects, and reconnects, when it is used."""
    client = triton_aio.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)
    if secret:
        client.register_plugin(SendSecret(secret))
    return client


def _path_to_text(path: Path) -> str:
    return os.fsencode(path).decode("latin-1")


def _path_from_text(text: str) -> Path:
    return Path(os.fsdecode(text.encode("latin-1")))


_AnyPath = Annotated[Path, PlainSerializer(_path_to_text), PlainValidator(_path_from_text)]
"""A path that JSON can carry even where its bytes are not UTF-8."""


@dataclass(frozen=True)
class FileSlice:
    """Bytes of a file, where an array lies.

    Attributes:
        path: the file.
        region: the name under which Triton has registered the file, or None.
        offset: in bytes from the start of the file; need not be aligned.
        num_bytes: of the array.
    """

    path: _AnyPath
    region: str | None
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class TensorRef:
    """An array for the model, by its location.

    Attributes:
        name: of the contract's tensor.
        dtype: Triton's name of the data type.
        shape: of the array.
        place: its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: FileSlice

    @classmethod
    def of(cls, spec: TensorSpec, shape: tuple[int, ...], place: FileSlice) -> Self:
        """The array for a tensor of the contract."""
        return cls(spec.name, spec.dtype, shape, place)


@dataclass(frozen=True)
class ChunkCall:
    """Everything that one call needs; it can be sent to the relay as JSON.

    Attributes:
        model: the Triton model.
        sequence_id: Triton's correlation id.
        starts: the call starts the sequence.
        start_timeout_s: how long a starting sequence may wait for a free slot.
        timeout_s: how long the call may take in all.
        parameters: of the chunk, as JSON.
        tensors: the arrays.
        frames: where the frames go.
    """

    model: str
    sequence_id: int
    starts: bool
    start_timeout_s: float
    timeout_s: float
    parameters: str
    tensors: tuple[TensorRef, ...]
    frames: FileSlice


@dataclass(frozen=True)
class ChunkAnswer:
    """The model's answer.

    Attributes:
        shape: of the frames.
        stages: seconds that each stage of the model's work took.
    """

    shape: tuple[int, ...]
    stages: Mapping[str, float]


@dataclass(frozen=True)
class _Report:
    """What we read of a model's report; its other keys are ignored."""

    stages: dict[str, float] = field(default_factory=dict)


_REPORT = TypeAdapter(_Report)


async def call_model(client: triton_aio.InferenceServerClient, call: ChunkCall) -> ChunkAnswer:
    """Make the call; when it returns, the frames are in `call.frames`.

    Raises:
        InferenceServerException: as tritonclient raises it.
    """
    chunk = triton_grpc.InferInput(contract.CHUNK.name, [1], contract.CHUNK.dtype)
    chunk.set_data_from_numpy(np.array([call.parameters.encode()], dtype=np.object_))
    frames = triton_grpc.InferRequestedOutput(contract.FRAMES.name)
    if call.frames.region is not None:
        frames.set_shared_memory(call.frames.region, call.frames.num_bytes, call.frames.offset)
    result = await client.infer(
        call.model,
        [chunk, *(_input(tensor) for tensor in call.tensors)],
        outputs=[frames, triton_grpc.InferRequestedOutput(contract.REPORT.name)],
        sequence_id=call.sequence_id,
        sequence_start=call.starts,
        timeout=int(call.start_timeout_s * 1e6) if call.starts else None,
        client_timeout=call.timeout_s,
    )
    output = result.get_output(contract.FRAMES.name)
    shape = tuple(int(side) for side in output.shape) if output is not None else ()
    if call.frames.region is None and output is not None:
        _write(call.frames, result.as_numpy(contract.FRAMES.name))
    return ChunkAnswer(shape, _stages(result.as_numpy(contract.REPORT.name)))


def _stages(report: Any) -> Mapping[str, float]:
    """The stages in the REPORT tensor, if the model sent one."""
    try:
        return _REPORT.validate_json(report[0]).stages if report is not None and report.size else {}
    except ValidationError:
        raise InferenceServerException("the model sent a report that cannot be read") from None


def _input(tensor: TensorRef) -> triton_grpc.InferInput:
    infer_input = triton_grpc.InferInput(tensor.name, list(tensor.shape), tensor.dtype)
    place = tensor.place
    if place.region is not None:
        infer_input.set_shared_memory(place.region, place.num_bytes, place.offset)
    else:
        raw = np.fromfile(place.path, np.uint8, place.num_bytes, offset=place.offset)
        if raw.nbytes != place.num_bytes:
            raise InferenceServerException(UnknownPath(f"{tensor.name}: its upload was truncated").to_wire())
        spec = next(spec for spec in contract.INPUTS if spec.name == tensor.name)
        infer_input.set_data_from_numpy(raw.view(contract.numpy_dtype(spec)).reshape(tensor.shape))
    return infer_input


def _write(place: FileSlice, frames: Any) -> None:
    """Write frames, unless they have another size than requested: the caller compares the shape in the answer."""
    if frames.nbytes == place.num_bytes:
        fd = os.open(place.path, os.O_WRONLY)
        try:
            _pwrite_all(fd, np.ascontiguousarray(frames).data.cast("B"), place.offset)
        finally:
            os.close(fd)


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


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
    answer: ChunkAnswer | None = None
    error: str = ""
    status: str | None = None


@dataclass(frozen=True)
class _ReplyNumber:
    """What must be readable of a reply, so that its call need not wait for ever."""

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

    async def call(self, call: ChunkCall) -> ChunkAnswer:
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
    except ValueError as error:  # a nonsensical answer: the frontend must not wait for ever
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
    asyncio.run(_serve(sys.argv[1], os.environ.get(SECRET_VARIABLE, "")))
