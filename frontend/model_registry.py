"""The models in Triton's repository, of one Triton and of all: their states, loading, and why one is not served."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from filmstrip.contract import PipelineSpec
from filmstrip.errors import (
    FilmstripError,
    InvalidField,
    LoadFailed,
    ModelError,
    TritonUnavailable,
    UnknownPipeline,
)
from filmstrip.model_folders import is_model_name
from filmstrip.triton_server import is_safe_model

from .tasks import in_thread
from .triton import DIED_AT_START, ModelVersion, TritonClient, TritonRefused, public_reason

log = logging.getLogger(__name__)

T = TypeVar("T")

_UNLOAD_TIMEOUT_S = 1.0
_REPORT_POLL_S = 1.0
_LOADS_AT_ONCE = 4  # Triton itself does not load more at a time
_READY = "READY"
_UNLOADED_REASON = "unloaded"  # Triton's, of a model that was unloaded on request
UNSAFE_NAME = "the name of its folder may only have the letters A-Z and a-z, digits and . _ - + @ , :"
_INDEX_ATTEMPTS = 3  # a model folder may be removed between our look at it and Triton's


class ModelState(StrEnum):
    """Whether a model can generate chunks."""

    READY = "ready"
    LOADING = "loading"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(frozen=True)
class ModelStatus:
    """A model of the repository, as far as it is known.

    Attributes:
        spec: None while Triton has not loaded it since the frontend started.
        state: an unloaded one is loaded at its first use.
        reason: why it is not ready, in one sentence without paths; or None.
    """

    spec: PipelineSpec | None
    state: ModelState
    reason: str | None = None

    @property
    def loaded(self) -> bool:
        """Chunks can be sent to it."""
        return self.state is ModelState.READY


@dataclass(frozen=True)
class Readiness:
    """Whether generations can run.

    Attributes:
        can_generate: at least one pipeline is ready, or can be loaded, once all models were tried.
        degraded: ids of the models that failed.
    """

    can_generate: bool
    degraded: tuple[str, ...] = ()


Fingerprint = frozenset[tuple[str, int, int]]
"""Names, modification times and sizes of a model's files: another one means that the model was changed."""


@dataclass(frozen=True)
class ModelFolder:
    """The contents of a model's folder.

    Attributes:
        fingerprint: of its files.
        problem: why Triton cannot load it, in one sentence without paths; or None.
        spec: of its pipeline; None if its configuration cannot be read, or is not that of a pipeline.
    """

    fingerprint: Fingerprint
    problem: str | None = None
    spec: PipelineSpec | None = None


class OwnTriton(Protocol):
    """The Triton that this server starts and restarts itself (`--embedded`)."""

    def on_model_ready(self, name: str) -> None:
        """A model was loaded."""

    def schedule_restart(self, name: str) -> None:
        """A model's process has died: Triton is started again as soon as no generation runs."""

    def kill(self) -> None:
        """End Triton at once, because a model in it hangs; it is started again."""

    @property
    def is_restarting(self) -> bool:
        """A planned restart is not over yet."""

    async def wait_for_restart(self) -> None:
        """Wait until a planned restart is over: Triton answers, and loads its models."""

    def link_models(self) -> None:
        """Let Triton see the model folders that are there now.

        Raises:
            OSError: it cannot.
        """

    def model_names(self) -> set[str]:
        """The models that have a folder; waits for the disk."""

    def read_folders(self, names: Collection[str]) -> dict[str, ModelFolder]:
        """The folders of these models, by name; waits for the disk."""


