"""`client.generations` on a real server: followed across cuts and restarts, left alone, listed, cancelled, fetched."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.client import (
    AsyncClient,
    Client,
    Complete,
    GenerationCancelled,
    Progress,
    Queued,
    StreamBroken,
)
from filmstrip.errors import IdTaken, InvalidField, NotFound, NotReady, ShuttingDown, UnknownPipeline
from filmstrip.video import count_frames, probe, read_frames
from tests.support.cutting_proxy import cutting_proxy
from tests.support.recovery import PROBE, eventually
from tests.support.server import ROOT, Frontend, free_port

SHORT = PROBE | {"num_frames": 9}
SLOW = PROBE | {"prompt": "!sleep 0.4"}
LONG = SLOW | {"num_frames": 3000}
SLEEPER = PROBE | {"prompt": "!sleep 60"}
MANY = PROBE | {"num_frames": 9 * 40, "chunk_specs": [{"chunk": number, "reset_cache": True} for number in range(40)]}


@pytest.fixture
def client(server: Frontend) -> Iterator[Client]:
    """A client of the shared server, with no generation before the test and none after it."""
    with Client(server.url) as client:

        def clear() -> None:
            for found in list(client.generations.list()):
                client.generations.delete(found.id)
            server.wait_idle(30)

        clear()
        yield client
        clear()


# -- Following ----------------------------------------------------------------------------------------------------


def test_a_stream_that_is_cut_twenty_times_gives_every_event_once_and_in_order(client: Client, server: Frontend):
    with cutting_proxy(server.url, 20) as proxy, Client(proxy.url) as far:
        with far.generations.start(MANY, id="cut") as events:
            numbered = [(events.after, event) for event in events]
        assert proxy.num_cut == 20
    assert [number for number, _ in numbered] == list(range(1, 42))
    assert [event.chunk for _, event in numbered[:-1] if isinstance(event, Progress)] == list(range(1, 41))
    with client.generations.attach("cut") as again:
        assert list(again) == [event for _, event in numbered]
    with client.generations.attach("cut", after=30) as rest:
        assert list(rest) == [event for _, event in numbered[30:]]


async def test_the_same_for_asyncio(client: Client, server: Frontend):
    with cutting_proxy(server.url, 20) as proxy:
        async with AsyncClient(proxy.url) as far:
            async with far.generations.start(MANY, id="cut") as events:
                numbered = [(events.after, event) async for event in events]
            assert proxy.num_cut == 20
            assert [event async for event in far.generations.attach("cut")] == [event for _, event in numbered]
    assert [number for number, _ in numbered] == list(range(1, 42))


def test_a_run_outlasts_cuts_as_well(client: Client, server: Frontend):
    seen = []
    with cutting_proxy(server.url, 3) as proxy, Client(proxy.url) as far:
        complete = far.run(MANY, on_event=seen.append)
        assert proxy.num_cut == 3
    assert len(seen) == 41
    assert client.download(complete.output_path).shape[0] == MANY["num_frames"]


def test_what_cannot_be_followed_any_more_names_the_generation(client: Client, server: Frontend):
    with cutting_proxy(server.url, 100) as proxy, Client(proxy.url, max_reconnects=0) as far:
        with pytest.raises(StreamBroken, match="generation cut after event 1: ") as broken:
            list(far.generations.start(MANY, id="cut"))
        assert (broken.value.id, broken.value.after) == ("cut", 1)
    assert client.generations.wait("cut").num_frames == MANY["num_frames"]  # it went on without its client


def test_a_generation_survives_a_restart_between_submitting_and_attaching(server: Frontend, tmp_path: Path):
    """Its followers connect again by themselves as soon as the server is back."""
    port = free_port()

    def start() -> Frontend:
        return Frontend(tmp_path, "--port", str(port), triton=server)

    frontend = start()
    try:
        frontend.wait_healthy()
        with Client(frontend.url) as client:
            client.generations.submit(SLEEPER, id="runs")
            eventually(lambda: client.generations.get("runs").state == "running")
            assert client.generations.submit(SHORT, id="waits").position == 1
            followed: list[object] = []
            connected = threading.Event()

            def follow() -> None:
                with client.generations.attach("waits") as events:
                    for event in events:
                        followed.append(event)
                        connected.set()

            following = threading.Thread(target=follow)
            following.start()
            assert connected.wait(30)
            frontend.stop()  # not killed: Triton would keep the sequence of the one that runs
            frontend = start()
            frontend.wait_healthy()
            following.join(60)
            assert [type(event) for event in followed if not isinstance(event, Queued)] == [Progress, Complete]
            assert client.generations.wait("waits").num_frames == 9
            with pytest.raises(ShuttingDown):
                client.generations.wait("runs")
            (failed,) = client.generations.list(state="failed")
            assert (failed.id, failed.error and failed.error.code) == ("runs", "restarted")
    finally:
        frontend.stop()


# -- Starting and ending ------------------------------------------------------------------------------------------


def test_a_generation_goes_on_without_its_client(client: Client, server: Frontend):
    with Client(server.url) as other:
        submitted = other.generations.submit(SLOW, id="alone", seed=5)
        assert (submitted.id, submitted.seed, submitted.num_frames) == ("alone", 5, 33)
        assert submitted.request == SLOW | {"seed": 5}
    complete = client.generations.wait("alone")
    found = client.generations.get("alone")
    assert (found.state, found.output_path, found.video_shape) == ("complete", complete.output_path, (33, 64, 96, 3))
    assert found.has_ended
    again = client.generations.submit(SLOW, id="alone", seed=5)
    assert again.state == "complete"  # the same generation, and not a new one
    with pytest.raises(IdTaken):
        client.generations.submit(SLOW, id="alone", seed=6)
    keyed = [client.generations.submit(SHORT, idempotency_key="order 66").id for _ in range(2)]
    assert keyed[0] == keyed[1]
    with pytest.raises(UnknownPipeline):
        client.generations.submit(pipeline_id="nothing", prompt="")
    with pytest.raises(UnknownPipeline), client.generations.start(pipeline_id="nothing", prompt=""):
        pytest.fail("the block must not be entered")


def test_who_waits_is_told_the_place_and_a_cancel_keeps_the_frames(client: Client):
    client.generations.submit(SLEEPER, id="first")
    client.generations.submit(SHORT, id="second")
    with client.generations.start(SHORT, id="third") as events:
        assert next(events) == Queued(2)
        assert client.generations.cancel("second") == "cancelled"
        assert next(events) == Queued(1)
        client.generations.delete("first")
        assert [type(event) for event in events] == [Progress, Complete]
    with client.generations.start(LONG, id="cancelled") as events:
        next(events)
        assert events.cancel() == "cancelling"
        with pytest.raises(GenerationCancelled) as cancelled:
            client.generations.wait("cancelled")
    assert client.generations.frames("cancelled").shape[0] == cancelled.value.num_frames > 0
    assert client.generations.cancel("cancelled") == "idle"


def test_leaving_the_block_ends_only_what_should_end_with_its_client(client: Client, server: Frontend):
    with client.generations.start(SLEEPER, id="kept"):
        pass
    assert client.generations.get("kept").state == "running"
    client.generations.delete("kept")
    with client.generations.start(SLOW, id="owned", on_disconnect="cancel") as events:
        next(events)
    with pytest.raises(NotFound):
        client.generations.get("owned")
    with pytest.raises(ZeroDivisionError):
        client.run(SLOW, on_event=lambda _: 1 / 0)
    server.wait_idle()


async def test_asyncio_has_the_same_calls(client: Client, server: Frontend, tmp_path: Path):
    async with AsyncClient(server.url) as own:
        generations = own.generations
        await generations.submit(SLOW, id="one")
        assert (await generations.wait("one")).num_frames == 33
        assert (await generations.get("one")).state == "complete"
        await generations.submit(SLEEPER, id="two")
        assert [found.id async for found in generations.list()] == ["two", "one"]
        assert await generations.cancel("one") == "idle"
        await generations.delete("two")
        assert (await generations.frames("one", 3, 5)).shape == (2, 64, 96, 3)
        await generations.download("one", tmp_path / "one.mp4")
        assert count_frames(tmp_path / "one.mp4") == 33
        assert (await generations.dry_run(SLOW)).num_chunks == 3
        async with generations.start(SLOW, id="owned", on_disconnect="cancel") as events:
            await anext(events)
        with pytest.raises(NotFound):
            await generations.get("owned")
        async with generations.start(LONG, id="three") as events:
            await anext(events)
            assert await events.cancel() == "cancelling"
        with pytest.raises(GenerationCancelled):
            await generations.wait("three")


# -- Lists, files and plans ---------------------------------------------------------------------------------------


def test_a_list_is_fetched_page_by_page(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("filmstrip.generations.MAX_PAGE", 2)
    names = [f"g{number}" for number in range(5)]
    for name in names[:4]:
        client.generations.submit(SHORT, id=name)
        client.generations.wait(name)
    client.generations.submit(SLEEPER, id="g4")
    found = list(client.generations.list())
    assert [generation.id for generation in found] == names[::-1]
    assert found[0].request is None
    assert [generation.id for generation in client.generations.list(limit=3)] == ["g4", "g3", "g2"]
    assert [generation.id for generation in client.generations.list(state="complete")] == ["g3", "g2", "g1", "g0"]
    with pytest.raises(InvalidField):
        list(client.generations.list(state="asleep"))


def test_files_and_frames(client: Client, tmp_path: Path):
    complete = client.run(PROBE, seed=5)
    (found,) = client.generations.list()
    frames = client.download(complete.output_path)
    np.testing.assert_array_equal(client.generations.frames(found.id, 8, 11), frames[8:11])
    np.testing.assert_array_equal(client.generations.frames(found.id), frames)
    for name in ("x.mp4", "x.webm", "x.gif"):
        num_bytes = client.generations.download(found.id, tmp_path / name, fps=10, scale=2)
        assert (tmp_path / name).stat().st_size == num_bytes
        info = probe(tmp_path / name)
        assert (count_frames(tmp_path / name), info.width, info.height, info.fps) == (33, 192, 128, 10)
    client.generations.download(found.id, tmp_path / "sheet.png")
    client.generations.download(found.id, tmp_path / "frame.png", "poster", frame=9)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "frame.png") as frame:
        assert sheet.width > 192
        np.testing.assert_array_equal(np.asarray(frame), frames[9])
    with pytest.raises(ValueError, match="must end in"):
        client.generations.download(found.id, tmp_path / "x.avi")
    client.generations.submit(SLEEPER, id="empty")
    with pytest.raises(NotReady):
        client.generations.download("empty", tmp_path / "x.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frame.png", "sheet.png", "x.gif", "x.mp4", "x.webm"]


def test_a_dry_run_plans_or_refuses(client: Client):
    plan = client.generations.dry_run(PROBE)
    assert (plan.width, plan.height, plan.num_chunks) == (96, 64, 3)
    assert [(chunk.start, chunk.frames) for chunk in plan.chunks] == [(0, 9), (9, 12), (21, 12)]
    sized = client.generations.dry_run(
        pipeline_id="gray", prompt="", num_frames=5, uploads={"input_shape": [5, 64, 80, 3]}
    )
    assert (sized.width, sized.height) == (80, 64)
    with pytest.raises(InvalidField):
        client.generations.dry_run(PROBE, num_frames=0)
    assert list(client.generations.list()) == []


# -- Video files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (72, 100)])
def test_an_uploaded_file_has_the_frames_that_a_local_decoder_reads(client: Client, size: tuple[int, int] | None):
    clip = ROOT / "demo" / "big_buck_bunny.mp4"
    height, width = size or (None, None)
    assert client.decodes_video_files()
    with clip.open("rb") as file:
        uploaded = client.upload_file(file, max_frames=12, width=width, height=height, fit="fill")
    assert (uploaded.num_frames, uploaded.fps) == (12, probe(clip).fps)
    complete = client.run(
        pipeline_id="passthrough", prompt="", input_path=uploaded.input_path, num_frames=uploaded.num_frames
    )
    np.testing.assert_array_equal(
        client.download(complete.output_path), np.stack(list(read_frames(clip, size, max_frames=12)))
    )


async def test_asyncio_uploads_files_as_well(client: Client, server: Frontend):
    async with AsyncClient(server.url) as own:
        assert await own.decodes_video_files()
        with (ROOT / "demo" / "big_buck_bunny.mp4").open("rb") as file:
            uploaded = await own.upload_file(file, start=1, end=2, width=96)
    assert uploaded.num_frames == uploaded.fps
    assert uploaded.poster is not None
