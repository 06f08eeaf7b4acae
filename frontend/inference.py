"""One inference call of a Triton model: its types, and the direct call."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from tritonclient.grpc import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from filmstrip import contract
from filmstrip.contract import TensorSpec
from filmstrip.errors import UnknownPath
from filmstrip.triton_server import NO_PROXY, SECRET_HEADER

GRPC_MESSAGE_BYTES = 2**31 - 1
CHANNEL_ARGUMENTS = [  # they replace all of tritonclient's defaults
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),  # pings every 2 s kill a running chunk: 'Too many pings'
    ("grpc.max_reconnect_backoff_ms", 1000),
    NO_PROXY,
]


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
        spec: the contract's tensor.
        shape: of the array.
        place: its bytes.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    place: FileSlice


@dataclass(frozen=True)
class ChunkCall:
    """Everything that one call needs; it can be sent to the relay as JSON.

    Attributes:
        model: the Triton model.
        sequence_id: Triton's correlation id.
        starts: the call starts the sequence.
        start_timeout_s: how long a starting sequence may wait for a free place.
        timeout_s: how long the call may take in all.
        parameters: of the chunk, as JSON.
        tensors: the arrays.
        frames_place: where the frames go.
    """

    model: str
    sequence_id: int
    starts: bool
    start_timeout_s: float
    timeout_s: float
    parameters: str
    tensors: tuple[TensorRef, ...]
    frames_place: FileSlice


@dataclass(frozen=True)
class ChunkResult:
    """What a model says about a chunk that it has made.

    Attributes:
        shape: of the frames.
        stage_seconds: seconds that each stage of the model's work took.
    """

    shape: tuple[int, ...]
    stage_seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Report:
    """What we read of a model's report; its other keys are ignored."""

    stages: dict[str, float] = field(default_factory=dict)


_REPORT = TypeAdapter(_Report)


async def call_model(client: triton_aio.InferenceServerClient, call: ChunkCall) -> ChunkResult:
    """Make the call; when it returns, the frames are in `call.frames_place`.

    Raises:
        InferenceServerException: as tritonclient raises it.
    """
    chunk = triton_grpc.InferInput(contract.CHUNK.name, [1], contract.CHUNK.dtype)
    chunk.set_data_from_numpy(np.array([call.parameters.encode()], dtype=np.object_))
    frames = triton_grpc.InferRequestedOutput(contract.FRAMES.name)
    if call.frames_place.region is not None:
        frames.set_shared_memory(call.frames_place.region, call.frames_place.num_bytes, call.frames_place.offset)
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
    if call.frames_place.region is None and output is not None:
        _write(call.frames_place, result.as_numpy(contract.FRAMES.name))
    return ChunkResult(shape, _stage_seconds(result.as_numpy(contract.REPORT.name)))


def _stage_seconds(report: Any) -> Mapping[str, float]:
    """The timings in the REPORT tensor, if the model sent one."""
    try:
        return _REPORT.validate_json(report[0]).stages if report is not None and report.size else {}
    except ValidationError:
        raise InferenceServerException("the model sent a report that cannot be read") from None


def _input(tensor: TensorRef) -> triton_grpc.InferInput:
    spec = tensor.spec
    infer_input = triton_grpc.InferInput(spec.name, list(tensor.shape), spec.dtype)
    place = tensor.place
    if place.region is not None:
        infer_input.set_shared_memory(place.region, place.num_bytes, place.offset)
    else:
        raw = np.fromfile(place.path, np.uint8, place.num_bytes, offset=place.offset)
        if raw.nbytes != place.num_bytes:
            raise InferenceServerException(UnknownPath(f"{spec.name}: its upload was truncated").to_wire())
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