@dataclass(eq=False)
class _Model:
    """What is known of one model.

    Attributes:
        spec: of its pipeline, as Triton has it; None before it is first loaded, and if it is not a pipeline.
        is_read: its configuration was read from Triton.
        bad_parameters: why its configuration is not that of a pipeline, although it should be.
        is_unhealthy: its process has ended, or hangs.
        failed: why it was marked as failed.
        load_error: why it could not be loaded.
        failed_as: its files when it failed.
        reported: why it is not served, as the log says.
        waits_to_load: others are being loaded first.
        load_gave_up: done when it is known that Triton will not finish loading it; None unless it is being loaded.
        load_lock: held while it is loaded.
    """

    spec: PipelineSpec | None = None
    is_read: bool = False
    bad_parameters: str | None = None
    is_unhealthy: bool = False
    failed: str | None = None
    load_error: str | None = None
    failed_as: Fingerprint | None = None
    reported: str | None = None
    waits_to_load: bool = False
    load_gave_up: asyncio.Future[None] | None = None
    load_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ModelRegistry:
    """The models of one Triton server.

    Attributes:
        triton: the connection to Triton.
        is_starting: Triton is embedded, and does not answer yet or has not tried to load every model.
        to_load: models that Triton has yet to load after its start.
        names: the models of the repository when Triton last answered; None before its first answer.
        own_triton: starts and restarts Triton, if it is embedded.
    """

    def __init__(self, triton: TritonClient) -> None:
        settings = triton.settings
        self.triton = triton
        triton.health = self
        triton_folder = Path(triton.url.removeprefix("unix:")).parent
        self._folders = (*settings.model_repository, settings.data_dir, triton_folder)
        self._models: defaultdict[str, _Model] = defaultdict(_Model)
        self._was_settled = False
        self._is_reachable = False
        self._asking: asyncio.Task[Readiness | None] | None = None
        self._load_places = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._background: set[asyncio.Task[None]] = set()
        self.is_starting = False
        self.to_load: set[str] = set()
        self.names: frozenset[str] | None = None
        self.own_triton: OwnTriton | None = None

    async def close(self) -> None:
        """Wait for work in the background."""
        await asyncio.gather(*self._background)

    # -- States -----------------------------------------------------------------------------------------

    async def model_names(self) -> list[str]:
        """All models of the repository, loaded or not.

        Raises:
            TritonUnavailable: it does not answer.
        """
        return sorted(await self._states())

    async def pipelines(self, *, read_again: bool = True) -> dict[str, ModelStatus]:
        """All pipelines of the repository, by id, and every model that failed; other loaded models are left out.

        Args:
            read_again: ask Triton for the configuration of each loaded model, and not only of those not yet known.

        Raises:
            TritonUnavailable: it does not answer.
        """
        found = await self._states()
        ready = {name for name, status in found.items() if status.state is ModelState.READY}
        await asyncio.gather(*(self._read_spec(name) for name in ready if read_again or not self._models[name].is_read))
        for name in ready:
            model = self._models[name]
            if model.bad_parameters is not None:
                found[name] = ModelStatus(None, ModelState.FAILED, model.bad_parameters)
            elif model.spec is not None:
                found[name] = ModelStatus(model.spec, ModelState.READY)
            else:
                del found[name]
        self._report(found)
        return found

    @property
    def is_interrupted(self) -> bool:
        """Triton starts, or is about to be restarted: its models have to be waited for."""
        return self.is_starting or (self.own_triton is not None and self.own_triton.is_restarting)

    async def readiness(self) -> Readiness | None:
        """Whether generations can run, None where Triton does not answer; calls at the same time share its answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._readiness(), name="readiness")
        return await asyncio.shield(self._asking)

    async def report_failed(self) -> None:
        """Log the models that failed once all were tried, even if no client asks for the list."""
        while self.is_starting or await self.readiness() is None:  # noqa: ASYNC110 - Triton sends no events
            await asyncio.sleep(_REPORT_POLL_S)

    async def _readiness(self) -> Readiness | None:
        try:
            if not self._is_reachable:  # this is polled, and must not fill the log
                await self._link_models()
                if not await self.triton.is_listing_models():
                    return None
            pipelines = await self.pipelines(read_again=False)
        except FilmstripError:
            self._is_reachable = False
            return None
        self._is_reachable = True
        states = {pipeline.state for pipeline in pipelines.values()}
        self._was_settled = self._was_settled or ModelState.LOADING not in states
        degraded = tuple(name for name, pipeline in pipelines.items() if pipeline.state is ModelState.FAILED)
        return Readiness(self._was_settled and bool(states & {ModelState.READY, ModelState.UNLOADED}), degraded)

    async def _states(self) -> dict[str, ModelStatus]:
        """Every model of the repository, by name; a model that is ready has no spec here, pipeline or not.

        Raises:
            TritonUnavailable: it does not answer.
        """
        versions: dict[str, list[ModelVersion]] = {}
        for version in await self._index():
            if is_model_name(version.model):
                versions.setdefault(version.model, []).append(version)
        ready = {name for name, listed in versions.items() if any(version.state == _READY for version in listed)}
        folders: dict[str, ModelFolder] = {}
        if self.own_triton is not None:
            doubtful = (await in_thread(self.own_triton.model_names) - ready) | self.failed()
            folders = await self._read_folders(doubtful)
        names = sorted(versions.keys() | folders.keys())
        self.names = frozenset(names)
        return {name: self._status(name, versions.get(name, []), folders.get(name)) for name in names}

    async def _index(self) -> list[ModelVersion]:
        """Triton's list of the models in its repository, as the folders are now.

        Raises:
            TritonUnavailable: it does not answer.
            ModelError: it cannot read its repository.
        """
        for attempt in range(1, _INDEX_ATTEMPTS + 1):
            await self._link_models()
            try:
                return await self.triton.list_models()
            except ModelError:
                if self.own_triton is None or attempt == _INDEX_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _read_folders(self, names: Collection[str]) -> dict[str, ModelFolder]:
        """The folders of these models, where Triton is ours."""
        if self.own_triton is None or not names:
            return {}
        return await in_thread(self.own_triton.read_folders, names)

    async def _link_models(self) -> None:
        if self.own_triton is not None:
            try:
                await in_thread(self.own_triton.link_models)
            except OSError as error:
                log.warning("new and removed model folders are not seen: %s", error)

    def _status(self, name: str, versions: list[ModelVersion], folder: ModelFolder | None) -> ModelStatus:
        model = self._models[name]
        is_changed = folder is not None and model.failed_as not in (None, folder.fingerprint)
        if is_changed:  # somebody has repaired it, perhaps
            self.clear_failed(name)
        spec = model.spec or (folder.spec if folder is not None else None)
        states = {version.state for version in versions}
        if model.failed is not None:
            return ModelStatus(spec, ModelState.FAILED, model.failed)
        if model.load_gave_up is not None or model.waits_to_load or "LOADING" in states:
            return ModelStatus(spec, ModelState.LOADING)
        if _READY in states and model.is_unhealthy:
            return ModelStatus(spec, ModelState.UNLOADED, "its process ended; it is loaded again at its next use")
        if _READY in states:
            model.load_error = None
            return ModelStatus(spec, ModelState.READY)
        listed = [version.reason for version in versions if version.reason not in ("", _UNLOADED_REASON)]
        failures = [public_reason(reason, self._folders) for reason in listed]
        reason = None if is_changed else next(iter(failures), None) or model.load_error
        if folder is not None and folder.problem is not None:
            reason = folder.problem
        if reason is None and (self.is_starting or name in self.to_load):
            return ModelStatus(spec, ModelState.LOADING)
        return ModelStatus(spec, ModelState.UNLOADED if reason is None else ModelState.FAILED, reason)

    def _report(self, statuses: Mapping[str, ModelStatus]) -> None:
        """Log each model that failed since the last report."""
        failed = {name: status.reason for name, status in statuses.items() if status.state is ModelState.FAILED}
        for name, reason in failed.items():
            if reason != self._models[name].reported:
                log.warning("%s is not served: %s", name, reason)
        for name, model in self._models.items():
            model.reported = failed.get(name)

    def mark_failed(self, name: str, reason: str) -> None:
        """Do not serve a model until it is loaded explicitly or `clear_failed` is called.

        Args:
            name: of the model. It should be unloaded in Triton, and stays so.
            reason: one sentence for clients, without paths.
        """
        model = self._models[name]
        model.failed, model.is_unhealthy = reason, False
        self._note_failure(name, reason)
        if model.load_gave_up is not None and not model.load_gave_up.done():
            model.load_gave_up.set_result(None)

    def _note_failure(self, name: str, reason: str) -> None:
        """Log why a model is not served, and remember its files, so that a change to them is noticed."""
        log.warning("%s is not served: %s", name, reason)
        self._models[name].reported = reason
        if self.own_triton is not None:
            task = asyncio.create_task(self._keep_fingerprint(name), name="keep a fingerprint")
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _keep_fingerprint(self, name: str) -> None:
        for folder in (await self._read_folders([name])).values():
            self._models[name].failed_as = folder.fingerprint

    def failed(self) -> frozenset[str]:
        """The models that were marked as failed."""
        return frozenset(name for name, model in self._models.items() if model.failed is not None)

    def clear_failed(self, name: str) -> None:
        """Forget that a model failed: unless it is loaded, its next use loads it."""
        self._models[name].failed = self._models[name].load_error = None

    def loras(self, name: str) -> tuple[str, ...]:
        """The LoRAs of a pipeline that was loaded."""
        spec = self._models[name].spec if name in self._models else None
        return () if spec is None else spec.features.loras

    async def load_pipelines(self, **names: str | None) -> dict[str, PipelineSpec]:
        """Load the pipelines that a request names, unless they are loaded; their specs, by the request's fields.

        Raises:
            UnknownPipeline: the repository has no pipeline of this name.
            LoadFailed: one could not be loaded.
            TritonUnavailable: Triton does not answer.
        """
        requested = {field: name for field, name in names.items() if name is not None}
        if self.own_triton is not None:
            await self.own_triton.wait_for_restart()
        states = await self._states()
        known = {name: self._models[name] for name in requested.values() if name in states}
        for name, model in known.items():
            if model.failed is not None:
                raise LoadFailed(f"{name} is not served: {model.failed}")
            if states[name].state is not ModelState.READY:
                await self.load(name)
        await asyncio.gather(*map(self._read_spec, known))
        specs = {}
        for request_field, name in requested.items():
            found = known.get(name)
            if found is not None and found.bad_parameters is not None:
                raise LoadFailed(f"{name} is not served: {found.bad_parameters}")
            if found is None or found.spec is None:
                there = ", ".join(await self.pipelines()) or "none"
                raise UnknownPipeline(f"{request_field}: no pipeline {name[:80]!r}; there are: {there}", request_field)
            specs[request_field] = found.spec
        return specs

    async def load(self, name: str) -> None:
        """Load a model that is not loaded or whose process has ended; returns when it is ready.

        A model that was marked as failed gets another chance.

        Raises:
            LoadFailed: it could not be loaded; the message says why.
            TritonUnavailable: Triton does not answer.
        """
        if self.own_triton is None:
            return await self.load_now(name)
        if self._models[name].is_unhealthy:  # what is left of its process is in the way
            self.own_triton.schedule_restart(name)
        while True:
            await self.own_triton.wait_for_restart()
            try:
                return await self.load_now(name)
            except TritonUnavailable:
                if not self.own_triton.is_restarting:  # else another model has died, and Triton comes back
                    raise

    async def load_now(self, name: str) -> None:
        """`load`, without waiting for a planned restart of Triton."""
        model = self._models[name]
        waits = model.load_lock.locked()
        async with model.load_lock:
            if waits and model.failed is not None:  # callers that waited for the first attempt do not make a second one
                raise LoadFailed(f"could not load {name}: {model.failed}")
            if not is_safe_model(name):
                self.mark_failed(name, UNSAFE_NAME)
                raise LoadFailed(f"could not load {name}: {UNSAFE_NAME}")
            is_ready = await self.is_loaded(name)
            if is_ready and not model.is_unhealthy and model.failed is None:
                return
            folder = (await self._read_folders([name])).get(name)
            if folder is not None and folder.problem is not None:  # Triton may wait for such a model forever
                self._note_failure(name, folder.problem)
                raise LoadFailed(f"could not load {name}: {folder.problem}")
            try:
                async with self._place_to_load(model):
                    if (model.is_unhealthy and self.own_triton is None) or (is_ready and model.failed is not None):
                        # unload, wait, load: not two copies in memory
                        await self.triton.unload_model(name)
                        await self._wait_unloaded(name)
                    self.clear_failed(name)
                    await self._load_unless_it_fails(name)
            except TritonRefused as refusal:
                reason = model.load_error = public_reason(str(refusal), self._folders)
                if reason == DIED_AT_START and self.own_triton is not None:
                    self.mark_failed(name, reason)
                else:
                    self._note_failure(name, reason)
                raise LoadFailed(f"could not load {name}: {reason}") from None
            model.is_unhealthy = False
            if self.own_triton is not None:
                self.own_triton.on_model_ready(name)
            log.info("%s is loaded", name)

    @contextlib.asynccontextmanager
    async def _place_to_load(self, model: _Model) -> AsyncIterator[None]:
        """Hold one of the places for loads at the same time: Triton does not start processes for more."""
        model.waits_to_load = True
        try:
            await self._load_places.acquire()
        finally:
            model.waits_to_load = False
        try:
            yield
        finally:
            self._load_places.release()

    async def _load_unless_it_fails(self, name: str) -> None:
        """Let Triton load a model. Triton may never report that its process has ended; `mark_failed` ends the wait."""
        model = self._models[name]
        load = asyncio.create_task(self.triton.load_model(name), name=f"load {name}")
        failure = model.load_gave_up = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([load, failure], return_when=asyncio.FIRST_COMPLETED)
            if not load.done():
                model.is_unhealthy = True
                raise LoadFailed(f"could not load {name}: {model.failed}")
            load.result()
        finally:
            load.cancel()
            failure.cancel()
            model.load_gave_up = None

    def loading(self) -> set[str]:
        """Models that Triton is loading, without those that wait for their turn."""
        return {name for name, model in self._models.items() if model.load_gave_up is not None}

    def mark_unhealthy(self, name: str) -> None:
        """The model's process has ended: it must be loaded again before its next use."""
        self._models[name].is_unhealthy = True

    def mark_all_healthy(self) -> None:
        """Triton was restarted, so nothing is left of dead processes."""
        for model in self._models.values():
            model.is_unhealthy = False

    async def is_loaded(self, name: str) -> bool:
        """Whether Triton considers the model loaded, even if its process has ended.

        Raises:
            TritonUnavailable: it does not answer.
        """
        return any(version.model == name and version.state == _READY for version in await self._index())

    async def _wait_unloaded(self, name: str) -> None:
        """Wait until a model is unloaded; one whose process ended stays UNLOADING forever, but can be loaded again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNLOAD_TIMEOUT_S):
                while True:
                    with contextlib.suppress(ModelError):
                        listed = await self.triton.list_models()
                        if not any(model == name and state in (_READY, "UNLOADING") for model, state, _ in listed):
                            return
                    await asyncio.sleep(0.05)

    async def _read_spec(self, name: str) -> None:
        try:
            parameters = await self.triton.model_parameters(name)
        except ModelError:  # it was unloaded just now
            return
        model = self._models[name]
        model.is_read, model.spec, model.bad_parameters = True, None, None
        try:
            model.spec = PipelineSpec.from_parameters(name, parameters)
        except ValueError as error:
            model.bad_parameters = public_reason(str(error), self._folders)

    # -- Health -----------------------------------------------------------------------------------------

    def is_unhealthy(self, model: str) -> bool:
        """Whether the model's process has ended, or hangs."""
        return model in self._models and self._models[model].is_unhealthy

    def on_model_exit(self, model: str) -> None:
        """The model's process has ended: it is loaded again before its next use, or Triton is restarted."""
        self.mark_unhealthy(model)
        if self.own_triton is not None:
            self.own_triton.schedule_restart(model)

    def on_unresponsive(self, model: str) -> None:
        """The model hangs: an embedded Triton is killed and restarted, another one loads the model again."""
        if self.own_triton is None:
            self.on_model_exit(model)
        else:
            self.mark_unhealthy(model)
            self.own_triton.kill()


