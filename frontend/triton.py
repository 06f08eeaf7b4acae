"""The one way to Triton: what it holds, loading, shared memory, and sequences of chunks."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tritonclient.utils import InferenceServerException

from filmstrip.contract import ChunkParameters, PipelineFacts
from filmstrip.errors import (
    BadModelOutput,
    ChunkTimeout,
    FilmstripError,
    LoadFailed,
    ModelDied,
    ModelError,
    SequenceLost,
    TritonUnavailable,
    UnknownPipeline,
    from_wire,
)
from filmstrip.geometry import VideoShape
from filmstrip.triton_folder import is_safe_model
from frontend.call import ChunkAnswer, ChunkCall, Tensor, call_model, connect, parameters_json
from frontend.regions import SharedMemoryRefused, Slice
from frontend.relay import Relay, RelayDied
from frontend.settings import Settings
from frontend.tasks import run_to_end

log = logging.getLogger(__name__)

T = TypeVar("T")
_CONTROL_TIMEOUT_S = 5.0
_LOAD_TIMEOUT_S = 600.0
_UNLOAD_TIMEOUT_S = 1.0
_READY = "READY"
_RESTRICTED = "protocol is restricted"
_STATE_LOST = "Triton has lost the generation's state"
_STUB_DIED = "Stub process"
UNSAFE_NAME = "its folder's name may only have letters, digits and . _ - + @ , :"
DIED_AT_START = "its process died while it started"


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of the model repository.

    Attributes:
        facts: None while it was never loaded since the frontend started.
        loaded: chunks can be sent to it.
    """

    facts: PipelineFacts | None
    loaded: bool


class Supervisor(Protocol):
    """What starts Triton again, where Triton is ours."""

    def note_death(self, name: str) -> None:
        """A model's process has died: Triton is started again as soon as no generation runs."""

    def kill(self) -> None:
        """End Triton at once, because a model in it hangs; it is started again."""

    async def settled(self) -> None:
        """Wait until a planned restart is over."""


