"""One call of a Triton model: a chunk's tensors in, its frames out, by shared memory or as gRPC tensors."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from filmstrip import contract
from filmstrip.contract import ChunkParameters, TensorSpec
from filmstrip.errors import UnknownPath
from filmstrip.triton_server import NO_PROXY, SECRET_HEADER

from .regions import Slice

GRPC_MESSAGE_BYTES = 2**31 - 1
CHANNEL_ARGUMENTS = [  # given at all, they replace every default of tritonclient
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
    """A client of the Triton at `url`; it connects by itself when it is used, and again when it must."""
    client = triton_aio.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)
    if secret:
        client.register_plugin(SendSecret(secret))
    return client


@dataclass(frozen=True)
class Tensor:
    """An array for the model and where it lies.

    Attributes:
        name: of the contract's tensor.
        dtype: Triton's word for the data type.
        shape: of the array.
        place: its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: Slice

    @classmethod
    def of(cls, spec: TensorSpec, shape: tuple[int, ...], place: Slice) -> Self:
        """The array for a tensor of the contract."""
        return cls(spec.name, spec.dtype, shape, place)


@dataclass(frozen=True)
class ChunkCall:
    """Everything that one call needs; it can be sent to another process as JSON.

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
    tensors: tuple[Tensor, ...]
    frames: Slice

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read them back."""
        tensors = (
            Tensor(**{**tensor, "shape": tuple(tensor["shape"]), "place": _slice(tensor["place"])})
            for tensor in raw["tensors"]
        )
        return cls(**{**raw, "tensors": tuple(tensors), "frames": _slice(raw["frames"])})


@dataclass(frozen=True)
class ChunkAnswer:
    """What the model answered.

    Attributes:
        shape: of the frames.
        report: what the model tells of its work, such as the seconds of each stage.
    """

    shape: tuple[int, ...]
    report: dict[str, Any]


async def call_model(client: triton_aio.InferenceServerClient, call: ChunkCall) -> ChunkAnswer:
    """Make the call; the frames lie in `call.frames` when it returns.

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
    return ChunkAnswer(shape, _report(result.as_numpy(contract.REPORT.name)))


def _report(raw: Any) -> dict[str, Any]:
    try:
        report = json.loads(raw[0]) if raw is not None and raw.size else {}
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise InferenceServerException("the model's report is no JSON object")
    return report


def _input(tensor: Tensor) -> triton_grpc.InferInput:
    given = triton_grpc.InferInput(tensor.name, list(tensor.shape), tensor.dtype)
    place = tensor.place
    if place.region is not None:
        given.set_shared_memory(place.region, place.num_bytes, place.offset)
    else:
        raw = np.fromfile(place.path, np.uint8, place.num_bytes, offset=place.offset)
        if raw.nbytes != place.num_bytes:
            raise InferenceServerException(UnknownPath(f"{tensor.name}: its upload was truncated").to_wire())
        spec = next(spec for spec in contract.INPUTS if spec.name == tensor.name)
        given.set_data_from_numpy(raw.view(contract.numpy_dtype(spec)).reshape(tensor.shape))
    return given


def _write(place: Slice, frames: Any) -> None:
    """Frames of another size than asked for are not written: the shape in the answer tells."""
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


def _slice(raw: Mapping[str, Any]) -> Slice:
    return Slice(**{**raw, "path": Path(raw["path"])})


def parameters_json(parameters: ChunkParameters) -> str:
    """A chunk's parameters as a call carries them."""
    return parameters.to_json().decode()
