"""The jobs of a frontend within this process, on any Triton."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from frontend.generation import Slot
from frontend.images import ImageDecoder
from frontend.local_jobs import LocalJobs
from frontend.model_registry import ModelRegistry
from frontend.previews import PreviewEncoder
from frontend.records import Records
from frontend.request_check import RequestChecker
from frontend.settings import Settings
from frontend.store import Store
from frontend.triton import TritonClient


@contextlib.asynccontextmanager
async def local_jobs(
    triton_url: str, data_dir: Path, *, num_slots: int = 1, **settings: object
) -> AsyncIterator[LocalJobs]:
    """Jobs that are open until the block ends; then they are closed as at the end of a server."""
    configured = Settings.model_validate({"data_dir": data_dir, **settings})
    store = Store(configured)
    store.open()
    triton = TritonClient(triton_url, configured)
    models = ModelRegistry(triton)
    decoder = ImageDecoder()
    checker = RequestChecker(configured, models, store, decoder)
    encoder = PreviewEncoder()
    slots = [Slot(triton, store, encoder) for _ in range(num_slots)]
    jobs = LocalJobs(configured, store, decoder, checker, slots, records=Records(data_dir), models=models)
    jobs.open()
    try:
        yield jobs
    finally:
        await jobs.close(10)
        await decoder.close()
        await encoder.close()
        await models.close()
        await jobs.stop()
        await triton.close()
        store.close()
