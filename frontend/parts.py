"""The long-lived parts of one frontend, made at its start and ended in the right order."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from quart import current_app

from filmstrip.errors import FilmstripError, UnknownPipeline
from frontend.connection import Pace
from frontend.embedded import EmbeddedTriton
from frontend.json_bodies import JsonBodies
from frontend.media import ImageDecoder
from frontend.settings import Settings
from frontend.slot import Slot
from frontend.store import Store
from frontend.triton import Triton

log = logging.getLogger(__name__)

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
    loads: dict[str, PipelineLoad] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def is_starting(self) -> bool:
        """Triton is ours and on its way up."""
        return self.embedded is not None and not self.embedded.failed.is_set()

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
        task = asyncio.create_task(self._load(load, pipeline_ids), name="load pipelines")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return load

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
        parts = Parts(settings, store, triton, slot, decoder, json_bodies, embedded)
        async with store.expiring():
            if embedded is not None:
                embedded.start(triton)
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
