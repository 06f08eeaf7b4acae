"""Uploaded video files: decoded as the command does, in part and to size, and hostile ones refused at a small price."""

import asyncio
import base64
import contextlib
import io
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from filmstrip.errors import BadVideo, FilmstripError, InvalidField, StorageFull, TooLarge
from filmstrip.video import read_frames
from filmstrip.wire import VIDEO_HEADER_BYTES
from frontend import video_uploads
from frontend.schema import VideoUploadQuery, parse_query
from frontend.settings import Settings
from frontend.store import Kind, Store
from frontend.video_uploads import DecodedVideo, VideoDecoder
from frontend.video_worker import Fitting
from tests.support.processes import worker_processes
from tests.support.server import Frames
from tests.unit.filmstrip.video_samples import SAMPLES, encode

LIMIT = 256 * 2**20
LOSSLESS = {"crf": "0", "preset": "ultrafast"}


def numbered(num_frames: int, height: int = 48, width: int = 64) -> Frames:
    """Frames of one grey each, which says their index: 4 levels apart."""
    return np.broadcast_to(
        (np.arange(num_frames, dtype=np.uint8) * 4)[:, None, None, None], (num_frames, height, width, 3)
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Settings(data_dir=tmp_path / "data"))
    store.open()
    yield store
    store.close()


def contents(data: bytes | Path) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else data


