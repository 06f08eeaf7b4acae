"""The connection to Triton: control calls, shared memory, sequences of chunks, and what its messages mean."""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from tritonclient.utils import InferenceServerException

from filmstrip.contract import ChunkParameters
from filmstrip.errors import (
    BadModelOutput,
    ChunkTimeout,
    FilmstripError,
    ModelDied,
    ModelError,
    SequenceLost,
    TritonUnavailable,
    from_wire,
)

from .inference import ChunkCall, TensorRef, call_model, connect
from .relay import Relay, RelayDied
from .settings import Settings
from .tasks import run_to_end

log = logging.getLogger(__name__)

T = TypeVar("T")
_CONTROL_TIMEOUT_S = 5.0
_LOAD_TIMEOUT_S = 600.0


class SharedMemoryRefused(Exception):
    """There is no room in shared memory, or Triton does not take it."""


class TritonRefused(Exception):
    """Triton did not load or unload a model; the text is Triton's own."""


class ModelVersion(NamedTuple):
    """One line of Triton's list of models."""

    model: str
    state: str
    reason: str


class ModelHealth(Protocol):
    """Learns of models that fail while a generation uses them."""

    def is_unhealthy(self, model: str) -> bool:
        """Whether it is already known to have failed."""

    def on_model_exit(self, model: str) -> None:
        """Its process has ended."""

    def on_unresponsive(self, model: str) -> None:
        """It does not end its sequence in time."""


