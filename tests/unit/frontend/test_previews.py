"""Previews: the images, the process that makes them, and the order of events."""

import asyncio
import base64
import io
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from filmstrip.errors import StorageFull
from filmstrip.models import Cancelled, Event, Preview, Progress
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape
from frontend.preview_worker import MAX_URL_BYTES, small_webp
from frontend.previews import PreviewEncoder, Previews
from frontend.schema import PreviewOptions
from frontend.settings import Settings
from frontend.store import Kind, Store
from tests.support.processes import worker_processes
from tests.support.recovery import noise

SHAPE = VideoShape(5, 40, 60)
LAST = Cancelled(2, 3, 5)
CLIENT = "alice"


def frames(shape: VideoShape = SHAPE) -> np.ndarray:
    """Each frame has a colour of its own, and a lighter bottom half."""
    video = np.zeros(shape, np.uint8)
    video[...] = (np.arange(shape.frames) * 40)[:, None, None, None]
    video[:, shape.height // 2 :, :, 0] += 50
    return video


def shown(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.format == "WEBP"
        return np.asarray(image.convert("RGB"))


@pytest.fixture
async def encoder() -> AsyncIterator[PreviewEncoder]:
    encoder = PreviewEncoder()
    yield encoder
    await encoder.close()
    assert workers() == []
    assert await encoder.encode(Path("/dev/null"), 0, SHAPE, 16, CLIENT) is None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(Settings(data_dir=tmp_path / "data", store_bytes=2**20))
    store.open()
    return store


def workers() -> list[psutil.Process]:
    return worker_processes("preview_worker")


class Run:
    """A generation with previews, as far as they see it."""

    def __init__(self, store: Store, encoder: PreviewEncoder, *, every: int = 1, width: int = 256) -> None:
        self.events: list[Event] = []
        self._output = store.draft(Kind.OUTPUT, owner=CLIENT)
        self._num_frames = 0
        self.previews = Previews(
            PreviewOptions(every=every, width=width),
            self.events,
            encoder,
            store,
            client=CLIENT,
            path=self._output.path,
            shape=SHAPE,
        )

    async def chunk(self, number: int, num_frames: int = 1) -> None:
        """As a generation does: the event, then the frames."""
        new = frames()[self._num_frames : self._num_frames + num_frames]
        self._num_frames += num_frames
        self.previews.append(Progress(number, 3, num_frames, 0.1, 10.0))
        if not self._output.written_bytes:
            await self._output.append(bytes(VIDEO_HEADER_BYTES))
        await self._output.append(new.tobytes())
        self.previews.on_written(self._num_frames)

    async def end(self) -> list[Event]:
        await self.previews.finish()
        self.previews.append(LAST)
        return self.events


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_images_are_small_in_both_ways(subtests: pytest.Subtests) -> None:
    for size, width, expected in (
        ((60, 40), 30, (30, 20)),
        ((60, 40), 256, (60, 40)),  # never enlarged
        ((2048, 64), 16, (16, 1)),
        ((64, 2048), 512, (64, 2048)),
    ):
        with subtests.test(size=size, width=width):
            url, height, shown_width = small_webp(Image.new("RGB", size, "red"), width)
            assert (shown_width, height) == expected
            assert shown(url).shape == (height, shown_width, 3)
    for size, fits in (((512, 512), True), ((512, 2048), False)):  # what compresses worst
        with subtests.test(noise=size):
            url, height, width = small_webp(Image.fromarray(noise(1, size[1], size[0])[0]), 512)
            assert len(url) <= MAX_URL_BYTES
            assert shown(url).shape == (height, width, 3)
            assert (width == 512) == fits


async def test_the_image_shows_the_last_frame_of_its_chunk(encoder: PreviewEncoder, store: Store) -> None:
    run = Run(store, encoder, every=2, width=30)
    await run.chunk(1)
    await run.chunk(2, 2)
    await run.chunk(3)
    events = await run.end()
    assert names(events) == ["Progress", "Progress", "Preview", "Progress", "Cancelled"]
    run = Run(store, encoder, width=30)
    await run.chunk(1, 3)
    events = await run.end()
    assert names(events) == ["Progress", "Preview", "Cancelled"]
    preview = events[1]
    assert isinstance(preview, Preview)
    assert (preview.chunk, preview.frames, preview.width, preview.height) == (1, 3, 30, 20)
    assert preview.image is not None
    expected = frames()[2, ::2, ::2].astype(int)
    assert np.abs(shown(preview.image) - expected).mean() < 8
    (worker,) = workers()
    assert worker.nice() == min(19, psutil.Process().nice() + 10)
    assert store._counted_bytes[CLIENT] == len(preview.image)


async def test_an_encoder_that_is_behind_holds_up_no_event(encoder: PreviewEncoder, store: Store) -> None:
    await encoder.start()
    (worker,) = workers()
    run = Run(store, encoder)
    os.kill(worker.pid, signal.SIGSTOP)
    await run.chunk(1)
    await run.chunk(2)
    assert run.events[1] == Preview(1, 1, 60, 40, None)
    assert names(run.events) == ["Progress", "Preview", "Progress"]
    os.kill(worker.pid, signal.SIGCONT)
    events = await run.end()  # waits for the last one
    assert names(events) == ["Progress", "Preview", "Progress", "Preview", "Cancelled"]
    assert isinstance(events[3], Preview)
    assert events[3].image is not None


async def test_a_process_that_dies_is_replaced(encoder: PreviewEncoder, store: Store) -> None:
    await encoder.start()
    (worker,) = workers()
    os.kill(worker.pid, signal.SIGSTOP)
    run = Run(store, encoder)
    await run.chunk(1)
    await asyncio.sleep(0)
    os.kill(worker.pid, signal.SIGKILL)
    events = await run.end()
    assert names(events) == ["Progress", "Preview", "Cancelled"]
    run = Run(store, encoder)
    await run.chunk(1)
    (_, preview, _) = await run.end()
    assert isinstance(preview, Preview)
    assert preview.image is not None


async def test_a_file_that_is_gone_gives_no_image(encoder: PreviewEncoder, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"123")
    for name in ("missing", "short"):
        assert await encoder.encode(tmp_path / name, 0, SHAPE, 16, CLIENT) is None
    assert len(workers()) == 1


async def test_without_room_there_is_no_image(encoder: PreviewEncoder, store: Store) -> None:
    run = Run(store, encoder)
    await run.chunk(1)
    await run.previews.finish()
    used = store._counted_bytes[CLIENT]
    assert used > 0
    store.count(2**19, CLIENT, is_new=False)  # its whole share, as found at the start of a server
    with pytest.raises(StorageFull):
        store.count(1, CLIENT)
    run.previews.append(Progress(2, 3, 1, 0.1, 10.0))
    run.previews.on_written(2)
    assert (await run.end())[3:] == [Preview(2, 2, 60, 40, None), LAST]
    store.count(-(2**19) - used, CLIENT, is_new=False)
    assert not store._counted_bytes
