"""The end of a generation frees the slot, whatever goes wrong while it is cleaned up."""

import asyncio
import errno
from pathlib import Path
from typing import cast

import pytest

from filmstrip.events import ErrorEvent
from frontend.generate import Generation, Job
from frontend.media import ImageDecoder
from frontend.plan import Plan
from frontend.settings import Settings
from frontend.slot import Slot
from frontend.store import Draft, Store
from frontend.stored import Kind
from frontend.triton import Triton
from tests.faults.aftermath import PROBE, assert_serves, eventually, is_generating
from tests.faults.raw_client import GENERATE, RawClient
from tests.server import Frontend


class StoreThatCannotRemove(Store):
    """As on a disk that became read-only, which a test cannot do to itself."""

    def drop(self, draft: Draft) -> None:
        super().drop(draft)
        raise OSError(errno.EROFS, "Read-only file system")


async def test_an_error_while_cleaning_up_does_not_keep_the_slot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    store = StoreThatCannotRemove(settings)
    store.open()
    triton = Triton("127.0.0.1:1", settings)
    slot = Slot(settings, triton, store, ImageDecoder())
    generation = slot.current = Generation("id")
    job = Job(cast("Plan", None), {}, {}, store.draft(Kind.OUTPUT))
    task = asyncio.create_task(generation.run(job, triton, store))
    task.cancel()  # before it began: only the slot removes the file
    await asyncio.wait([task])
    slot._ended(generation, job, task)
    assert slot.current is None
    assert isinstance(generation.events.last, ErrorEvent)
    assert generation.events.last.code == "client_gone"
    assert "Read-only file system" in caplog.text
    await triton.close()
    store.close()


def test_an_output_that_cannot_be_removed_is_no_error_of_the_generation(server: Frontend) -> None:
    """Someone has put a folder in the place of the file, which unlink refuses to remove."""
    chunks, warnings = len(server.probed()), server.log().count(" stays: ")
    with RawClient(server.url) as client:
        specs = [{"chunk": 0, "text": "!sleep 1"}, {"chunk": 1, "text": "!raise"}]
        client.post_json(GENERATE, PROBE | {"chunk_specs": specs})
        server.wait_probed(chunks)
        (name,) = server.stored("partial")
        path = server.data_dir / name
        path.unlink()
        path.mkdir()
        *_, last = client.read_events()
    assert last.data["code"] == "model_error"
    assert not is_generating(server)
    eventually(lambda: server.log().count(" stays: ") == warnings + 1)
    path.rmdir()
    assert_serves(server)
