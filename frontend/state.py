"""The objects that live as long as the server: created at its start, closed in the right order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from quart import Quart, current_app

from .blobs import Blobs, LocalBlobs
from .bodies import JsonBodies
from .connection import Pace
from .download import Downloads
from .embedded.supervisor import EmbeddedTriton
from .generation import Slot
from .images import ImageDecoder
from .jobs import Jobs
from .local_jobs import LocalJobs
from .model_registry import ModelRegistry, Readiness, Registries
from .pipeline_loads import PipelineLoads
from .previews import PreviewEncoder
from .records import Records
from .request_check import DryRuns, RequestChecker
from .schema import HealthStatus, SlotState
from .sessions import Sessions
from .settings import Settings
from .store import Store
from .triton import TritonClient
from .video_files import VideoFiles
from .video_uploads import VideoDecoder

_EXTENSION = "filmstrip"


@dataclass(frozen=True)
class Health:
    """Whether generations can run.

    Attributes:
        status: of the server.
        slots: the state of each slot, by its name.
        degraded: ids of the models that failed on any Triton.
    """

    status: HealthStatus
    slots: Mapping[str, SlotState]
    degraded: Sequence[str]


@dataclass
class AppState:
    """What the routes use."""

    settings: Settings
    sessions: Sessions
    store: Store
    slots: Sequence[Slot]
    registries: Registries
    blobs: Blobs
    jobs: Jobs
    dry_runs: DryRuns
    loads: PipelineLoads
    decoder: ImageDecoder
    json_bodies: JsonBodies
    downloads: Downloads
    video_files: VideoFiles
    video_decoder: VideoDecoder
    embedded: Sequence[EmbeddedTriton]

    @property
    def may_still_start(self) -> bool:
        """Whether there is an embedded Triton that has not failed; while it does not answer, it is starting."""
        return not self.jobs.is_closed and any(not embedded.failed.is_set() for embedded in self.embedded)

    async def embedded_failed(self) -> None:
        """Wait until the first start of every embedded Triton has failed."""
        for embedded in self.embedded:
            await embedded.failed.wait()

    async def health(self) -> Health:
        """Whether generations can run, on which Tritons, and which models failed."""
        each = [None] * len(self.slots) if self.jobs.is_closed else await self.registries.each_readiness()
        slots = {
            slot.name: self._slot_state(number, readiness)
            for number, (slot, readiness) in enumerate(zip(self.slots, each, strict=True))
        }
        known = [readiness for readiness in each if readiness is not None]
        is_first_start = any(not (embedded.has_started or embedded.failed.is_set()) for embedded in self.embedded)
        is_ready = not self.jobs.is_closed and not (is_first_start and len(self.slots) > 1)
        is_ready = is_ready and any(state in ("ready", "generating") for state in slots.values())
        status: HealthStatus = "unavailable"
        if is_ready:
            status = "healthy"
        elif (not known or is_first_start) and self.may_still_start:
            status = "starting"
        degraded = sorted({name for readiness in known for name in readiness.degraded})
        return Health(status, slots, degraded)

    def _slot_state(self, number: int, readiness: Readiness | None) -> SlotState:
        if not self.slots[number].is_free:
            return "generating"
        if readiness is not None:
            return "ready" if readiness.can_generate else "unavailable"
        is_starting = bool(self.embedded) and not self.embedded[number].failed.is_set() and not self.jobs.is_closed
        return "starting" if is_starting else "unavailable"

    @property
    def pace(self) -> Pace:
        """How slow a client may be."""
        return Pace(self.settings.body_timeout_s, self.settings.body_bytes_per_s)


@contextlib.asynccontextmanager
async def lifespan(app: Quart, settings: Settings, sessions: Sessions) -> AsyncIterator[None]:
    """Start everything that serves the app's requests; close it all when the context ends."""
    store = Store(settings)
    store.open()
    try:
        embedded = _embedded_tritons(settings, store)
        urls = [triton.url for triton in embedded] or settings.triton_url
        tritons = [TritonClient(url, settings, "" if embedded else settings.triton_secret) for url in urls]
        registries = Registries([ModelRegistry(triton) for triton in tritons])
        decoder = ImageDecoder()
        checker = RequestChecker(settings, registries, store, decoder)
        records = Records(settings.data_dir)
        encoder = PreviewEncoder()
        slots = [
            Slot(registry, store, encoder, name=str(number), shown_name=str(number) if len(tritons) > 1 else None)
            for number, registry in enumerate(registries.all)
        ]
        jobs = LocalJobs(settings, store, decoder, checker, slots, records=records)
        video_files = VideoFiles(store)
        state = app.extensions[_EXTENSION] = AppState(
            settings,
            sessions,
            store,
            slots,
            registries,
            LocalBlobs(store),
            jobs,
            DryRuns(checker, store),
            PipelineLoads(registries),
            decoder,
            JsonBodies(settings.json_bytes, settings.json_total_bytes),
            Downloads(settings.downloads),
            video_files,
            VideoDecoder(store),
            embedded,
        )
        jobs.open()
        async with store.expiring():
            for own_triton, models in zip(embedded, registries.all, strict=False):
                own_triton.start(models)
            reports = [
                asyncio.create_task(models.report_failed(), name="report failed models") for models in registries.all
            ]
            try:
                yield
            finally:
                await jobs.close(settings.shutdown_timeout_s)
                await decoder.close()
                await encoder.close()
                await video_files.close()
                for report in reports:
                    report.cancel()
                state.loads.close()
                await asyncio.gather(*(own_triton.stop() for own_triton in embedded))
                await asyncio.gather(*(models.close() for models in registries.all))
                await jobs.stop()
                await asyncio.gather(*(triton.close() for triton in tritons))
    finally:
        store.close()


def _embedded_tritons(settings: Settings, store: Store) -> list[EmbeddedTriton]:
    if settings.embedded == 1:
        return [EmbeddedTriton(settings, store)]
    return [EmbeddedTriton(settings, store, number) for number in range(settings.embedded)]


def app_state() -> AppState:
    """The state of the app that serves the current request."""
    state: AppState = current_app.extensions[_EXTENSION]
    return state
