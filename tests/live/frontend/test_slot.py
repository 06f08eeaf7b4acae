"""The end of a generation frees the slot, whatever goes wrong while it is cleaned up."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from filmstrip.errors import ClientGone, ShuttingDown
from filmstrip.models import ErrorEvent, Event
from filmstrip.wire import VideoShape
from frontend.events import NumberedEvent
from frontend.generation import GenerationRun, Slot
from frontend.jobs import EntryPoint, Submission
from frontend.local_jobs import LocalJobs
from frontend.model_registry import ModelRegistry
from frontend.plan import Plan
from frontend.previews import PreviewEncoder
from frontend.request_check import CheckedRequest
from frontend.schema import GenerateRequest
from frontend.settings import Settings
from frontend.store import Draft, Kind, Store
from frontend.triton import TritonClient
from tests.support.http import GENERATE
from tests.support.jobs import local_jobs
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, assert_serves, eventually, is_generating
from tests.support.server import Frontend


class StoreThatCannotRemove(Store):
    """As on a disk that became read-only, which a test cannot do to itself."""

    def discard(self, draft: Draft) -> None:
        super().discard(draft)
        raise OSError(errno.EROFS, "Read-only file system")


async def test_an_error_while_cleaning_up_does_not_keep_the_slot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    store = StoreThatCannotRemove(settings)
    store.open()
    triton = TritonClient("127.0.0.1:1", settings)
    slot = Slot(ModelRegistry(triton), store, PreviewEncoder())
    events: list[Event] = []
    generation = GenerationRun("id", "", events)
    slot.take(generation)
    chain = SimpleNamespace(pipeline=SimpleNamespace(id="model"))
    plan = cast("Plan", SimpleNamespace(output=VideoShape(1, 2, 2), chain=chain))
    request = CheckedRequest(plan, {}, {}, slot.registry)
    generation.start(slot, request, store.draft(Kind.OUTPUT))
    generation.abort(ClientGone("the client is gone"))  # before its task began: only the end removes the file
    await generation.wait(10)
    await asyncio.sleep(0)
    assert slot.is_free
    (last,) = events
    assert isinstance(last, ErrorEvent)
    assert last.code == "client_gone"
    assert "Read-only file system" in caplog.text
    await triton.close()
    store.close()


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[LocalJobs]:
    """One slot, whose Triton takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with local_jobs(f"127.0.0.1:{listening.getsockname()[1]}", tmp_path / "data") as jobs:
            yield jobs


REQUEST = GenerateRequest(pipeline_id="probe", prompt="a cat", num_frames=9, seed=7)
SUBMISSION = Submission("alice", None, REQUEST, EntryPoint.GENERATE)


async def test_a_cancel_ends_a_check_that_waits_for_triton(jobs: LocalJobs) -> None:
    starting = asyncio.create_task(jobs.submit(SUBMISSION))
    await asyncio.sleep(0.1)  # whichever step it is at by then, it gets no answer
    assert not await jobs.cancel_streams("bob")
    assert await jobs.cancel_streams("alice")
    name = (await starting).generation.record.id
    async with jobs.follow("alice", name, silence_s=60) as events:
        expected = '{"chunk": 0, "total_chunks": 0, "frames_completed": 0, "seed": 7, "unused": []}'
        assert [event async for event in events] == [NumberedEvent(1, "cancelled", expected)]
    assert not await jobs.cancel_streams("alice")
    assert not jobs.is_generating


async def test_the_end_of_the_server_ends_a_check_that_waits_for_triton(jobs: LocalJobs) -> None:
    starting = asyncio.create_task(jobs.submit(SUBMISSION))
    await asyncio.sleep(0.1)  # whichever step it is at by then, it gets no answer
    await jobs.close(1)
    with pytest.raises(ShuttingDown):
        await starting


def test_an_output_that_cannot_be_removed_is_no_error_of_the_generation(server: Frontend) -> None:
    """Someone has put a folder in the place of the file, which unlink refuses to remove."""
    chunks, warnings = len(server.probe_entries()), server.log().count("cannot remove ")
    with RawClient(server.url) as client:
        specs = [{"chunk": 0, "text": "!sleep 1"}, {"chunk": 1, "text": "!raise"}]
        client.post_json(GENERATE, PROBE | {"chunk_specs": specs})
        server.wait_for_chunk(chunks)
        (name,) = server.stored("partial")
        path = server.data_dir / name
        path.unlink()
        path.mkdir()
        *_, last = client.read_events()
    assert last.data["code"] == "model_error"
    assert not is_generating(server)
    eventually(lambda: server.log().count("cannot remove ") == warnings + 1)
    path.rmdir()
    assert_serves(server)
