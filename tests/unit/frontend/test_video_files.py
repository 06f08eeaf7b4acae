"""Video files made from outputs: what they are, that each is made once, and that nobody waits or pays for nothing."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from filmstrip.errors import FilmstripError, InvalidField, ModelDied, Overloaded, StorageFull, UnknownPath
from filmstrip.video import read_frames
from filmstrip.wire import VideoShape, pack_video_header
from frontend.schema import VideoFileQuery, VideoFormat, parse_query
from frontend.settings import Settings
from frontend.store import MAX_VARIANTS, DerivedFile, Kind, Store, StoredFile
from frontend.video_files import Growth, Variant, VideoFiles
from tests.support.processes import worker_processes
from tests.support.server import Frames

MIB = 2**20
SHAPE = VideoShape(30, 64, 96)


def moving(num_frames: int = 30, height: int = 64, width: int = 96) -> Frames:
    """A bright square that moves over a gradient."""
    down, across = np.mgrid[:height, :width]
    video = np.empty((num_frames, height, width, 3), np.uint8)
    video[:] = np.stack([down * 2 % 256, across * 2 % 256, (down + across) % 256], -1)
    for index, frame in enumerate(video):
        frame[8:24, index : index + 16] = 230
    return video


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Settings(data_dir=tmp_path / "data"))
    store.open()
    yield store
    store.close()


@pytest.fixture
async def files(store: Store) -> AsyncIterator[VideoFiles]:
    """After each test, no process and no half-written file is left."""
    files = VideoFiles(store)
    yield files
    await files.close()
    assert encoders() == []
    assert list((store._root / "partial").iterdir()) == []


def encoders() -> list[psutil.Process]:
    return worker_processes("video_worker")


async def put(store: Store, video: Frames, owner: str = "") -> StoredFile:
    with store.draft(Kind.OUTPUT, owner=owner) as draft:
        await draft.append(pack_video_header(VideoShape(*video.shape)), video.tobytes())
        return draft.commit()


def variant(query: str, shape: VideoShape = SHAPE) -> Variant:
    values = dict(part.split("=") for part in query.split("&"))
    options = parse_query(VideoFileQuery, values)
    return Variant.of(options, shape, 16)


async def encoded(files: VideoFiles, output: StoredFile, query: str) -> Path:
    assert output.shape is not None
    return (await files.file(output, variant(query, output.shape))).path


def shown(path: Path, suffix: str) -> Frames:
    """The frames of a file, as the command reads them."""
    named = path.with_suffix(suffix)
    named.symlink_to(path)
    return np.stack(list(read_frames(named)))


def boxes(path: Path) -> list[str]:
    data, start, names = path.read_bytes(), 0, []
    while start < len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        names.append(data[start + 4 : start + 8].decode())
        start += size
    return names


def packets(path: Path) -> list[tuple[Any, Any, bytes]]:
    with av.open(str(path), format="mp4") as container:
        return [
            (packet.pts * packet.time_base, packet.dts * packet.time_base, bytes(packet))
            for packet in container.demux(video=0)
            if packet.dts is not None
        ]


# -- What the files are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "codec"), [("format=mp4", "h264"), ("format=webm", "vp9")])
async def test_a_video_plays_everywhere(store: Store, files: VideoFiles, query: str, codec: str) -> None:
    video = moving(30, 65, 97)  # padded by a row and a column
    path = await encoded(files, await put(store, video), query)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        context: Any = stream.codec_context
        assert (context.name, context.pix_fmt, context.height, context.width) == (codec, "yuv420p", 66, 98)
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)  # BT.709
        assert stream.average_rate == 16
    frames = shown(path, f".{query.removeprefix('format=')}")
    assert frames.shape == (30, 66, 98, 3)
    assert np.abs(frames[:, :65, :97].astype(int) - video).mean() < 4


async def test_the_index_of_an_mp4_is_at_its_front(store: Store, files: VideoFiles) -> None:
    path = await encoded(files, await put(store, moving()), "format=mp4")
    names = boxes(path)
    assert names.index("moov") < names.index("mdat")
    assert "moof" not in names


async def test_a_gif_shows_all_frames(store: Store, files: VideoFiles) -> None:
    path = await encoded(files, await put(store, moving()), "format=gif&fps=10&scale=2")
    with Image.open(path) as image:
        assert (image.format, image.size, image.n_frames) == ("GIF", (192, 128), 30)
        assert image.info["duration"] == 100


async def test_a_png_is_one_frame_or_a_contact_sheet(store: Store, files: VideoFiles) -> None:
    video = moving()
    output = await put(store, video)
    with Image.open(await encoded(files, output, "format=png&frame=29")) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), video[29])
    with Image.open(await encoded(files, output, "format=png&frame=3&scale=3")) as image:
        assert np.array_equal(np.asarray(image), video[3].repeat(3, 0).repeat(3, 1))
    with Image.open(await encoded(files, output, "format=png")) as image:
        assert image.format == "PNG"
        assert image.width > 6 * 240


async def test_rate_quality_and_scale_take_effect(store: Store, files: VideoFiles) -> None:
    output = await put(store, np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), np.uint8))
    sizes = {crf: (await encoded(files, output, f"format=mp4&crf={crf}")).stat().st_size for crf in (0, 30, 51)}
    assert sizes[0] > sizes[30] > sizes[51]
    with av.open(str(await encoded(files, output, "format=mp4&fps=30000/1001&scale=8"))) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        assert (stream.height, stream.width) == (512, 768)


def test_a_variant_is_the_same_with_its_defaults_written_out() -> None:
    same = ["format=mp4", "format=mp4&crf=18", "format=mp4&fps=16.0&scale=1", "format=mp4&fps=16&crf=&frame="]
    assert len({variant(query).key for query in same}) == 1
    others = ["format=mp4&crf=19", "format=mp4&fps=15", "format=mp4&scale=2", "format=webm&crf=18", "format=gif"]
    others += ["format=png", "format=png&frame=0", "format=png&frame=1"]
    assert len({variant(query).key for query in [*same, *others]}) == 1 + len(others)


def test_unsuitable_values_are_refused_by_name(subtests: pytest.Subtests) -> None:
    cases = {
        "format=avi": ("format", "mp4"),
        "format=MP4": ("format", "mp4"),
        "format=mp4&crf=52": ("crf", "51"),
        "format=mp4&crf=-1": ("crf", "0"),
        "format=mp4&crf=1.5": ("crf", "integer"),
        "format=gif&crf=20": ("crf", "only mp4 and webm"),
        "format=mp4&fps=0": ("fps", "0.1"),
        "format=mp4&fps=1000": ("fps", "240"),
        "format=mp4&fps=nan": ("fps", ""),
        "format=mp4&fps=inf": ("fps", ""),
        "format=mp4&fps=1/0": ("fps", "fraction"),
        "format=mp4&fps=x": ("fps", "number"),
        "format=png&fps=16": ("fps", "no frame rate"),
        "format=mp4&scale=0": ("scale", "1"),
        "format=mp4&scale=9": ("scale", "8"),
        "format=png&scale=2": ("scale", "frame"),
        "format=mp4&frame=0": ("frame", "png"),
        "format=png&frame=30": ("frame", "0 to 29"),
        "format=png&frame=-1": ("frame", "0"),
    }
    for query, (field, words) in cases.items():
        with subtests.test(query):
            with pytest.raises(InvalidField) as caught:
                variant(query)
            assert caught.value.field == field
            assert words in caught.value.message


def test_a_frame_that_would_be_too_large_is_refused_with_what_fits() -> None:
    with pytest.raises(InvalidField, match="at most scale=4 fits"):
        variant("format=mp4&scale=8", VideoShape(1, 100, 1000))
    with pytest.raises(InvalidField, match="without `format`"):
        variant("format=mp4", VideoShape(1, 8, 4097))
    assert variant("format=mp4&scale=4", VideoShape(1, 100, 1024)).scale == 4
    assert variant("format=png", VideoShape(1, 8, 4097)).format is VideoFormat.PNG


async def test_the_largest_frames_fit_the_encoders_memory(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(20, 512, 512))  # more than the encoder holds back
    with av.open(str(await encoded(files, output, "format=mp4&scale=8"))) as container:
        assert (container.streams.video[0].width, container.streams.video[0].frames) == (4096, 20)


# -- Each is made once, for those who wait ------------------------------------------------------------------------


async def test_a_file_is_encoded_once_and_kept(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving())
    first, second = await asyncio.gather(*(files.file(output, variant("format=mp4")) for _ in range(2)))
    assert first is second
    assert await files.file(output, variant("format=mp4")) is first
    assert stat.S_IMODE(first.path.stat().st_mode) & 0o007 == 0
    store.close()
    again = Store(store._settings)
    again.open()
    kept = again.derived(output.name, variant("format=mp4").key)
    assert kept is not None
    assert (kept.name, kept.path) == (first.name, first.path)
    again.close()
    store.open()


async def test_the_same_content_has_the_same_tag(store: Store, files: VideoFiles) -> None:
    first, second = [await put(store, moving()) for _ in range(2)]
    other = await put(store, moving()[::-1].copy())
    tags = [(await files.file(output, variant("format=gif"))).name for output in (first, second, other)]
    assert tags[0] == tags[1] != tags[2]


async def begun(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.01)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_an_encoder_ends_when_nobody_waits_any_more(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(200, 256, 256))
    tasks = [asyncio.create_task(files.file(output, variant("format=webm&scale=4"))) for _ in range(2)]
    await begun(encoders)
    (process,) = encoders()
    await cancelled(tasks[0])
    assert process.is_running()
    await cancelled(tasks[1])
    await begun(lambda: not process.is_running())
    await begun(lambda: not list((store._root / "partial").iterdir()))
    assert store.derived(output.name, variant("format=webm&scale=4").key) is None
    await files.file(output, variant("format=png&frame=0"))  # its turn came back


async def test_two_encoders_run_and_clients_take_turns(store: Store, files: VideoFiles) -> None:
    order = []
    greedy, other = [await put(store, moving(20), owner) for owner in ("greedy", "other")]

    async def make(output: StoredFile, crf: int) -> None:
        await files.file(output, variant(f"format=mp4&crf={crf}"))
        assert len(encoders()) <= 2
        order.append(output.owner)

    tasks = [asyncio.create_task(make(greedy, crf)) for crf in range(6)]
    await asyncio.sleep(0)
    await asyncio.gather(*tasks, make(other, 0))
    assert "other" in order[:4]


async def test_an_encoder_has_a_clean_environment_and_a_low_priority(
    store: Store, files: VideoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMSTRIP_API_KEYS", "alice:secret")
    output = await put(store, moving(200, 256, 256))
    task = asyncio.create_task(files.file(output, variant("format=webm&scale=4")))
    await begun(encoders)
    (process,) = encoders()
    await begun(lambda: process.nice() > os.getpriority(os.PRIO_PROCESS, 0) + 5)
    assert not process.net_connections()
    assert "secret" not in " ".join([*process.environ().values(), *process.cmdline()])
    await cancelled(task)


async def test_a_process_that_dies_is_an_error_for_those_who_wait(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(200, 256, 256))
    task = asyncio.create_task(files.file(output, variant("format=webm&scale=4")))
    await begun(encoders)
    encoders()[0].kill()
    with pytest.raises(FilmstripError, match="could not be encoded"):
        await task
    await files.file(output, variant("format=png&frame=0"))


async def test_an_output_that_is_being_encoded_cannot_be_deleted(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(200, 256, 256))
    task = asyncio.create_task(files.file(output, variant("format=webm&scale=4")))
    await begun(encoders)
    await begun(lambda: store._held[output.name])
    await files.discard(output.name)
    with pytest.raises(UnknownPath):
        await task
    store.delete(output.name)


# -- In the store -------------------------------------------------------------------------------------------------


async def test_a_ninth_variant_replaces_the_one_that_was_not_used_for_longest(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(2))
    made = [await files.file(output, variant(f"format=png&frame=0&scale={scale}")) for scale in range(1, 9)]
    assert await files.file(output, variant("format=png&frame=0&scale=1")) is made[0]
    await files.file(output, variant("format=png&frame=1"))
    assert [file.path.exists() for file in made] == [True, False, *[True] * 6]
    with contextlib.ExitStack() as stack:
        kept = [file for file in store._derived.values() if file.source == output.name]
        assert len(kept) == MAX_VARIANTS
        for file in kept:
            stack.enter_context(store.holding(file))
        with pytest.raises(Overloaded):
            await files.file(output, variant("format=mp4"))
    await files.file(output, variant("format=mp4"))


async def test_files_go_with_their_output(store: Store, files: VideoFiles) -> None:
    output, other = [await put(store, moving(2)) for _ in range(2)]
    path, stays = [await encoded(files, each, "format=png") for each in (output, other)]
    store.delete(output.name)
    assert not path.exists()
    assert stays.exists()
    stray = stays.with_name(stays.name.replace(other.name, output.name))
    stray.write_bytes(b"of an output that is gone")
    store.close()
    store.open()
    assert (stray.exists(), stays.exists()) == (False, True)


async def test_a_damaged_file_is_encoded_again(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(2))
    path = await encoded(files, output, "format=png")
    path.write_bytes(b"x")
    again = await files.file(output, variant("format=png", VideoShape(2, 64, 96)))
    assert again.path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def limited(store: Store) -> Callable[..., Store]:
    def limit(**settings: Any) -> Store:
        store._settings = store._settings.model_copy(update=settings)
        return store

    return limit


async def derived(store: Store, output: StoredFile, name: str, num_bytes: int) -> DerivedFile:
    with store.derive(output.owner) as draft:
        await draft.append(bytes(num_bytes))
        return store.commit_derived(draft, output, name, f"{len(store._derived):032x}")


async def test_derived_files_count_in_bytes_and_not_as_files(limited: Callable[..., Store]) -> None:
    store = limited(store_files=2, store_bytes=10 * MIB)
    output = await put(store, moving(1))
    for number in range(3):
        await derived(store, output, f"x-{number}", MIB)
    await put(store, moving(1))
    with pytest.raises(StorageFull, match="limit of 2 files"):
        await put(store, moving(1))
    with pytest.raises(StorageFull, match="bytes"):
        await derived(store, output, "y", 10 * MIB)


async def test_derived_files_are_dropped_first(limited: Callable[..., Store]) -> None:
    store = limited(store_bytes=10 * MIB)
    output = await put(store, moving(1))
    files = [await derived(store, output, f"x-{number}", 3 * MIB) for number in range(3)]
    files[0].used_at += 10
    with store.holding(files[1]):
        with store.draft(Kind.BLOB, 2 * MIB) as draft:
            await draft.append(bytes(2 * MIB))
            draft.commit()
        assert [file.path.exists() for file in files] == [True, True, False]
        with pytest.raises(StorageFull), store.draft(Kind.BLOB, 6 * MIB):
            pass
    assert [file.path.exists() for file in files] == [False, True, False]


async def test_a_full_share_drops_only_that_clients_files(limited: Callable[..., Store]) -> None:
    store = limited(store_bytes=20 * MIB)
    ours, theirs = [await put(store, moving(1), owner) for owner in ("us", "them")]
    kept = await derived(store, theirs, "x", 3 * MIB)
    dropped = await derived(store, ours, "x", 8 * MIB)
    with store.draft(Kind.BLOB, 5 * MIB, owner="us") as draft:
        draft.commit()
    assert (kept.path.exists(), dropped.path.exists()) == (True, False)


async def test_a_store_that_is_full_refuses_a_file_and_keeps_nothing_of_it(
    limited: Callable[..., Store], files: VideoFiles
) -> None:
    output = await put(limited(), np.random.default_rng(0).integers(0, 256, (30, 64, 96, 3), np.uint8))
    store = limited(store_bytes=output.size_bytes + 4096)
    with pytest.raises(StorageFull):
        await files.file(output, variant("format=gif&scale=8"))
    assert list((store._root / "derived").iterdir()) == []


# -- Frames that are still arriving --------------------------------------------------------------------------------


class Growing:
    """Frames that arrive when the test says so; the output exists in the end."""

    owner = ""
    fps = None

    def __init__(self, store: Store, video: Frames) -> None:
        self.name = f"generation-{id(self)}"
        self.shape = VideoShape(*video.shape)
        self._store, self._video = store, video
        self._growths: list[Growth | FilmstripError] = []
        self._changed = asyncio.Event()
        self._draft = store.draft(Kind.OUTPUT)

    def open(self) -> int:
        return os.dup(self._draft.fd)

    async def grow(self, num_frames: int) -> None:
        done = self._growths[-1].num_frames if self._growths else 0  # type: ignore[union-attr]
        header = [pack_video_header(self.shape)] if not done else []
        await self._draft.append(*header, self._video[done:num_frames].tobytes())
        self._add(Growth(num_frames))

    def finish(self) -> StoredFile:
        output = self._draft.commit()
        self._add(Growth(self.shape.frames, output))
        return output

    def fail(self) -> None:
        self._store.discard(self._draft)
        self._add(ModelDied("the model died"))

    def _add(self, growth: Growth | FilmstripError) -> None:
        self._growths.append(growth)
        self._changed.set()
        self._changed = asyncio.Event()

    async def growth(self) -> AsyncIterator[Growth]:
        at = 0
        while True:
            changed = self._changed
            for growth in self._growths[at:]:
                at += 1
                if isinstance(growth, FilmstripError):
                    raise growth
                yield growth
                if growth.output is not None:
                    return
            if changed is self._changed:
                await changed.wait()


async def collected(files: VideoFiles, source: Growing, received: bytearray, pause_s: float = 0) -> None:
    with files.following(source, variant("format=mp4", source.shape)) as pieces:
        async for piece in pieces:
            received += piece
            await asyncio.sleep(pause_s)


async def test_a_growing_file_plays_and_each_packet_is_encoded_once(store: Store, files: VideoFiles) -> None:
    video = moving(120)
    source = Growing(store, video)
    early, slow, late = bytearray(), bytearray(), bytearray()
    tasks = [
        asyncio.create_task(collected(files, source, early)),
        asyncio.create_task(collected(files, source, slow, 1)),
    ]
    await source.grow(12)
    await source.grow(60)
    await begun(lambda: early.count(b"moof") > 2)
    assert early.count(b"mfra") == 0
    grown = store._root.parent / "so-far"
    grown.write_bytes(early)
    assert len(packets(grown)) > 10
    tasks.append(asyncio.create_task(collected(files, source, late)))
    await source.grow(120)
    assert len(encoders()) == 1
    output = source.finish()
    whole = await files.file(output, variant("format=mp4", source.shape))
    await asyncio.gather(*tasks)
    assert early == slow == late
    grown.write_bytes(early)
    assert boxes(whole.path).index("moov") < boxes(whole.path).index("mdat")
    assert packets(whole.path) == packets(grown)
    assert len(packets(grown)) == 120
    assert shown(whole.path, ".mp4").shape == video.shape
    assert np.abs(shown(grown, ".mp4").astype(int) - video).mean() < 4


async def test_the_encoder_of_a_growing_file_ends_with_its_last_reader(store: Store, files: VideoFiles) -> None:
    source = Growing(store, moving(60))
    received = bytearray()
    readers = [asyncio.create_task(collected(files, source, received)) for _ in range(2)]
    await source.grow(40)
    await begun(lambda: received)
    (process,) = encoders()
    await cancelled(readers[0])
    assert process.is_running()
    await cancelled(readers[1])
    await begun(lambda: not process.is_running())
    source.fail()


async def test_frames_that_are_lost_break_the_growing_file_off(store: Store, files: VideoFiles) -> None:
    source = Growing(store, moving(60))
    received = bytearray()
    reader = asyncio.create_task(collected(files, source, received))
    await source.grow(40)
    await begun(lambda: received)
    source.fail()
    with pytest.raises(ModelDied):
        await reader


async def test_fewer_frames_than_planned_are_a_whole_file(store: Store, files: VideoFiles) -> None:
    source = Growing(store, moving(10))
    received = bytearray()
    reader = asyncio.create_task(collected(files, source, received))
    await source.grow(10)
    output = source.finish()
    await reader
    assert received.count(b"moof")
    assert len(packets((await files.file(output, variant("format=mp4", source.shape))).path)) == 10


async def test_a_file_with_bytes_of_frames_missing_is_an_error(store: Store, files: VideoFiles) -> None:
    output = await put(store, moving(10))
    os.truncate(output.path, output.size_bytes - 1)
    with pytest.raises(FilmstripError, match="could not be encoded"):
        await files.file(output, variant("format=mp4", VideoShape(10, 64, 96)))