class TritonClient:
    """One Triton server; no call raises an error of tritonclient.

    Most raise errors of `filmstrip.errors`. Callers of `registered`, `load_model` and `unload_model` also handle
    SharedMemoryRefused and TritonRefused, which never reach a client.

    Attributes:
        url: of its gRPC port.
        settings: of the frontend.
        health: learns of models that fail.
        grpc: tritonclient's connection.
        relay: makes calls whose arrays Triton cannot read in shared memory.
    """

    def __init__(self, url: str, settings: Settings, secret: str = "") -> None:
        self.url = url
        self.settings = settings
        self.health: ModelHealth | None = None
        self.grpc = connect(url, secret)
        self.relay = Relay(url, secret)
        self._open_sequences: Counter[str] = Counter()

    async def close(self) -> None:
        """End the connection."""
        await self.relay.close()
        await self.grpc.close()

    # -- Control ----------------------------------------------------------------------------------------

    async def why_unreachable(self) -> str | None:
        """The reason why Triton is not ready to answer; None if it is."""
        try:
            is_ready = await self.grpc.is_server_ready(client_timeout=_CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            text = str(error.message())
            _log_if_restricted(text)
            return f"{error.status() or 'error'}: {text}"
        return None if is_ready else "Triton answers that it is not ready"

    async def is_listing_models(self) -> bool:
        """Whether Triton lists its models; unlike `list_models`, a failure is not logged and not an error."""
        try:
            await self.grpc.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            _log_if_restricted(str(error.message()))
            return False
        return True

    async def list_models(self) -> list[ModelVersion]:
        """Every version of every model in Triton's repository.

        Raises:
            TritonUnavailable: Triton does not answer.
            ModelError: Triton cannot read its repository.
        """
        index = await _control(self.grpc.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S))
        return [ModelVersion(model.name, model.state, model.reason) for model in index.models]

    async def model_parameters(self, model: str) -> dict[str, str]:
        """The `parameters` of a loaded model's configuration.

        Raises:
            ModelError: it is not loaded.
            TritonUnavailable: Triton does not answer.
        """
        answer = await _control(self.grpc.get_model_config(model, client_timeout=_CONTROL_TIMEOUT_S))
        return {key: value.string_value for key, value in answer.config.parameters.items()}

    async def load_model(self, model: str) -> None:
        """Load a model and wait until it is ready.

        Raises:
            TritonRefused: it could not be loaded.
            TritonUnavailable: Triton does not answer.
        """
        await _load_or_unload(self.grpc.load_model(model, client_timeout=_LOAD_TIMEOUT_S))

    async def unload_model(self, model: str) -> None:
        """Begin to unload a model.

        Raises:
            TritonRefused: it could not be unloaded.
            TritonUnavailable: Triton does not answer.
        """
        await _load_or_unload(self.grpc.unload_model(model, client_timeout=_LOAD_TIMEOUT_S))

    # -- Shared memory ----------------------------------------------------------------------------------

    @property
    def takes_shared_memory(self) -> bool:
        """Arrays may go through shared memory, if Triton accepts it."""
        return self.settings.shared_memory

    @contextlib.asynccontextmanager
    async def registered(self, num_bytes: int, *paths: Path) -> AsyncIterator[tuple[str, ...]]:
        """Let Triton map files of /dev/shm, each of this size; the value is the regions' names.

        Raises:
            SharedMemoryRefused: Triton doesn't, or is on another host.
        """
        names = {f"{path.name}-{secrets.token_hex(4)}": path for path in paths}
        registering = (self._register(name, path, num_bytes) for name, path in names.items())
        try:
            for refusal in await asyncio.gather(*registering, return_exceptions=True):
                if refusal is not None:
                    raise refusal
            yield tuple(names)
        finally:
            await run_to_end(self._unregister(*names))

    async def _register(self, name: str, path: Path, num_bytes: int) -> None:
        register = self.grpc.register_system_shared_memory
        try:  # to its end: Triton may carry out a call that was cancelled, and that after we have undone it
            await run_to_end(register(name, f"/{path.name}", num_bytes, client_timeout=_CONTROL_TIMEOUT_S))
        except InferenceServerException as error:
            raise SharedMemoryRefused(error.message()) from None

    async def _unregister(self, *names: str) -> None:
        unregister = self.grpc.unregister_system_shared_memory
        calls = (unregister(name, client_timeout=_CONTROL_TIMEOUT_S) for name in names)
        # Triton's own errors are ignored: the region is gone already, or Triton is.
        for failure in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(failure, BaseException) and not isinstance(failure, InferenceServerException):
                raise failure

    # -- Sequences --------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def sequence(self, model: str) -> AsyncIterator["ModelSequence"]:
        """A sequence of chunks; it is ended in Triton when the context ends, however that happens."""
        sequence = ModelSequence(self, model)
        self._open_sequences[model] += 1
        try:
            yield sequence
        finally:
            try:
                await run_to_end(sequence.end())
            finally:
                self._open_sequences[model] -= 1

    @property
    def is_generating(self) -> bool:
        """Whether a sequence is open."""
        return any(self._open_sequences.values())


