"""The long-lived parts of one frontend, made at its start and ended in the right order."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from quart import current_app

from filmstrip.errors import FilmstripError, UnknownPipeline

from .bodies import JsonBodies
from .connection import Pace
from .defaults import check_defaults, ignored_params, request_defaults, with_defaults
from .download import Downloads
from .embedded import EmbeddedTriton
from .features import lora_name
from .images import ImageDecoder
from .schema import GenerateRequest, LoadEntry, LoadRequest
from .settings import Settings
from .slot import Slot
from .store import Store
from .triton import Pipeline, Readiness, State, Triton

log = logging.getLogger(__name__)

_REPORT_POLL_S = 1.0
_EXTENSION = "filmstrip"


@dataclass
class PipelineLoad:
    """What POST /pipeline/load asked for last, and how that goes."""

    status: Literal["not_loaded", "loading", "loaded", "error"] = "not_loaded"
    pipeline_id: str | None = None
    load_params: dict[str, Any] | None = None
    ignored: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class LoadedDefaults:
    """What a client's last load of a pipeline set for its later requests.

    Attributes:
        fields: values by the request's fields.
        were_loaded: the pipeline has been seen loaded since; they end when it is seen unloaded after that.
    """

    fields: dict[str, Any]
    were_loaded: bool = False


@dataclass
class Parts:
    """What the routes work with."""

    settings: Settings
    store: Store
    triton: Triton
    slot: Slot
    decoder: ImageDecoder
    json_bodies: JsonBodies
    embedded: EmbeddedTriton | None
    downloads: Downloads
    loads: dict[str, PipelineLoad] = field(default_factory=dict)
    defaults: dict[tuple[str, str], LoadedDefaults] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def is_starting(self) -> bool:
        """Triton is ours and on its way up."""
        return not self.slot.is_closed and self.embedded is not None and not self.embedded.failed.is_set()

    async def readiness(self) -> Readiness | None:
        """Whether generations can run, and what cannot; None as long as Triton does not answer."""
        if self.slot.is_closed or self.triton.is_starting:
            return None
        return await self.triton.readiness()

    @property
    def pace(self) -> Pace:
        """How slow a client may be."""
        return Pace(self.settings.body_timeout_s, self.settings.body_bytes_per_s)

    def load_of(self, client: str) -> PipelineLoad:
        """What a client asked to load last."""
        return self.loads.get(client, PipelineLoad())

    async def pipelines(self) -> dict[str, Pipeline]:
        """All pipelines of the repository, by id; defaults for those that have been unloaded are dropped.

        Raises:
            TritonUnavailable: Triton does not answer.
        """
        known = await self.triton.pipelines()
        for key, defaults in list(self.defaults.items()):
            state = known[key[1]].state if key[1] in known else State.UNLOADED
            if defaults.were_loaded and state is State.UNLOADED:
                del self.defaults[key]
            defaults.were_loaded |= state is State.READY
        return known

    async def effective(self, client: str, request: GenerateRequest) -> GenerateRequest:
        """A client's request with the defaults of its last load of the pipeline.

        Raises:
            TritonUnavailable: Triton does not answer.
        """
        key = (client, request.pipeline_id)
        if key in self.defaults:
            await self.pipelines()
        return with_defaults(request, self.defaults[key].fields if key in self.defaults else {})

    def loras_of(self, client: str, pipeline_id: str) -> dict[str, float]:
        """The LoRAs of a pipeline, by the path that the client loaded them with or their name, and default scales."""
        names = self.triton.loras(pipeline_id)
        defaults = self.defaults.get((client, pipeline_id))
        loaded = {} if defaults is None else defaults.fields.get("lora_scales", {})
        paths = {lora_name(path, names): path for path in loaded}
        return {paths.get(name, name): loaded.get(paths.get(name, name), 0.0) for name in names}

    async def begin_load(self, client: str, request: LoadRequest) -> PipelineLoad:
        """Load pipelines in the background, where they aren't yet; `load_of` tells how it goes.

        The load parameters hold from now on. What a pipeline that is loaded cannot do is refused here; for one that is
        not, the load ends in an error, and requests that have these defaults are refused.

        Raises:
            UnknownPipeline: the repository has none of such a name.
            InvalidField: a pipeline cannot do what the load parameters ask for.
            TritonUnavailable: Triton does not answer.
        """
        known = await self.pipelines()
        entries = request.entries
        ignored: set[str] = set()
        for entry in entries:
            if entry.pipeline_id not in known:
                there = ", ".join(known) or "none"
                message = f"{entry.id_field}: no pipeline {entry.pipeline_id[:80]!r}; there are: {there}"
                raise UnknownPipeline(message, entry.id_field)
            facts = known[entry.pipeline_id].facts
            if facts is not None and known[entry.pipeline_id].loaded:
                check_defaults(request_defaults(entry.load_params), facts, entry.params_field)
            ignored |= ignored_params(entry.load_params, facts)
        for entry in entries:
            self.defaults[client, entry.pipeline_id] = LoadedDefaults(request_defaults(entry.load_params))
        load = self.loads[client] = PipelineLoad(
            "loading", entries[0].pipeline_id, entries[0].load_params, tuple(sorted(ignored))
        )
        if all(known[entry.pipeline_id].loaded for entry in entries):
            load.status = "loaded"
            return load
        self.begin(self._load(load, entries), "load pipelines")
        return load

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Have work done in the background, until the server stops."""
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def report_failed_models(self) -> None:
        """Have the log name the models that failed, once all of them were tried; nobody may ask for the list."""
        while await self.readiness() is None:  # noqa: ASYNC110 - Triton sends no events
            await asyncio.sleep(_REPORT_POLL_S)

    async def _load(self, load: PipelineLoad, entries: list[LoadEntry]) -> None:
        try:
            for entry in entries:
                await self.triton.load(entry.pipeline_id)
                facts = await self.triton.facts(pipeline_id=entry.pipeline_id)
                check_defaults(request_defaults(entry.load_params), facts["pipeline_id"], entry.params_field)
            load.status = "loaded"
        except FilmstripError as error:
            load.status, load.error = "error", error.message


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Parts]:
    """Start everything that serves requests; end it all when the context ends."""
    store = Store(settings)
    store.open()
    try:
        embedded = EmbeddedTriton(settings, store) if settings.embedded else None
        url, secret = (embedded.url, "") if embedded else (settings.triton_url, settings.triton_secret)
        triton = Triton(url, settings, secret)
        decoder = ImageDecoder()
        slot = Slot(settings, triton, store, decoder)
        json_bodies = JsonBodies(settings.json_bytes, settings.json_total_bytes)
        parts = Parts(settings, store, triton, slot, decoder, json_bodies, embedded, Downloads(settings.downloads))
        async with store.expiring():
            if embedded is not None:
                embedded.start(triton)
            parts.begin(parts.report_failed_models(), "report failed models")
            try:
                yield parts
            finally:
                await parts.slot.close(settings.shutdown_timeout_s)
                await decoder.close()
                for task in parts.tasks:
                    task.cancel()
                if embedded is not None:
                    await embedded.stop()
                await triton.close()
    finally:
        store.close()


def the_parts() -> Parts:
    """The parts of the app that serves the present request."""
    found: Parts = current_app.extensions[_EXTENSION]
    return found


def provide(app_extensions: dict[str, Any], parts: Parts) -> None:
    """Give an app its parts."""
    app_extensions[_EXTENSION] = parts