class Uploads:
    """Uploads of files to a store, without HTTP."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.decoder = VideoDecoder(store)

    async def __call__(
        self, data: bytes | Path, query: str = "", limit_bytes: int = LIMIT, owner: str = ""
    ) -> DecodedVideo:
        values = dict(part.split("=") for part in query.split("&") if part)
        with self.store.draft(Kind.ASSET, owner=owner) as spool:
            await spool.append(contents(data))
            return await self.decoder.decode(spool, parse_query(VideoUploadQuery, values), limit_bytes)

    async def frames(self, data: bytes | Path, query: str = "") -> Frames:
        decoded = await self(data, query)
        stored = self.store.find(decoded.file.name, Kind.VIDEO)
        assert stored.shape == decoded.shape
        raw = stored.path.read_bytes()[VIDEO_HEADER_BYTES:]
        return np.frombuffer(raw, np.uint8).reshape(decoded.shape)

    async def refusal(self, data: bytes | Path, query: str = "", kind: type[FilmstripError] = BadVideo) -> str:
        with pytest.raises(kind) as caught:
            await self(data, query)
        assert str(self.store._root) not in caught.value.message
        assert "/proc" not in caught.value.message
        return caught.value.message


@pytest.fixture
async def upload(store: Store) -> AsyncIterator[Uploads]:
    """After each test, no process and no half-written file is left."""
    yield Uploads(store)
    assert decoders() == []
    assert list((store._root / "partial").iterdir()) == []


def decoders() -> list[psutil.Process]:
    return worker_processes("video_worker")


async def begun(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.01)


def levels(frames: Frames) -> list[int]:
    """The indices that numbered frames say."""
    return [round(float(frame.mean()) / 4) for frame in frames]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    encode(folder / "count.mp4", numbered(50), options=LOSSLESS, pixel_format="yuv444p")
    encode(folder / "long.mp4", numbered(60).repeat(10, 0), options=LOSSLESS | {"g": "25"}, pixel_format="yuv444p")
    return folder


# -- What is decoded ------------------------------------------------------------------------------------------------

CODECS = {
    "mp4": [("libx264", "yuv420p"), ("libx265", "yuv420p10le"), ("mpeg4", "yuv420p"), ("libsvtav1", "yuv420p")],
    "mov": [("prores_ks", "yuv422p10le"), ("libx264", "yuv420p")],
    "webm": [("libvpx", "yuv420p"), ("libvpx-vp9", "yuv420p"), ("libvpx-vp9", "yuva420p")],
    "mkv": [("libx264", "yuv420p"), ("libx265", "yuv420p")],
}


async def test_every_supported_format_is_decoded_as_the_command_does(
    upload: Uploads, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for suffix, codecs in CODECS.items():
        for codec, pixel_format in codecs:
            with subtests.test(f"{codec} in {suffix}"):
                path = encode(
                    tmp_path / f"{codec}-{pixel_format}.{suffix}", numbered(8), codec=codec, pixel_format=pixel_format
                )
                assert np.array_equal(await upload.frames(path), np.stack(list(read_frames(path))))


@pytest.mark.parametrize("name", ["mirrored.mp4", "wide_pixels.mp4", "pq_white.mp4", "two_rates.mp4"])
async def test_what_a_file_says_of_its_frames_holds(upload: Uploads, name: str) -> None:
    """Orientation, the shape of pixels, HDR and a variable frame rate."""
    assert np.array_equal(await upload.frames(SAMPLES / name), np.stack(list(read_frames(SAMPLES / name))))


async def test_the_answer_has_the_rate_and_a_small_first_frame(upload: Uploads, tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mp4", numbered(4, 480, 640) + 40, rate=Fraction(30000, 1001))
    decoded = await upload(path)
    assert decoded.fps == pytest.approx(29.97, abs=0.001)
    assert decoded.file.fps == Fraction(30000, 1001)
    upload.store.close()
    upload.store.open()
    assert upload.store.find(decoded.file.name, Kind.VIDEO).fps == Fraction(30000, 1001)
    assert decoded.shape == (4, 480, 640, 3)
    kind, _, data = decoded.poster.partition(",")
    assert kind == "data:image/webp;base64"
    assert len(data) <= 32 * 2**10 * 4 / 3 + 4
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (256, 192)
        assert np.abs(np.asarray(image).astype(int) - 40).mean() < 3


# -- Parts, rates and sizes -----------------------------------------------------------------------------------------


async def test_a_part_at_another_rate(upload: Uploads, clips: Path, subtests: pytest.Subtests) -> None:
    """The clip has 50 frames at 25 a second."""
    cases = {
        "": list(range(50)),
        "max_frames=3": [0, 1, 2],
        "start=1": list(range(25, 50)),
        "end=0.2": list(range(5)),
        "start=0.4&end=0.6": list(range(10, 15)),
        "start=0.41&end=0.59": list(range(11, 15)),
        "start=1.6&max_frames=4": [40, 41, 42, 43],
        "fps=5&max_frames=4": [2, 7, 12, 17],
        "fps=50&end=0.1": [0, 0, 1, 1, 2],
        "fps=25/2&end=0.4": [0, 2, 4, 6, 8],
        "start=1.9&end=100": [48, 49],
    }
    for query, expected in cases.items():
        with subtests.test(query):
            assert levels(await upload.frames(clips / "count.mp4", query)) == expected


async def test_a_late_part_of_a_long_file_is_the_same_as_without_seeking(upload: Uploads, clips: Path) -> None:
    """The frames of 24 s at 25 a second; 10 in a row are equal."""
    for start, first in ((2.4, 6), (12, 30), (20.01, 50)):
        frames = await upload.frames(clips / "long.mp4", f"start={start}&max_frames=10&fps=25")
        assert levels(frames)[0] == first
    frames = await upload.frames(clips / "long.mp4", "start=12&end=13")
    assert levels(frames) == [index // 10 for index in range(300, 325)]


async def test_frames_are_brought_to_a_size(upload: Uploads, tmp_path: Path, subtests: pytest.Subtests) -> None:
    picture = np.zeros((1, 60, 120, 3), np.uint8)
    picture[:, :, 40:80] = 200  # a bright third in the middle
    path = encode(tmp_path / "x.mp4", picture.repeat(2, 0), options=LOSSLESS, pixel_format="yuv444p")
    cases = {
        "width=60": (30, 60),
        "height=120": (120, 240),
        "width=60&height=60": (60, 60),
        "width=60&height=60&fit=contain": (60, 60),
        "width=240&height=40&fit=contain": (40, 240),
        "width=1&height=1": (1, 1),
        "width=7&height=5&fit=contain": (5, 7),
        "width=30&height=80&fit=fill": (80, 30),
    }
    for query, size in cases.items():
        with subtests.test(query):
            assert (await upload.frames(path, query)).shape == (2, *size, 3)
    covered = (await upload.frames(path, "width=60&height=60"))[0, :, :, 0]
    assert (covered[:, 12:48] > 190).all()  # 40 of 60 columns are bright, and none is black above or below
    contained = (await upload.frames(path, "width=60&height=60&fit=contain"))[0, :, :, 0]
    assert not contained[:14].any()
    assert not contained[46:].any()
    assert (contained[16:44, 24:36] > 190).all()
    filled = (await upload.frames(path, "width=60&height=60&fit=fill"))[0, :, :, 0]
    assert (filled[:, 22:38] > 190).all()  # still a third
    assert not filled[:, :16].any()
    assert not filled[:, 44:].any()


def test_a_frame_is_centred() -> None:
    frame = np.arange(6, dtype=np.uint8).reshape(1, 6, 1).repeat(3, 2)
    assert Fitting(1, 2, (1, 6)).apply(frame)[0, :, 0].tolist() == [2, 3]
    assert Fitting(3, 6, (1, 6)).apply(frame)[:, 1, 0].tolist() == [0, 1, 0]


def test_unsuitable_values_are_refused_by_name(subtests: pytest.Subtests) -> None:
    cases = ("start=-1", "start=nan", "end=inf", "fps=0", "fps=1000", "max_frames=0", "width=0", "height=8193")
    for query in (*cases, "fit=stretch", "format=avi", "max_frames=1.5", "start=x"):
        name, value = query.split("=")
        with subtests.test(query), pytest.raises(InvalidField) as caught:
            parse_query(VideoUploadQuery, {name: value})
        assert caught.value.field == name


async def test_an_empty_part_is_refused(upload: Uploads, clips: Path) -> None:
    assert "no frame" in await upload.refusal(clips / "count.mp4", "start=100")
    assert "greater than start" in await upload.refusal(clips / "count.mp4", "start=2&end=1", InvalidField)


async def test_over_the_limit_the_message_names_values_that_fit(upload: Uploads, clips: Path) -> None:
    frame_bytes = 48 * 64 * 3
    for limit in (frame_bytes * 20, frame_bytes * 49):
        with pytest.raises(TooLarge) as caught:
            await upload(clips / "count.mp4", limit_bytes=limit)
        message = caught.value.message
        max_frames = int(message.partition("max_frames=")[2].split()[0])
        assert max_frames == limit // frame_bytes
        size = message.partition("width=")[2].split()[0]
        for query in (f"max_frames={max_frames}", f"width={size}"):
            await upload(clips / "count.mp4", query, limit_bytes=limit)
    assert (await upload(clips / "count.mp4", limit_bytes=frame_bytes * 50)).shape.frames == 50
    with pytest.raises(TooLarge, match="width="):
        await upload(clips / "count.mp4", limit_bytes=frame_bytes - 1)


# -- Hostile and broken files ---------------------------------------------------------------------------------------


async def test_other_formats_are_refused_by_their_content(
    upload: Uploads, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    video = encode(tmp_path / "x.mp4", numbered(3))
    files = {
        "avi": encode(tmp_path / "x.avi", numbered(3), codec="mpeg4").read_bytes(),
        "gif": encode(tmp_path / "x.gif", numbered(3), codec="gif", pixel_format="rgb8").read_bytes(),
        "ts": encode(tmp_path / "x.ts", numbered(3)).read_bytes(),
        "flv": encode(tmp_path / "x.flv", numbered(3)).read_bytes(),
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n".encode(),
        "hls over http": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
        "concat": f"ffconcat version 1.0\nfile '{video}'\n".encode(),
        "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 96\r\n",
        "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text": b"hello",
        "one byte": b"x",
        "zeros": bytes(10_000),
        "a playlist after a box": b"\0\0\0\x08free#EXTM3U\n" + str(video).encode(),
    }
    for name, data in files.items():
        with subtests.test(name):
            message = await upload.refusal(data)
            if not name.startswith("a playlist"):
                assert message == "the file is not an MP4, MOV, WebM or MKV file"


async def test_other_decoders_are_refused(upload: Uploads, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for codec, pixel_format in (("mjpeg", "yuvj420p"), ("png", "rgb24"), ("qtrle", "rgb24"), ("rawvideo", "yuv420p")):
        with subtests.test(codec):
            path = encode(tmp_path / f"{codec}.mov", numbered(3), codec=codec, pixel_format=pixel_format)
            assert "no decoder" in await upload.refusal(path)


async def test_sound_is_not_a_video_and_a_soundtrack_does_no_harm(upload: Uploads) -> None:
    assert "no video" in await upload.refusal(SAMPLES / "sound_with_cover.m4a")


async def test_truncated_files_are_refused_with_where(upload: Uploads, tmp_path: Path) -> None:
    assert "breaks off" in await upload.refusal(SAMPLES / "truncated.mp4")
    for suffix, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9"), ("mkv", "libx264")):
        noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
        data = encode(tmp_path / f"x.{suffix}", noise, codec=codec).read_bytes()
        for share in (0.001, 0.3, 0.9):
            await upload.refusal(data[: int(len(data) * share)])


def with_boxes(data: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    """An MP4 with its boxes edited: `edit` gets a kind and a content, and gives the new content."""
    nested = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl")
    edited, start = b"", 0
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        content = data[start + 8 : start + size]
        content = with_boxes(content, edit) if kind in nested else edit(kind, content)
        edited += struct.pack(">I4s", 8 + len(content), kind) + content
        start += size
    return edited


def reference_to(path: Path) -> bytes:
    """A data reference to another file, as QuickTime writes it."""
    name = os.fsencode(path)
    name += b"\0" * (len(name) % 2)
    alias = bytes(10) + b"\x01v" + bytes(26) + bytes(12) + b"\x01f" + bytes(62) + bytes(16)
    alias += (
        struct.pack(">2H", 1, 1) + bytes(16) + struct.pack(">2H", 2, len(name)) + name + struct.pack(">2H", 0xFFFF, 0)
    )
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    return struct.pack(">2I", 0, 1) + entry


async def test_a_reference_to_another_file_is_not_followed(upload: Uploads, tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mov", numbered(5), codec="mpeg4").read_bytes()
    assert len(await upload.frames(whole)) == 5
    references = {
        "alias": reference_to(tmp_path / "whole.mov"),
        "url": struct.pack(">2I", 0, 1) + struct.pack(">I4sI", 12 + 21, b"url ", 0) + b"http://127.0.0.1:9/x\0",
    }
    for reference in references.values():
        edited = with_boxes(whole, lambda kind, content: reference if kind == b"dref" else content)  # noqa: B023
        edited = edited[: edited.index(b"mdat") - 4] + edited[edited.index(b"moov") - 4 :]  # without the frames
        await upload.refusal(edited)


async def test_sides_are_limited_before_anything_is_decoded(upload: Uploads, tmp_path: Path) -> None:
    path = encode(tmp_path / "wide.mp4", np.zeros((1, 16, 8194, 3), np.uint8))
    assert "at most 8192 pixels per side" in await upload.refusal(path)
    small = encode(tmp_path / "small.mp4", numbered(3), codec="mpeg4").read_bytes()

    def claim(kind: bytes, content: bytes) -> bytes:
        return content[:40] + struct.pack(">2H", 65535, 65535) + content[44:] if kind == b"stsd" else content

    with contextlib.suppress(FilmstripError):
        assert max((await upload(with_boxes(small, claim))).shape) < 100

    def squeeze(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(10)

    squeezed = encode(tmp_path / "squeezed.mp4", numbered(2, 48, 1024), set_up=squeeze)
    assert "10240x48" in await upload.refusal(squeezed)


async def test_a_small_file_of_huge_frames_costs_a_bounded_amount(upload: Uploads, tmp_path: Path) -> None:
    """A few kilobytes of 4096x4096: over the limit when decoded, and scaled down they are welcome."""
    black = np.zeros((4096, 4096, 3), np.uint8)
    path = encode(tmp_path / "bomb.mp4", (black for _ in range(12)), options={"preset": "ultrafast"})
    assert path.stat().st_size < 2**19
    assert "max_frames=5" in await upload.refusal(path, kind=TooLarge)
    assert (await upload(path, "width=64")).shape == (12, 64, 64, 3)


async def test_absurd_times_cost_a_bounded_amount(upload: Uploads, tmp_path: Path) -> None:
    hour = encode(tmp_path / "hour.mp4", numbered(2), times=[0, 3000], time_base=Fraction(1, 1))
    message = await upload.refusal(hour, "fps=240", TooLarge)
    assert "max_frames" in message
    day = encode(tmp_path / "day.mp4", numbered(2), times=[0, 90_000], time_base=Fraction(1, 1))
    assert "at most 3600 s" in await upload.refusal(day, "fps=1&width=4")
    quick = encode(tmp_path / "quick.mp4", numbered(3), times=[0, 1, 2], time_base=Fraction(1, 1_000_000))
    assert (await upload(quick)).shape.frames == 3


async def test_damaged_files_are_videos_or_refused_but_no_other_error(upload: Uploads, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for suffix, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        whole = encode(tmp_path / f"x.{suffix}", numbered(6), codec=codec).read_bytes()
        for _ in range(6):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 12):
                data[place] = random.integers(0, 256)
            with contextlib.suppress(BadVideo, TooLarge):
                await upload(bytes(data))


@pytest.mark.parametrize(
    ("limits", "query", "words"),
    [
        ({"cpu_s": 0}, "", "too long to decode"),
        ({"memory_bytes": 24 * 2**20}, "", "the "),  # FFmpeg says that the file is damaged
    ],
)
async def test_limits_of_time_and_memory_refuse_a_video(
    upload: Uploads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: dict[str, Any], query: str, words: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
    path = encode(tmp_path / "slow.mp4", noise.repeat(60, 0), options={"preset": "ultrafast"})
    monkeypatch.setattr(video_uploads, "_LIMITS", replace(video_uploads._LIMITS, **limits))
    assert words in await upload.refusal(path, query)


async def test_a_decoder_that_hangs_is_ended(upload: Uploads, monkeypatch: pytest.MonkeyPatch, clips: Path) -> None:
    monkeypatch.setattr(video_uploads, "_WALL_S", 0.01)
    assert "too long to decode" in await upload.refusal(clips / "long.mp4")


@pytest.fixture
async def slow(upload: Uploads, tmp_path: Path) -> AsyncIterator[tuple[asyncio.Task[DecodedVideo], psutil.Process]]:
    """A video that takes a while, and its decoder at work."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
    path = encode(tmp_path / "slow.mp4", noise.repeat(80, 0), options={"preset": "ultrafast"})
    task = asyncio.create_task(upload(path, "width=2048"))
    await begun(decoders)
    yield task, decoders()[0]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, FilmstripError):
        await task