class Triton:
    """One Triton server; its calls raise only errors of `filmstrip.errors`."""

    def __init__(self, url: str, settings: Settings, secret: str = "") -> None:
        self.url = url
        self.settings = settings
        self._client = connect(url, secret)
        self._relay = Relay(url, secret)
        self._facts: dict[str, PipelineFacts] = {}
        self._sick: set[str] = set()
        self._failed: dict[str, str] = {}
        self._open_sequences: Counter[str] = Counter()
        self._loading: dict[str, asyncio.Lock] = {}
        self._loads: dict[str, asyncio.Future[None]] = {}
        self.is_starting = False
        self.supervisor: Supervisor | None = None

    async def close(self) -> None:
        """End the connection."""
        await self._relay.close()
        await self._client.close()

    # -- What it holds ----------------------------------------------------------------------------------

    async def is_ready(self) -> bool:
        """Whether it answers, says that it is ready, and has tried to load every model."""
        return not self.is_starting and await self.why_unreachable() is None

    async def why_unreachable(self) -> str | None:
        """The reason why it does not answer as one that is ready; None if it does."""
        try:
            is_ready = await self._client.is_server_ready(client_timeout=_CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            text = str(error.message())
            if _RESTRICTED in text:
                log.error("Triton wants a secret that FILMSTRIP_TRITON_SECRET does not give")
            return f"{error.status() or 'error'}: {text}"
        return None if is_ready else "Triton answers that it is not ready"

    async def pipelines(self) -> dict[str, Pipeline]:
        """All pipelines of the repository, by id; models without our parameters are left out.

        Raises:
            TritonUnavailable: it does not answer.
        """
        loaded = await self._index()
        await asyncio.gather(*(self._read_facts(name) for name, is_loaded in loaded.items() if is_loaded))
        return {
            name: Pipeline(self._facts.get(name), loaded[name])
            for name in sorted(loaded)
            if name in self._facts or not loaded[name]
        }

    async def _index(self) -> dict[str, bool]:
        """All models of the repository, and whether each is loaded."""
        index = await _control(self._client.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S))
        unusable = self._sick | self._failed.keys()
        return {model.name: model.state == _READY and model.name not in unusable for model in index.models}

    async def model_names(self) -> list[str]:
        """All models of the repository, loaded or not.

        Raises:
            TritonUnavailable: it does not answer.
        """
        return sorted(await self._index())

    def loras(self, name: str) -> tuple[str, ...]:
        """The LoRAs of a pipeline that was loaded."""
        return self._facts[name].features.loras if name in self._facts else ()

    async def facts(self, **names: str | None) -> dict[str, PipelineFacts]:
        """What the pipelines are that a request names, by the request's fields; loaded first where they aren't.

        Raises:
            UnknownPipeline: the repository has none of such a name.
            LoadFailed: one could not be loaded.
            TritonUnavailable: Triton does not answer.
        """
        wanted = {field: name for field, name in names.items() if name is not None}
        if self.supervisor is not None:
            await self.supervisor.settled()
        loaded = await self._index()
        for name in wanted.values():
            if loaded.get(name) is False:
                await self.load(name)
                loaded = await self._index()
        await asyncio.gather(*(self._read_facts(name) for name in set(wanted.values()) if loaded.get(name)))
        for field, name in wanted.items():
            if name not in loaded or name not in self._facts:
                there = ", ".join(await self.pipelines()) or "none"
                raise UnknownPipeline(f"{field}: no pipeline {name[:80]!r}; there are: {there}", field)
        return {field: self._facts[name] for field, name in wanted.items()}

    async def load(self, name: str) -> None:
        """Load a model that isn't, or whose process has died; returns when it is ready.

        Raises:
            LoadFailed: it could not be loaded, or was marked as failed.
            TritonUnavailable: Triton does not answer.
        """
        if self.supervisor is not None:
            if name in self._sick and name not in self._failed:  # what is left of its process is in the way
                self.supervisor.note_death(name)
            await self.supervisor.settled()
        await self.load_now(name)

    async def load_now(self, name: str) -> None:
        """`load`, without waiting for a planned restart of Triton."""
        async with self._loading.setdefault(name, asyncio.Lock()):
            if not is_safe_model(name):
                self.mark_failed(name, UNSAFE_NAME)
            if name in self._failed:
                raise LoadFailed(f"{name} cannot be used: {self._failed[name]}")
            index = await _control(self._client.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S))
            states = {model.name: model.state for model in index.models}
            if states.get(name) == _READY and name not in self._sick:
                return
            try:
                if name in self._sick and self.supervisor is None:  # not two copies in memory: unload, wait, load
                    await self._client.unload_model(name, client_timeout=_LOAD_TIMEOUT_S)
                    await self._wait_unloaded(name)
                await self._load_unless_it_fails(name)
            except InferenceServerException as error:
                log.warning("loading %s failed: %s", name, error)
                if _STUB_DIED in str(error.message()):
                    self.mark_failed(name, DIED_AT_START)
                    raise LoadFailed(f"{name} cannot be used: {DIED_AT_START}") from None
                if "UNAVAILABLE" in str(error.status()):
                    raise TritonUnavailable("Triton does not answer") from None
                raise LoadFailed(f"Triton could not load {name}") from None
            self._sick.discard(name)
            log.info("%s is loaded", name)

    async def _load_unless_it_fails(self, name: str) -> None:
        """Let Triton load a model. It may never say that the model's process has died; `mark_failed` then ends it."""
        load = asyncio.ensure_future(self._client.load_model(name, client_timeout=_LOAD_TIMEOUT_S))
        failed = self._loads[name] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([load, failed], return_when=asyncio.FIRST_COMPLETED)
            if not load.done():
                self._sick.add(name)
                raise LoadFailed(f"{name} cannot be used: {self._failed[name]}")
            load.result()
        finally:
            load.cancel()
            failed.cancel()
            del self._loads[name]

    def loading(self) -> set[str]:
        """Models that are being loaded at the moment."""
        return set(self._loads)

    def mark_failed(self, name: str, reason: str) -> None:
        """Leave a model unloaded, and refuse requests for it, until `clear_failed`."""
        log.error("%s is left unloaded: %s", name, reason)
        self._failed[name] = reason
        load = self._loads.get(name)
        if load is not None and not load.done():
            load.set_result(None)

    def clear_failed(self, name: str) -> None:
        """Let a model that was marked as failed be loaded again."""
        self._failed.pop(name, None)

    def failed(self) -> dict[str, str]:
        """The models that were marked as failed, and why."""
        return dict(self._failed)

    def mark_sick(self, name: str) -> None:
        """The model's process has died: nothing can be sent to it before it was loaded again."""
        self._sick.add(name)

    def mark_all_well(self) -> None:
        """Triton was started again, without what a dead process had left."""
        self._sick.clear()

    async def is_loaded(self, name: str) -> bool:
        """Whether Triton itself takes the model as loaded, also where its process has died.

        Raises:
            TritonUnavailable: it does not answer.
        """
        index = await _control(self._client.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S))
        return any(model.name == name and model.state == _READY for model in index.models)

    async def _wait_unloaded(self, name: str) -> None:
        """Wait for a model to be gone; one whose process died says UNLOADING for ever, but can be loaded again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNLOAD_TIMEOUT_S):
                while True:
                    index = await self._client.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S)
                    if not any(model.name == name and model.state in (_READY, "UNLOADING") for model in index.models):
                        return
                    await asyncio.sleep(0.05)

    async def _read_facts(self, name: str) -> None:
        answer = await _control(self._client.get_model_config(name, client_timeout=_CONTROL_TIMEOUT_S))
        parameters = {key: value.string_value for key, value in answer.config.parameters.items()}
        try:
            facts = PipelineFacts.from_parameters(name, parameters)
        except ValueError as error:
            log.error("%s is no pipeline: %s", name, error)
            facts = None
        if facts is None:
            self._facts.pop(name, None)
        else:
            self._facts[name] = facts

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
        register = self._client.register_system_shared_memory
        try:  # to its end: Triton may carry out a call that was cancelled, and that after we have undone it
            await run_to_end(register(name, f"/{path.name}", num_bytes, client_timeout=_CONTROL_TIMEOUT_S))
        except InferenceServerException as error:
            raise SharedMemoryRefused(error.message()) from None

    async def _unregister(self, *names: str) -> None:
        unregister = self._client.unregister_system_shared_memory
        calls = (unregister(name, client_timeout=_CONTROL_TIMEOUT_S) for name in names)
        for failure in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(failure, BaseException) and not isinstance(failure, InferenceServerException):
                raise failure  # one of Triton's: the region is not there, or Triton isn't

    # -- Sequences --------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def sequence(self, model: str) -> AsyncIterator["Sequence"]:
        """A sequence of chunks; it is ended in Triton when the context ends, however that happens."""
        sequence = Sequence(self, model)
        self._open_sequences[model] += 1
        try:
            yield sequence
        finally:
            try:
                await run_to_end(self._end(sequence))
            finally:
                self._open_sequences[model] -= 1

    @property
    def is_generating(self) -> bool:
        """Whether a sequence is open."""
        return any(self._open_sequences.values())

    async def _end(self, sequence: "Sequence") -> None:
        if not sequence.started:
            return
        try:
            await self._client.infer(
                sequence.model,
                [],
                sequence_id=sequence.id,
                sequence_end=True,
                client_timeout=self.settings.sequence_end_timeout_s,
            )
        except InferenceServerException as error:
            ours = _as_ours(error)
            if sequence.model in self._sick or not isinstance(ours, ChunkTimeout | ModelDied):
                return
            log.warning("%s did not end its sequence", sequence.model)
            if isinstance(ours, ChunkTimeout) and self.supervisor is not None:
                self.mark_sick(sequence.model)
                self.supervisor.kill()
            else:
                self._note_death(sequence.model)

    def _note_death(self, model: str) -> None:
        self.mark_sick(model)
        if self.supervisor is not None:
            self.supervisor.note_death(model)

    async def call(self, call: ChunkCall) -> ChunkAnswer:
        """Make one call, by shared memory where all its arrays lie there, else through the relay."""
        places = (call.frames, *(tensor.place for tensor in call.tensors))
        try:
            if all(place.region is not None for place in places):
                return await _mapped(call_model(self._client, call))
            return await _mapped(self._relay.call(call))
        except RelayDied:
            raise TritonUnavailable("the way to Triton broke while a chunk was under way") from None
        except ModelDied:
            self._note_death(call.model)
            raise


class Sequence:
    """The chunks that one generation sends to one model, in order."""

    def __init__(self, triton: Triton, model: str) -> None:
        self._triton = triton
        self.model = model
        self.id = secrets.randbelow(2**63 - 1) + 1
        self.started = False

    async def chunk(
        self, parameters: ChunkParameters, tensors: tuple[Tensor, ...], frames: Slice, shape: VideoShape
    ) -> ChunkAnswer:
        """Make one chunk; its frames of this shape lie in `frames` when it returns.

        Raises:
            ModelError: the model could not make it.
            BadModelOutput: the frames have another shape.
            TritonUnavailable: Triton is gone.
        """
        settings = self._triton.settings
        call = ChunkCall(
            model=self.model,
            sequence_id=self.id,
            starts=not self.started,
            start_timeout_s=settings.sequence_start_timeout_s,
            timeout_s=settings.chunk_timeout_s,
            parameters=parameters_json(parameters),
            tensors=tensors,
            frames=frames,
        )
        self.started = True
        answer = await self._triton.call(call)
        if answer.shape != tuple(shape):
            raise BadModelOutput(
                f"chunk {parameters.index}: {self.model} answered with frames of shape {list(answer.shape)}, "
                f"wanted {list(shape)}"
            )
        return answer


async def _mapped(call: Awaitable[T]) -> T:
    """Await a call of tritonclient; its errors become ours here and nowhere else."""
    try:
        return await call
    except InferenceServerException as error:
        raise _as_ours(error) from None


async def _control(call: Awaitable[Any]) -> Any:
    """Await a call that is no chunk."""
    try:
        return await _mapped(call)
    except ChunkTimeout:
        raise TritonUnavailable("Triton does not answer") from None


def _as_ours(error: InferenceServerException) -> FilmstripError:
    text, status = str(error.message()), str(error.status())
    ours = from_wire(text)
    if ours is not None:
        return ours
    log.warning("Triton answered %s: %s", status, text)
    causes: tuple[tuple[bool, FilmstripError], ...] = (
        ("must specify the START flag" in text, SequenceLost(_STATE_LOST)),
        ("nable to find shared memory region" in text, SequenceLost(_STATE_LOST)),
        ("timeout of the corresponding sequence" in text, TritonUnavailable("Triton has no free place for a sequence")),
        ("unknown model" in text, TritonUnavailable("the model is being loaded anew")),
        (_STUB_DIED in text, ModelDied("the model's process has died")),
        ("DEADLINE_EXCEEDED" in status, ChunkTimeout("Triton did not answer in time")),
        ("UNAVAILABLE" in status or "CANCELLED" in status, TritonUnavailable("Triton does not answer")),
    )
    return next((ours for holds, ours in causes if holds), ModelError("the model failed"))