class ModelSequence:
    """The chunks that one generation sends to one model, in order."""

    def __init__(self, triton: TritonClient, model: str) -> None:
        self._triton = triton
        self._id = secrets.randbelow(2**63 - 1) + 1
        self._started = False
        self.model = model

    async def chunk(
        self, parameters: ChunkParameters, tensors: Collection[TensorRef], frames: TensorRef
    ) -> Mapping[str, float]:
        """Generate one chunk: through shared memory if all its arrays lie there, else through the relay.

        Args:
            parameters: of the chunk.
            tensors: its arrays.
            frames: where its frames go, and the shape that they must have.

        Returns:
            Seconds that each stage of the model's work took.

        Raises:
            ModelError: the model failed.
            BadModelOutput: the frames have another shape.
            TritonUnavailable: Triton does not answer, or the connection broke.
        """
        triton, settings = self._triton, self._triton.settings
        call = ChunkCall(
            model=self.model,
            sequence_id=self._id,
            starts=not self._started,
            start_timeout_s=settings.sequence_start_timeout_s,
            timeout_s=settings.chunk_timeout_s,
            parameters=parameters.to_json().decode(),
            tensors=tuple(tensors),
            frames_place=frames.place,
        )
        self._started = True
        is_shared = all(part.region is not None for part in (frames.place, *(tensor.place for tensor in tensors)))
        try:
            result = await _translated(call_model(triton.grpc, call) if is_shared else triton.relay.call(call))
        except RelayDied:
            raise TritonUnavailable("lost the connection to Triton while generating a chunk") from None
        except asyncio.CancelledError:
            if _caller_is_cancelled():
                raise
            # gRPC cancelled the call alone, which a `TaskGroup` would take for the quiet end of one of its tasks.
            raise TritonUnavailable("the call to Triton was cancelled") from None
        except ModelDied:
            if triton.health is not None:
                triton.health.on_model_exit(self.model)
            raise
        if result.shape != frames.shape:
            raise BadModelOutput(
                f"chunk {parameters.index}: {self.model} answered with frames of shape {list(result.shape)}, "
                f"expected {list(frames.shape)}"
            )
        return result.stage_seconds

    async def end(self) -> None:
        """End the sequence in Triton; a model that does not end it is reported."""
        if not self._started:
            return
        triton = self._triton
        try:
            await triton.grpc.infer(
                self.model,
                [],
                sequence_id=self._id,
                sequence_end=True,
                client_timeout=triton.settings.sequence_end_timeout_s,
            )
        except InferenceServerException as error:
            failure = _to_filmstrip_error(error)
            if not isinstance(failure, ChunkTimeout | ModelDied):
                return
            if triton.health is None or triton.health.is_unhealthy(self.model):
                return
            log.warning("%s did not end its sequence", self.model)
            if isinstance(failure, ChunkTimeout):
                triton.health.on_unresponsive(self.model)
            else:
                triton.health.on_model_exit(self.model)


def _caller_is_cancelled() -> bool:
    task = asyncio.current_task()  # not in a frame of the traceback: it would be in a cycle with the task
    return task is not None and task.cancelling() > 0


async def _translated(call: Awaitable[T]) -> T:
    """Await a call of tritonclient and translate its errors by `_to_filmstrip_error`."""
    try:
        return await call
    except InferenceServerException as error:
        raise _to_filmstrip_error(error) from None


async def _control(call: Awaitable[Any]) -> Any:
    """Await a control call: a timeout means that Triton is unavailable."""
    try:
        return await _translated(call)
    except ChunkTimeout:
        raise TritonUnavailable("Triton does not answer") from None


async def _load_or_unload(call: Awaitable[Any]) -> None:
    try:
        await call
    except InferenceServerException as error:
        if "UNAVAILABLE" in str(error.status()):
            raise TritonUnavailable("Triton does not answer") from None
        raise TritonRefused(str(error.message())) from None


# -- Triton's messages ---------------------------------------------------------------------------------------
#
# Triton has no error codes but the few statuses of gRPC, and most failures of a model or of a sequence share one of
# them. What happened is only in the text, which therefore has to be recognised, here and nowhere else. tests/faults
# provokes these failures in a real Triton, so that a version with other texts is noticed.

_RESTRICTED = "protocol is restricted"
_STATE_LOST = "Triton has lost the generation's state"
_MAX_REASON_CHARACTERS = 500
DIED_AT_START = "its process ended while it started; is there enough memory? Triton's log may say more"
_NO_REASON = "Triton does not say why; its log may"

