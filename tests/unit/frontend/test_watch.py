"""Models that load and die, on a Triton that does what the test says: a real one is too slow or too lucky."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from frontend.embedded import folders, watch
from frontend.embedded import supervisor as supervising
from frontend.embedded.supervisor import EmbeddedTriton
from frontend.embedded.watch import ModelWatch
from frontend.model_registry import ModelFolder, ModelRegistry, ModelState
from frontend.settings import Settings
from frontend.store import Store
from frontend.triton import TritonClient

NAMES = [f"model-{number}" for number in range(6)]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Loads models as soon as it may.

    Attributes:
        may_load: is set while loads come to their end.
        asked: what it was asked to load. Like a real one, it begins with the first four.
    """

    def __init__(self) -> None:
        self.may_load = asyncio.Event()
        self.asked: list[str] = []

    async def RepositoryIndex(self, _request, _context):  # noqa: N802
        models = [service_pb2.RepositoryIndexResponse.ModelIndex(name=name, state="UNAVAILABLE") for name in NAMES]
        return service_pb2.RepositoryIndexResponse(models=models)

    async def RepositoryModelLoad(self, request, _context):  # noqa: N802
        self.asked.append(request.model_name)
        await self.may_load.wait()
        return service_pb2.RepositoryModelLoadResponse()


@pytest.fixture
async def fake() -> FakeTriton:
    return FakeTriton()


@pytest.fixture
async def models(fake: FakeTriton, tmp_path: Path) -> AsyncIterator[ModelRegistry]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    (tmp_path / "models").mkdir()
    settings = Settings(embedded=True, model_repository=(tmp_path / "models",), data_dir=tmp_path / "data")
    triton = TritonClient(f"127.0.0.1:{port}", settings)
    registry = ModelRegistry(triton)
    yield registry
    await registry.close()
    await triton.close()
    await server.stop(None)


async def test_a_load_that_waits_for_its_turn_has_not_failed(
    models: ModelRegistry, fake: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LAUNCH_S", 0.0)
    loads = [asyncio.create_task(models.load_now(name)) for name in NAMES]
    async with asyncio.timeout(20):
        while len(fake.asked) < 4:  # noqa: ASYNC110 - the fake counts them
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # the others would have come to it by now
    watching = ModelWatch(1, models, lambda _: None)
    alive = dict(enumerate(fake.asked[:4]))
    for _ in range(2):
        watching._watch_loads(alive, models.loading(), set())
        await asyncio.sleep(0.01)
    assert not models.failed()
    assert len(fake.asked) == 4
    assert {pipeline.state for pipeline in (await models._states()).values()} == {ModelState.LOADING}
    (left, *_) = set(NAMES) - set(fake.asked)
    loads[NAMES.index(left)].cancel()  # who waits may leave
    fake.may_load.set()
    await asyncio.gather(*loads, return_exceptions=True)
    assert set(fake.asked) == set(NAMES) - {left}
    await models.load_now(left)
    assert not models.failed() | models.loading()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock of the supervisor that only the test moves on."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(supervising, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_the_window_for_a_second_death_begins_when_the_model_is_ready_again(
    models: ModelRegistry, fake: FakeTriton, clock: SimpleNamespace
) -> None:
    supervisor = EmbeddedTriton(models.triton.settings, Store(models.triton.settings))
    supervisor._models, models.own_triton = models, supervisor
    fake.may_load.set()

    async def restart(load_s: float) -> None:
        supervisor._restart_for.clear()
        models.mark_all_healthy()
        clock.now += load_s
        for name in NAMES[:2]:
            if name not in models.failed():
                await models.load_now(name)

    slow, neighbour = NAMES[:2]
    models.mark_unhealthy(slow)
    supervisor.schedule_restart(slow)  # what is left of a load that failed
    await restart(90)
    clock.now += 5
    supervisor.schedule_restart(slow)  # its first death
    assert not models.failed()
    await restart(90)
    clock.now += 5000
    supervisor.schedule_restart(neighbour)
    await restart(90)
    clock.now += 5
    supervisor.schedule_restart(slow)  # it had been well for long: its neighbour's death does not count
    assert not models.failed()
    await restart(90)
    clock.now += 59
    supervisor.schedule_restart(slow)
    assert models.failed() == {slow}
    supervisor._folder.remove()


async def test_the_files_of_a_failed_model_are_read_in_a_thread(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    read_folders = folders.read_folders

    def note_thread(repositories: Collection[Path], names: Collection[str]) -> dict[str, ModelFolder]:
        threads.append(threading.current_thread())
        return read_folders(repositories, names)

    monkeypatch.setattr(folders, "read_folders", note_thread)
    settings = models.triton.settings
    (settings.model_repository[0] / "model-0").mkdir()
    models.own_triton = supervisor = EmbeddedTriton(settings, Store(settings))
    models.mark_failed("model-0", "it has a fault")
    await asyncio.gather(*models._background)
    supervisor._folder.remove()
    assert models._models["model-0"].failed_as is not None
    assert threads
    assert threading.main_thread() not in threads