# -- The models of all Tritons ----------------------------------------------------------------------------------------


_BEST_STATE_FIRST = (ModelState.READY, ModelState.LOADING, ModelState.UNLOADED, ModelState.FAILED)


class Registries:
    """The registries of all Tritons, whose pipelines may differ.

    Attributes:
        all: one for each Triton.
    """

    def __init__(self, registries: Sequence[ModelRegistry]) -> None:
        self.all = tuple(registries)
        self._everywhere: dict[str, bool] = {}

    async def pipelines(self) -> dict[str, ModelStatus]:
        """All pipelines by id, each as on the Triton where its state is best; see `ModelRegistry.pipelines`.

        Raises:
            TritonUnavailable: no Triton answers.
        """
        found: dict[str, ModelStatus] = {}
        everywhere: dict[str, bool] = {}
        for _, pipelines in await self._answers(self.all, lambda registry: registry.pipelines()):
            for name, status in pipelines.items():
                everywhere[name] = status.loaded and everywhere.get(name, True)
                known = found.get(name)
                if known is None or _BEST_STATE_FIRST.index(status.state) < _BEST_STATE_FIRST.index(known.state):
                    found[name] = status
        self._everywhere = everywhere
        return dict(sorted(found.items()))

    def is_loaded_everywhere(self, name: str) -> bool:
        """Whether each Triton that has the pipeline had it loaded when `pipelines` was last called."""
        return self._everywhere.get(name, False)

    def loras(self, name: str) -> tuple[str, ...]:
        """The LoRAs of a pipeline that was loaded."""
        return next(filter(None, (registry.loras(name) for registry in self.all)), ())

    async def each_readiness(self) -> list[Readiness | None]:
        """The readiness of each Triton; None for one that starts or does not answer."""

        async def readiness(registry: ModelRegistry) -> Readiness | None:
            return None if registry.is_starting else await registry.readiness()

        return await asyncio.gather(*map(readiness, self.all))

    async def load(self, name: str) -> None:
        """Load a model on each Triton that has it; see `ModelRegistry.load`.

        Raises:
            LoadFailed: it could not be loaded on one of them.
            TritonUnavailable: none that has it answers.
        """
        having = [registry for registry in self.all if name in (registry.names or ())]
        await self._answers(having or self.all[:1], lambda registry: registry.load(name))

    async def load_pipelines(
        self, candidates: Sequence[ModelRegistry] = (), **names: str | None
    ) -> tuple[ModelRegistry, dict[str, PipelineSpec]]:
        """Choose the Triton for a request, and load the pipelines there; see `ModelRegistry.load_pipelines`.

        Args:
            candidates: the Tritons to choose from, the best one first; empty means all.
            names: of the pipelines, by the request's fields.

        Returns:
            The registry of that Triton, and the pipelines' specs by the request's fields.

        Raises:
            UnknownPipeline: there is no pipeline of this name.
            InvalidField: no Triton has all of them.
            LoadFailed: one could not be loaded.
            TritonUnavailable: no Triton that has them answers.
        """
        candidates = candidates or self.all
        if len(candidates) == 1:
            return candidates[0], await candidates[0].load_pipelines(**names)
        requested = {field: name for field, name in names.items() if name is not None}
        answers = await self._answers(candidates, lambda registry: registry.model_names())
        having = [registry for registry, there in answers if set(requested.values()) <= set(there)]
        if not having:
            raise self._refusal(requested)
        failure: FilmstripError | None = None
        for registry in sorted(having, key=lambda registry: registry.is_interrupted):
            try:
                return registry, await registry.load_pipelines(**names)
            except (LoadFailed, TritonUnavailable) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _refusal(self, requested: dict[str, str]) -> FilmstripError:
        """Why no Triton that answers has all pipelines of a request."""
        known = frozenset[str]().union(*(registry.names or () for registry in self.all))
        for field_name, name in requested.items():
            if name not in known:
                if any(registry.names is None for registry in self.all):
                    return TritonUnavailable(f"no Triton that answers has {name[:80]!r}")
                there = ", ".join(sorted(known)) or "none"
                return UnknownPipeline(f"{field_name}: no pipeline {name[:80]!r}; there are: {there}", field_name)
        wanted = frozenset(requested.values())
        if any(registry.names is None or wanted <= registry.names for registry in self.all):
            return TritonUnavailable("the Triton with these pipelines does not answer")
        main = requested["pipeline_id"]
        together = [registry.names or frozenset() for registry in self.all if main in (registry.names or ())]
        refused = next(
            (field_name for field_name, name in requested.items() if not any(name in names for names in together)),
            next(field_name for field_name in reversed(requested)),
        )
        return InvalidField(f"{refused}: no Triton has both {requested[refused]} and {main}", refused)

    @staticmethod
    async def _answers(
        registries: Sequence[ModelRegistry], call: Callable[[ModelRegistry], Awaitable[T]]
    ) -> list[tuple[ModelRegistry, T]]:
        """What the Tritons that answer say; all other errors than their absence are raised."""
        answers = await asyncio.gather(*map(call, registries), return_exceptions=True)
        found: list[tuple[ModelRegistry, T]] = []
        absent: TritonUnavailable | None = None
        for registry, answer in zip(registries, answers, strict=True):
            if isinstance(answer, TritonUnavailable):
                absent = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append((registry, answer))
        if not found and absent is not None:
            raise absent
        return found