_LOAD_PREFIX = re.compile(r"^load failed for model '[^']*': (version \d+ is at \w+ state: )?")
_STATUS_PREFIX = re.compile(
    r"^(Internal|Invalid argument|Not found|Unavailable|Unsupported|Unknown|Already exists|Cancelled): "
)
_PLAIN_ERROR = re.compile(r"^(?:[\w.]+\.)?(?:TritonModelException|ValueError|RuntimeError|LoadFailed): ")
_QUOTED_FOLDERS = re.compile(r"(?P<quote>['\"`])(?:[Ff][Ii][Ll][Ee]:)?(?:~[\w.-]*)?/(?:(?!(?P=quote))[^\n])*/")
_FOLDERS = re.compile(
    r"(?:\b[Ff][Ii][Ll][Ee]:/+|(?<![\w./:])/{2,}|(?<![\w./])(?:/{3,}|(?:~[\w-]*)?/))(?=[^\s/])"
    # A name may have a colon or an apostrophe, but not at its end: there they belong to the sentence.
    r"(?:(?:[^/\n:'\"]|:(?=[^\s/])|(?<=\w)'(?=\w))*[^/\s:'\"]/+)*"
)
_REPLACED_REASONS = (
    (re.compile(r"Stub process '[^']*' is not healthy"), DIED_AT_START),
    (re.compile(r"failed to poll from model repository"), "Triton cannot read its model folder; Triton's log says why"),
    (
        re.compile(r"at least one version must be available"),
        "its model folder has no version folder, which is named by a number, such as 1",
    ),
    (re.compile(r"Python model file not found"), "its version folder has no model.py"),
    (re.compile(r"DEADLINE_EXCEEDED|Deadline Exceeded"), "it did not start in time"),
)


def _log_if_restricted(text: str) -> None:
    if _RESTRICTED in text:
        log.error("Triton requires a secret that FILMSTRIP_TRITON_SECRET does not contain")


def _to_filmstrip_error(error: InferenceServerException) -> FilmstripError:
    text, status = str(error.message()), str(error.status())
    own = from_wire(text)
    if own is not None:
        return own
    log.warning("Triton answered %s: %s", status, text)
    causes: tuple[tuple[bool, FilmstripError], ...] = (
        ("must specify the START flag" in text, SequenceLost(_STATE_LOST)),
        ("nable to find shared memory region" in text, SequenceLost(_STATE_LOST)),
        ("timeout of the corresponding sequence" in text, TritonUnavailable("Triton has no free place for a sequence")),
        ("unknown model" in text, TritonUnavailable("the model is being reloaded")),
        ("Stub process" in text, ModelDied("the model's process has died")),
        ("DEADLINE_EXCEEDED" in status, ChunkTimeout("Triton did not answer in time")),
        ("UNAVAILABLE" in status or "CANCELLED" in status, TritonUnavailable("Triton does not answer")),
    )
    return next((cause for holds, cause in causes if holds), ModelError("the model failed"))


def public_reason(text: str, folders: Iterable[Path] = ()) -> str:
    """Triton's reason why a model is not served, as one sentence for clients, without tracebacks and folders.

    Args:
        text: Triton's message.
        folders: known to appear in it. Only these are recognised whatever characters their names have.
    """
    for pattern, ours in _REPLACED_REASONS:
        if pattern.search(text):
            return ours
    text = _STATUS_PREFIX.sub("", _LOAD_PREFIX.sub("", text.strip()))
    text = text.partition("\n\nAt:\n")[0]
    if "Traceback (most recent call last)" in text:
        text = text.rstrip().splitlines()[-1]
    text = without_folders(_PLAIN_ERROR.sub("", text), folders)
    text = " ".join(text.split()).rstrip(";. ")
    return text[: _MAX_REASON_CHARACTERS - 1] + "…" if len(text) > _MAX_REASON_CHARACTERS else text or _NO_REASON


def without_folders(text: str, folders: Iterable[Path] = ()) -> str:
    """The text with only the last name of each absolute path or file URL.

    Args:
        text: to shorten.
        folders: known to appear in it, in addition to the home directory and Python's.
    """
    home = Path(os.path.expanduser("~"))
    known = {Path(sys.prefix), Path(sys.base_prefix), home, *(folder.absolute() for folder in folders)}
    names = {str(folder) for folder in known | {folder.resolve() for folder in known}}
    for name in sorted(names, key=len, reverse=True):
        if name != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=/)", "", text)
    return _FOLDERS.sub("", _QUOTED_FOLDERS.sub(r"\g<quote>", text))
