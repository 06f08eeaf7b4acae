"""A generation whose model, writing or client fails: what it waits for, what it reports and what it keeps."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filmstrip.contract import Mode, PipelineSpec
from filmstrip.errors import ClientGone, DiskFull, ModelError, ShuttingDown
from filmstrip.models import ErrorEvent, Event
from frontend.array_plan import InputSizes
from frontend.generation import GenerationRun, Slot
from frontend.inference import ChunkResult
from frontend.model_registry import ModelRegistry
from frontend.plan import Chain, make_plan
from frontend.previews import PreviewEncoder
from frontend.request_check import CheckedRequest
from frontend.schema import GenerateRequest
from frontend.settings import Settings
from frontend.store import Draft, Store
from frontend.triton import ModelSequence, TritonClient
from tests.support.recovery import SOON_S

CHAIN = Chain(PipelineSpec("model", (Mode.TEXT,), chunk_size=4, first_chunk_size=4, height=16, width=16))


class Model(TritonClient):
    """A Triton with one model: each chunk waits for its `go`, and fails if there is an `error`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("127.0.0.1:1", settings)
        self.go = asyncio.Semaphore(0)
        self.error: type[BaseException] | None = None
        self.started = asyncio.Semaphore(0)
        self.num_done = 0

    @contextlib.asynccontextmanager
    async def registered(self, num_bytes: int, *paths: Path) -> AsyncIterator[tuple[str, ...]]:  # noqa: ARG002
        yield tuple(path.name for path in paths)

    async def call_model(self, *_: object) -> ChunkResult:
        self.started.release()
        await self.go.acquire()
        if self.error is not None:
            raise self.error("it failed")
        self.num_done += 1
        return ChunkResult((4, 16, 16, 3), {})

    async def end_sequence(self, *_: object) -> None:
        """There is nothing to end."""


class FullDisk:
    """From now on what is appended to a file cannot be written, which shows when `show` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.show = asyncio.Event()
        self.shown = asyncio.Event()
        monkeypatch.setattr(Draft, "append", self._append)

    async def _append(self, *_: bytes | memoryview) -> None:
        await self.show.wait()
        self.shown.set()
        raise DiskFull("the server's disk is full")


class Running:
    """A generation of four chunks that has the slot."""

    def __init__(self, model: Model, store: Store) -> None:
        request = GenerateRequest(pipeline_id="model", prompt="a cat", num_frames=16)
        plan = make_plan(request, CHAIN, InputSizes(), 2**30)
        self.plan = weakref.ref(plan)
        self.events: list[Event] = []
        self.generation = GenerationRun("id", "", self.events)
        self.ended = asyncio.Event()
        self._buffers = store.shm_prefix("x").removesuffix("-x-")
        slot = Slot(ModelRegistry(model), store, PreviewEncoder())
        slot.on_free = self.ended.set
        slot.start(self.generation, CheckedRequest(plan, {}, {}, slot.registry))

    async def error(self) -> ErrorEvent:
        """Its last event."""
        async with asyncio.timeout(SOON_S):
            await self.ended.wait()
        last = self.events[-1]
        assert isinstance(last, ErrorEvent)
        return last

    @property
    def num_mapped(self) -> int:
        """Staging buffers that are in this process's memory."""
        return Path("/proc/self/maps").read_text().count(self._buffers)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Model]:
    model = Model(Settings(data_dir=tmp_path / "data"))
    monkeypatch.setattr("frontend.triton.call_model", model.call_model)
    monkeypatch.setattr(ModelSequence, "end", model.end_sequence)
    yield model
    await model.close()


@pytest.fixture
async def running(model: Model) -> AsyncIterator[Running]:
    store = Store(model.settings)
    store.open()
    running = Running(model, store)
    await model.started.acquire()
    yield running
    running.generation.abort(ClientGone("the test is over"))
    await running.generation.wait(SOON_S)
    store.close()


@pytest.mark.parametrize("why", ["model", "write", "abort"])
async def test_a_generation_that_failed_keeps_nothing_until_a_collection(
    why: str, model: Model, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    gc.disable()
    try:
        assert running.num_mapped == 2
        if why == "abort":
            running.generation.abort(ClientGone("the client is gone"))
        elif why == "model":
            model.error = ModelError
            model.go.release()
        else:
            FullDisk(monkeypatch).show.set()
            model.go.release()
            model.go.release()
        await running.error()
        await asyncio.sleep(0)  # asyncio drops the task after its callbacks
        assert running.plan() is None
        assert running.num_mapped == 0
    finally:
        gc.enable()


async def test_a_failed_write_ends_it_after_the_chunk_in_progress(
    model: Model, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    model.go.release()
    await model.started.acquire()  # the second chunk's
    disk.show.set()
    await disk.shown.wait()
    await settle()
    assert not running.ended.is_set()
    model.go.release()
    assert (await running.error()).code == "disk_full"
    assert model.num_done == 2
    assert model.started.locked()  # no other


async def test_a_failed_write_ends_it_when_the_next_chunk_waits_for_the_buffer(
    model: Model, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    model.go.release()
    await model.started.acquire()  # the second chunk's
    model.go.release()
    await settle()
    disk.show.set()
    assert (await running.error()).code == "disk_full"
    assert model.num_done == 2


async def test_the_reason_of_the_first_abort_counts(running: Running) -> None:
    running.generation.abort(ShuttingDown("the server is stopping"))
    running.generation.abort(ClientGone("the client is gone"))
    assert (await running.error()).code == "shutting_down"
    running.generation.abort(ClientGone("the client is gone"))
    await running.generation.wait(SOON_S)


async def test_a_call_that_grpc_cancels_is_a_failure_of_triton(model: Model, running: Running) -> None:
    model.error = asyncio.CancelledError
    model.go.release()
    assert (await running.error()).code == "triton_unavailable"
