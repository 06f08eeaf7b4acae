"""The objects that live as long as the server: created at its start, closed in the right order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from quart import Quart, current_app

from .blobs import Blobs, LocalBlobs
from .bodies import JsonBodies
from .connection import Pace
from .download import Downloads
from .embedded.supervisor import EmbeddedTriton
from .generation import Slot
from .images import ImageDecoder
from .local_jobs import LocalJobs
from .model_registry import ModelRegistry, Readiness
from .pipeline_loads import PipelineLoads
from .previews import PreviewEncoder
from .records import Records
from .request_check import DryRuns, RequestChecker
from .settings import Settings
from .store import Store
from .triton import TritonClient
from .video_files import VideoFiles
from .video_uploads import VideoDecoder

_EXTENSION = "filmstrip"


@dataclass
class AppState:
    """What the routes use."""

    settings: Settings
    store: Store
    models: ModelRegistry
    blobs: Blobs
    jobs: LocalJobs
    dry_runs: DryRuns
    loads: PipelineLoads
    decoder: ImageDecoder
    json_bodies: JsonBodies
    downloads: Downloads
    video_files: VideoFiles
    video_decoder: VideoDecoder
    embedded: EmbeddedTriton | None

    @property
    def is_starting(self) -> bool:
        """Whether an embedded Triton exists and has not failed; while it does not answer, it is starting."""
        return not self.jobs.is_closed and self.embedded is not None and not self.embedded.failed.is_set()

    async def readiness(self) -> Readiness | None:
        """Whether generations can run, and which models failed; None while Triton does not answer."""
        if self.jobs.is_closed or self.models.is_starting:
            return None
        return await self.models.readiness()

    @property
    def pace(self) -> Pace:
        """How slow a client may be."""
        return Pace(self.settings.body_timeout_s, self.settings.body_bytes_per_s)


@contextlib.asynccontextmanager
async def lifespan(app: Quart, settings: Settings) -> AsyncIterator[None]:
    """Start everything that serves the app's requests; close it all when the context ends."""
    store = Store(settings)
    store.open()
    try:
        embedded = EmbeddedTriton(settings, store) if settings.embedded else None
        url, secret = (embedded.url, "") if embedded else (settings.triton_url, settings.triton_secret)
        triton = TritonClient(url, settings, secret)
        models = ModelRegistry(triton)
        decoder = ImageDecoder()
        checker = RequestChecker(settings, models, store, decoder)
        records = Records(settings.data_dir)
        encoder = PreviewEncoder()
        slots = [Slot(triton, store, encoder)]
        jobs = LocalJobs(settings, store, decoder, checker, slots, records=records, models=models)
        video_files = VideoFiles(store)
        state = app.extensions[_EXTENSION] = AppState(
            settings,
            store,
            models,
            LocalBlobs(store),
            jobs,
            DryRuns(checker, store),
            PipelineLoads(models),
            decoder,
            JsonBodies(settings.json_bytes, settings.json_total_bytes),
            Downloads(settings.downloads),
            video_files,
            VideoDecoder(store),
            embedded,
        )
        jobs.open()
        async with store.expiring():
            if embedded is not None:
                embedded.start(models)
            report = asyncio.create_task(models.report_failed(), name="report failed models")
            try:
                yield
            finally:
                await jobs.close(settings.shutdown_timeout_s)
                await decoder.close()
                await encoder.close()
                await video_files.close()
                report.cancel()
                state.loads.close()
                if embedded is not None:
                    await embedded.stop()
                await models.close()
                await jobs.stop()
                await triton.close()
    finally:
        store.close()


def app_state() -> AppState:
    """The state of the app that serves the current request."""
    state: AppState = current_app.extensions[_EXTENSION]
    return state