async def test_a_decoder_ends_with_its_client(
    upload: Uploads, slow: tuple[asyncio.Task[DecodedVideo], psutil.Process]
) -> None:
    task, process = slow
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not process.is_running()


async def test_a_decoder_has_a_clean_environment(
    upload: Uploads, slow: tuple[asyncio.Task[DecodedVideo], psutil.Process]
) -> None:
    _, process = slow
    await begun(lambda: process.nice() > os.getpriority(os.PRIO_PROCESS, 0))
    assert not process.net_connections()
    assert not {name for name in process.environ() if name.startswith("FILMSTRIP_")}
    limit = process.rlimit(psutil.RLIMIT_AS)[0]
    assert 2**30 < limit < 3 * 2**30


async def test_a_process_that_dies_is_an_error_for_its_client(
    upload: Uploads, slow: tuple[asyncio.Task[DecodedVideo], psutil.Process]
) -> None:
    task, process = slow
    process.kill()
    with pytest.raises(BadVideo):
        await task


async def test_two_are_decoded_at_once_and_clients_take_turns(upload: Uploads, clips: Path) -> None:
    order: list[str] = []

    async def decode(owner: str) -> None:
        await upload(clips / "count.mp4", owner=owner)
        assert len(decoders()) <= 2
        order.append(owner)

    tasks = [asyncio.create_task(decode("greedy")) for _ in range(6)]
    await asyncio.sleep(0.05)
    await asyncio.gather(*tasks, decode("other"))
    assert "other" in order[:4]


