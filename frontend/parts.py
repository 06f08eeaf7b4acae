"""The long-lived parts of one frontend, made at its start and ended in the right order."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from quart import current_app

from filmstrip.errors import FilmstripError, UnknownPipeline
from frontend.connection import Pace
from frontend.download import Downloads
from frontend.embedded import EmbeddedTriton
from frontend.json_bodies import JsonBodies
from frontend.media import ImageDecoder
from frontend.settings import Settings
from frontend.slot import Slot
from frontend.store import Store
from frontend.triton import Readiness, Triton

log = logging.getLogger(__name__)

_REPORT_POLL_S = 1.0
_EXTENSION = "filmstrip"


@dataclass
class PipelineLoad:
    """What POST /pipeline/load asked for last, and how that goes."""

    status: Literal["not_loaded", "loading", "loaded", "error"] = "not_loaded"
    pipeline_id: str | None = None
    load_params: dict[str, Any] | None = None
    error: str | None = None


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
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def is_starting(self) -> bool:
        """Triton is ours and on its way up."""
        return self.embedded is not None and not self.embedded.failed.is_set()

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

    async def begin_load(
        self, client: str, pipeline_ids: list[str], load_params: dict[str, Any] | None
    ) -> PipelineLoad:
        """Load pipelines in the background, where they aren't yet; `load_of` tells how it goes.

        Raises:
            UnknownPipeline: the repository has none of such a name.
            TritonUnavailable: Triton does not answer.
        """
        known = await self.triton.pipelines()
        unknown = [name for name in pipeline_ids if name not in known]
        if unknown:
            there = ", ".join(known) or "none"
            raise UnknownPipeline(f"pipeline_ids: no pipeline {unknown[0][:80]!r}; there are: {there}", "pipeline_ids")
        load = self.loads[client] = PipelineLoad("loading", pipeline_ids[0], load_params)
        if all(known[name].loaded for name in pipeline_ids):
            load.status = "loaded"
            return load
        self.begin(self._load(load, pipeline_ids), "load pipelines")
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

    async def _load(self, load: PipelineLoad, pipeline_ids: list[str]) -> None:
        try:
            for name in pipeline_ids:
                await self.triton.load(name)
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
