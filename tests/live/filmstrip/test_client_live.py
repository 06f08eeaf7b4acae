"""The clients on a real server and the frame processors of its Triton."""

import asyncio
import io
import time
from collections.abc import Callable
from contextlib import aclosing, closing

import numpy as np
import pytest
from PIL import Image

from filmstrip.client import (
    AsyncClient,
    BlobBuilder,
    Cancelled,
    Client,
    Complete,
    GenerationCancelled,
    Progress,
    VideoShape,
)
from filmstrip.errors import BadImage, Busy, InvalidField, UnknownPath, UnknownPipeline
from filmstrip.video import count_frames
from filmstrip.wire import pack_video_header
from tests.support.server import MODEL_NAMES

LONG = 3000  # frames: too many to be done before a test acts on the first chunk
SOON_S = 20.0


@pytest.fixture
def client(server):
    with Client(server.url) as client:
        yield client


def noise(num_frames: int, height: int = 64, width: int = 80) -> np.ndarray:
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def drifting(num_frames: int, size: int = 128) -> np.ndarray:
    """A smooth pattern that moves, [F, H, W, 3]."""
    rows, columns = np.mgrid[:size, :size]
    waves = [np.sin((rows + 2 * columns + 3 * frame) / 9) for frame in range(num_frames)]
    return np.repeat(((np.stack(waves) + 1) * 127).astype(np.uint8)[..., None], 3, axis=-1)


def finished(client: Client, **request) -> Complete:
    """Generate; the Complete event of a stream that was as it should be."""
    with client.generate(prompt="video", **request) as events:
        *progress, last = list(events)
    assert isinstance(last, Complete)
    assert all(isinstance(event, Progress) for event in progress)
    assert [event.chunk for event in progress] == list(range(1, last.num_chunks + 1))
    assert sum(event.frames for event in progress) == last.num_frames == last.video_shape.frames
    return last


def soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def slot_is_free(client: Client, input_path: str) -> bool:
    try:
        finished(client, pipeline_id="passthrough", input_path=input_path, num_frames=1)
    except Busy:
        return False
    return True


def test_what_the_server_is(client):
    assert client.health().status == "healthy"
    ids = {pipeline.id for pipeline in client.pipelines()}
    assert ids == set(MODEL_NAMES)
    gray = client.pipeline("gray")
    assert (gray.chunk_size, gray.modes, gray.loaded) == (12, ["video"], True)
    assert gray.features.frame_processor
    with pytest.raises(UnknownPipeline, match="passthrough"):
        client.pipeline("missing")


def test_load_and_status(client):
    assert client.load("gray", {"anything": 1}).status in ("loading", "loaded")
    assert soon(lambda: client.load_status().status == "loaded")
    assert client.load_status().pipeline_id == "gray"
    assert client.load_status().load_params == {"anything": 1}
    with pytest.raises(UnknownPipeline):
        client.load("missing")


async def test_a_run_is_complete_or_raises(client, server):
    video = noise(25)
    request = {"pipeline_id": "passthrough", "prompt": "", "input_path": client.upload(video).input_path}
    events = []
    complete = client.run(request, num_frames=25, on_event=events.append)
    assert [type(event) for event in events] == [Progress, Progress, Progress, Complete]
    np.testing.assert_array_equal(client.download(complete.output_path), video)
    with pytest.raises(UnknownPath):
        client.run(request, input_path="input-missing", num_frames=25)
    with pytest.raises(GenerationCancelled) as raised:
        client.run(request, num_frames=LONG, on_event=lambda _: client.cancel())
    assert client.output_shape(raised.value.output_path).frames == raised.value.num_frames > 0

    async with AsyncClient(server.url) as other:
        complete = await other.run(request, num_frames=25)
        np.testing.assert_array_equal(await other.download(complete.output_path), video)


def test_passthrough_gives_every_byte_back(client):
    video = noise(25)
    uploaded = client.upload(video)
    assert (uploaded.num_frames, uploaded.shape) == (25, video.shape)
    last = finished(client, pipeline_id="passthrough", input_path=uploaded.input_path, num_frames=25)
    assert (last.num_chunks, last.chunk_size, last.video_shape) == (3, 12, video.shape)
    np.testing.assert_array_equal(client.download(last.output_path), video)


def test_a_video_streams_in_and_out(client, tmp_path):
    video = noise(13)
    uploaded = client.upload((frame for frame in video), VideoShape(*video.shape))
    last = finished(client, pipeline_id="passthrough", input_path=uploaded.input_path, num_frames=13)

    np.testing.assert_array_equal(np.stack(list(client.download_frames(last.output_path))), video)
    file = io.BytesIO()
    assert client.download_to(last.output_path, file) == 20 + video.nbytes
    assert file.getvalue() == pack_video_header(VideoShape(*video.shape)) + video.tobytes()
    assert client.download_mp4(last.output_path, tmp_path / "out.mp4", 25) == 13
    assert count_frames(tmp_path / "out.mp4") == 13


def test_a_download_may_be_left_early_and_begun_again(client):
    video = noise(24, 256, 256)
    path = client.upload(video).input_path
    output = finished(client, pipeline_id="passthrough", input_path=path, num_frames=24).output_path
    for _ in range(3):
        with closing(client.download_frames(output)) as frames:
            np.testing.assert_array_equal(next(frames), video[0])
    np.testing.assert_array_equal(client.download(output), video)


def test_scribble_of_gray(client):
    path = client.upload(drifting(24)).input_path
    last = finished(client, pipeline_id="scribble", pre_processor_id="gray", input_path=path, num_frames=24)
    assert set(np.unique(client.download(last.output_path))) == {0, 255}