# -- In the store ---------------------------------------------------------------------------------------------------


async def test_a_video_belongs_to_its_client_and_counts(upload: Uploads, clips: Path, store: Store) -> None:
    decoded = await upload(clips / "count.mp4", owner="alice")
    assert decoded.file.owner == "alice"
    assert decoded.file.size_bytes == VIDEO_HEADER_BYTES + decoded.shape.num_bytes == decoded.file.path.stat().st_size
    assert store.find(decoded.file.name, Kind.VIDEO, owner="alice") is decoded.file


async def test_a_full_store_refuses_and_keeps_nothing(upload: Uploads, clips: Path, store: Store) -> None:
    spool = (clips / "count.mp4").stat().st_size
    store._settings = store._settings.model_copy(update={"store_bytes": 49 * 48 * 64 * 3 + spool})
    with pytest.raises(StorageFull):
        await upload(clips / "count.mp4")
    assert list((store._root / "videos").iterdir()) == []
    await upload(clips / "count.mp4", "max_frames=20")


async def test_the_spool_counts_to_the_share_of_its_client(upload: Uploads, clips: Path, store: Store) -> None:
    store._settings = store._settings.model_copy(update={"store_bytes": 4 * 2**20})
    with pytest.raises(StorageFull, match="your share"):
        await upload(bytes(3 * 2**20), owner="alice")
