"""The jobs of a frontend within this process, on any Triton."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from frontend.generation import Slot
from frontend.images import ImageDecoder
from frontend.local_jobs import LocalJobs
from frontend.model_registry import ModelRegistry, Registries
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
    tritons = [TritonClient(triton_url, configured) for _ in range(num_slots)]
    registries = Registries([ModelRegistry(triton) for triton in tritons])
    decoder = ImageDecoder()
    checker = RequestChecker(configured, registries, store, decoder)
    encoder = PreviewEncoder()
    slots = [Slot(models, store, encoder, name=str(number)) for number, models in enumerate(registries.all)]
    jobs = LocalJobs(configured, store, decoder, checker, slots, records=Records(data_dir))
    jobs.open()
    try:
        yield jobs
    finally:
        await jobs.close(10)
        await decoder.close()
        await encoder.close()
        for models in registries.all:
            await models.close()
        await jobs.stop()
        for triton in tritons:
            await triton.close()
        store.close()