def test_videos_of_a_blob_take_the_place_of_their_chunks(client):
    video, other = noise(36), noise(12)
    blob = BlobBuilder()
    blob.chunk(1, input_video=other)
    uploaded = client.upload_data(blob)
    assert uploaded.size_bytes == blob.size == other.nbytes
    last = finished(
        client,
        pipeline_id="passthrough",
        input_path=client.upload(video).input_path,
        data_blob_path=uploaded.data_blob_path,
        chunk_specs=blob.chunk_specs,
        num_frames=36,
    )
    made = client.download(last.output_path)
    np.testing.assert_array_equal(made[12:24], other)
    np.testing.assert_array_equal(made[:12], video[:12])
    np.testing.assert_array_equal(made[24:], video[24:])


def test_blobs_as_bytes_and_in_pieces(client):
    assert client.upload_data(b"12345").size_bytes == 5
    assert client.upload_data(iter([b"123", b"45"])).size_bytes == 5


def test_an_asset(client, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    assert client.upload_asset(tmp_path / "red.png")
    with pytest.raises(BadImage):
        client.upload_asset(b"not an image")


def test_errors_are_raised_as_their_classes(client):
    path = client.upload(noise(1)).input_path
    with pytest.raises(UnknownPipeline), client.generate(pipeline_id="missing", prompt="", input_path=path):
        pass
    with pytest.raises(InvalidField) as refused, client.generate(pipeline_id="gray", prompt="", num_frames=0):
        pass
    assert (refused.value.field, refused.value.status) == ("num_frames", 422)
    with pytest.raises(UnknownPath):
        client.download("missing")


def test_an_upload_that_breaks_off_leaves_the_server_well(client):
    video = noise(8, 256, 256)
    with pytest.raises(ValueError, match="has 4 frames"):
        client.upload(iter(video[:4]), VideoShape(*video.shape))
    assert client.upload(video).num_frames == 8


def test_a_second_generation_is_refused_and_a_cancelled_one_keeps_its_frames(client):
    video = drifting(24)
    path = client.upload(video).input_path
    with client.generate(pipeline_id="optical-flow", prompt="", input_path=path, num_frames=LONG) as events:
        progress = [next(events)]
        with pytest.raises(Busy), client.generate(pipeline_id="gray", prompt="", input_path=path):
            pass
        assert client.cancel() == "cancelling"
        *others, last = events
    progress += others

    assert isinstance(last, Cancelled)
    assert 0 < last.frames_completed < LONG
    assert last.frames_completed == sum(event.frames for event in progress) == 12 * last.chunk
    assert last.video_shape == (last.frames_completed, *video.shape[1:])
    assert client.download(last.output_path).shape == last.video_shape
    assert client.cancel() == "idle"
    assert slot_is_free(client, path)


def test_leaving_early_ends_the_generation(client):
    path = client.upload(drifting(24)).input_path
    with client.generate(pipeline_id="optical-flow", prompt="", input_path=path, num_frames=LONG) as events:
        assert isinstance(next(events), Progress)
    assert soon(lambda: slot_is_free(client, path))


async def test_async_from_upload_to_download(server, tmp_path):
    video = noise(25)

    async def frames():
        for frame in video:
            await asyncio.sleep(0)
            yield frame

    async with AsyncClient(server.url) as client:
        assert (await client.health()).status == "healthy"
        uploaded = await client.upload(frames(), VideoShape(*video.shape))
        request = {"pipeline_id": "passthrough", "prompt": "", "input_path": uploaded.input_path}
        async with client.generate(request, num_frames=25) as events:
            *progress, last = [event async for event in events]
        assert [event.frames for event in progress] == [12, 12, 1]
        assert isinstance(last, Complete)
        np.testing.assert_array_equal(await client.download(last.output_path), video)
        async with aclosing(client.download_frames(last.output_path)) as downloaded:
            np.testing.assert_array_equal(await anext(downloaded), video[0])
        assert await client.download_mp4(last.output_path, tmp_path / "out.mp4", 25) == 25


async def test_async_cancel_and_leaving_early(server):
    async with AsyncClient(server.url) as client:
        path = (await client.upload(drifting(24))).input_path
        request = {"pipeline_id": "optical-flow", "prompt": "", "input_path": path, "num_frames": LONG}
        async with client.generate(request) as events:
            await anext(events)
            with pytest.raises(Busy):
                async with client.generate(request):
                    pass
            assert await client.cancel() == "cancelling"
            rest = [event async for event in events]
        assert isinstance(rest[-1], Cancelled)
        assert await client.cancel() == "idle"

        async with client.generate(request) as events:
            async for event in events:
                assert isinstance(event, Progress)
                break
    with Client(server.url) as after:
        assert await asyncio.to_thread(soon, lambda: slot_is_free(after, path))


async def test_a_task_that_is_cancelled_ends_its_generation(server):
    begun = asyncio.Event()

    async def follow(client: AsyncClient, path: str) -> None:
        async with client.generate(pipeline_id="optical-flow", prompt="", input_path=path, num_frames=LONG) as events:
            async for _ in events:
                begun.set()

    async with AsyncClient(server.url) as client:
        path = (await client.upload(drifting(24))).input_path
        task = asyncio.create_task(follow(client, path))
        await asyncio.wait_for(begun.wait(), SOON_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with Client(server.url) as after:
        assert await asyncio.to_thread(soon, lambda: slot_is_free(after, path))
