"""A chunk's arrays on real files: the right bytes in the staging buffer, or left in the upload."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmstrip.contract import Features, Mode, PipelineSpec
from filmstrip.errors import DiskFull, UnknownPath
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape, pack_video_header
from frontend.array_plan import InputSizes, UploadField
from frontend.chunks import OpenUpload, StagingBuffer, buffer_layout, open_buffers, open_uploads, stage_inputs
from frontend.images import RequestImage
from frontend.inference import FileSlice, TensorRef
from frontend.plan import Chain, Plan, make_plan
from frontend.schema import GenerateRequest
from frontend.settings import Settings
from frontend.store import SHM_DIR, Kind, Store, StoredFile
from frontend.triton import SharedMemoryRefused, TritonClient

FACTS = PipelineSpec(
    "tiny",
    (Mode.TEXT, Mode.VIDEO),
    chunk_size=12,
    first_chunk_size=9,
    height=2,
    width=2,
    latent_frames=3,
    features=Features(cache=True, vace=True),
)
PROCESSOR = PipelineSpec("gray", (Mode.VIDEO,), 12, 12, features=Features(frame_processor=True))
BLOB = np.random.default_rng(0).integers(0, 256, 8192, np.uint8)
VIDEO = np.random.default_rng(1).integers(0, 256, (40, 2, 2, 3), np.uint8)
PIXELS = {name: np.full((side, side + 1, 3), side, np.uint8) for name, side in (("a", 3), ("b", 5))}


def image(pixels: npt.NDArray[np.uint8]) -> RequestImage:
    """An image that was decoded already."""

    async def write(place: FileSlice) -> None:
        assert place.num_bytes == pixels.nbytes
        with place.path.open("r+b") as file:
            os.pwrite(file.fileno(), pixels.tobytes(), place.offset)

    return RequestImage(pixels.shape, write)


IMAGES = {name: image(pixels) for name, pixels in PIXELS.items()}
Open = Callable[..., dict[UploadField, OpenUpload]]


def make(
    num_frames: int, specs: Sequence[Mapping[str, Any]] = (), num_input: int = 0, chain: Chain | None = None
) -> Plan:
    body = {"pipeline_id": "tiny", "prompt": "x", "num_frames": num_frames, "chunk_specs": list(specs)}
    shape = VideoShape(*VIDEO[:num_input].shape) if num_input else None
    uploads = InputSizes(shape, BLOB.size, {name: image.shape for name, image in IMAGES.items()})
    return make_plan(GenerateRequest.model_validate(body), chain or Chain(FACTS), uploads, 2**30)


def array(name: str, offset: int, *shape: int, **fields: Any) -> dict[str, Any]:
    return {f"{name}_shape": list(shape), f"{name}_offset": offset, **fields}


def floats(offset: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.frombuffer(BLOB.tobytes(), "<f4", math.prod(shape), offset).reshape(shape)


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[Open]:
    """Open the input, cut to some frames, and the blob; their regions in Triton are given."""
    opened: dict[UploadField, OpenUpload] = {}

    def open_(num_input: int, region: str | None = None) -> dict[UploadField, OpenUpload]:
        shape = VideoShape(*VIDEO[:num_input].shape)
        for source, kind, data in (
            (UploadField.INPUT, Kind.VIDEO, pack_video_header(shape) + VIDEO[:num_input].tobytes()),
            (UploadField.BLOB, Kind.BLOB, BLOB.tobytes()),
        ):
            if source in opened:
                os.close(opened[source].fd)
            path = tmp_path / f"{kind}-{'1' * 32}"
            path.write_bytes(data)
            file = StoredFile(path.name, kind, "", path, len(data), None, path.stat().st_ino, 0)
            opened[source] = OpenUpload(file, os.open(path, os.O_RDONLY), region and f"{region} {kind}")
        return opened

    yield open_
    for upload in opened.values():
        os.close(upload.fd)


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[StagingBuffer]:
    """A staging buffer that Triton has registered."""
    made = StagingBuffer(100_000, 0o600)
    made.open(lambda: tmp_path / "buffer")
    made.region = "buffer"
    yield made
    made.close()


def content(tensor: TensorRef) -> npt.NDArray[Any]:
    """A tensor as Triton would read it: from the file that its place names."""
    raw = tensor.place.path.read_bytes()[tensor.place.offset :][: tensor.place.num_bytes]
    return np.frombuffer(raw, {"UINT8": "u1", "FP32": "<f4"}[tensor.spec.dtype]).reshape(tensor.shape)


def same(tensor: TensorRef, expected: npt.NDArray[Any]) -> bool:
    return tensor.shape == expected.shape and content(tensor).tobytes() == expected.tobytes()


# -- Bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_input", [1, 5, 12, 20, 36, 40])
async def test_the_whole_input_is_looped_and_padded(buffer: StagingBuffer, uploads: Open, num_input: int) -> None:
    plan = make(31, num_input=num_input)
    files = uploads(num_input)
    played = [VIDEO[frame % num_input] for frame in range(max(31, num_input))]
    for index, chunk in enumerate(plan.chunks):
        frames = played[12 * index :][:12]
        expected = np.stack(frames + frames[-1:] * (12 - len(frames)))
        assert same((await stage_inputs(chunk, buffer, files, {}))["input_video"], expected)


@pytest.mark.parametrize("given_frames", [1, 5, 12, 13, 30])
async def test_a_chunks_own_video_is_trimmed_or_padded(buffer: StagingBuffer, uploads: Open, given_frames: int) -> None:
    plan = make(24, [{"chunk": 1, **array("input_video", 7, given_frames, 2, 2, 3)}], num_input=40)
    own = BLOB[7 : 7 + given_frames * 12].reshape(given_frames, 2, 2, 3)
    found = await stage_inputs(plan.chunks[1], buffer, uploads(40), {})
    assert same(found["input_video"], own[np.minimum(np.arange(12), given_frames - 1)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given_frames", [1, 12, 13, 30])
@pytest.mark.parametrize("locked", [True, False])
async def test_vace_arrays_are_trimmed_channel_by_channel(
    buffer: StagingBuffer, uploads: Open, channels: int, given_frames: int, *, locked: bool
) -> None:
    shapes = {"vace_frames": (1, channels, given_frames, 2, 2), "vace_masks": (1, 1, given_frames, 2, 2)}
    spec = array("vace_frames", 3, *shapes["vace_frames"]) | array("vace_masks", 2001, *shapes["vace_masks"])
    plan = make(9, [{"chunk": 0, "vace_temporally_locked": locked, **spec}])
    found = await stage_inputs(plan.chunks[0], buffer, uploads(1), {})
    kept = 12 if locked else None
    assert same(found["vace_frames"], floats(3, *shapes["vace_frames"])[:, :, :kept])
    assert same(found["vace_masks"], floats(2001, *shapes["vace_masks"])[:, :, :kept])


async def test_images_are_decoded_into_the_buffer(buffer: StagingBuffer, uploads: Open) -> None:
    spec = {"chunk": 0, "first_frame_image": "a", "last_frame_image": "b", "vace_ref_images": ["b", "a"]}
    found = await stage_inputs(make(9, [spec]).chunks[0], buffer, uploads(1), IMAGES)
    assert same(found["first_frame_image"], PIXELS["a"])
    assert same(found["last_frame_image"], PIXELS["b"])
    assert same(found["vace_ref_images"], np.concatenate([PIXELS["b"].ravel(), PIXELS["a"].ravel()]))


async def test_a_chunk_of_text_has_no_arrays(buffer: StagingBuffer, uploads: Open) -> None:
    assert await stage_inputs(make(9).chunks[0], buffer, uploads(1), {}) == {}


async def test_an_upload_that_was_truncated_is_found_out(buffer: StagingBuffer, uploads: Open) -> None:
    plan = make(12, num_input=12)
    files = uploads(12)
    os.truncate(files[UploadField.INPUT].file.path, VIDEO_HEADER_BYTES + 12 * 12 - 1)
    with pytest.raises(UnknownPath) as caught:
        await stage_inputs(plan.chunks[0], buffer, files, {})
    assert caught.value.field == "input_path"


# -- Places -------------------------------------------------------------------------------------------------


async def test_an_array_in_one_piece_stays_where_triton_has_the_upload(buffer: StagingBuffer, uploads: Open) -> None:
    plan = make(24, [{"chunk": 1, **array("vace_frames", 5, 1, 3, 12, 2, 2)}], num_input=40)
    files = uploads(40, "shm")
    found = await stage_inputs(plan.chunks[1], buffer, files, {})
    video = files[UploadField.INPUT].path
    assert found["input_video"].place == FileSlice(video, "shm video", VIDEO_HEADER_BYTES + 12 * 12, 12 * 12)
    assert found["vace_frames"].place == FileSlice(files[UploadField.BLOB].path, "shm blob", 5, 12 * 48)
    assert same(found["input_video"], VIDEO[12:24])
    assert same(found["vace_frames"], floats(5, 1, 3, 12, 2, 2))


async def test_an_array_in_pieces_is_copied_though_triton_has_the_upload(buffer: StagingBuffer, uploads: Open) -> None:
    found = await stage_inputs(make(12, num_input=5).chunks[0], buffer, uploads(5, "shm"), {})
    assert found["input_video"].place == FileSlice(buffer.path, "buffer", 0, 144)
    assert same(found["input_video"], VIDEO[np.arange(12) % 5])


async def test_an_upload_that_triton_does_not_have_is_copied_into_a_buffer(
    buffer: StagingBuffer, uploads: Open
) -> None:
    found = await stage_inputs(make(12, num_input=12).chunks[0], buffer, uploads(12), {})
    assert found["input_video"].place == FileSlice(buffer.path, "buffer", 0, 144)


async def test_nothing_in_one_piece_is_copied_into_a_buffer_on_disk(buffer: StagingBuffer, uploads: Open) -> None:
    buffer.region = None
    files = uploads(40)
    plan = make(24, [{"chunk": 1, **array("vace_masks", 1, 1, 1, 13, 2, 2)}], num_input=40)
    found = await stage_inputs(plan.chunks[1], buffer, files, {})
    assert found["input_video"].place == FileSlice(files[UploadField.INPUT].path, None, VIDEO_HEADER_BYTES + 144, 144)
    assert found["vace_masks"].place.path == files[UploadField.BLOB].path
    looped = await stage_inputs(make(12, num_input=5).chunks[0], buffer, uploads(5), {})
    assert looped["input_video"].place == FileSlice(buffer.path, None, 0, 144)


def spans(found: Mapping[str, TensorRef], buffer: StagingBuffer) -> list[tuple[int, int]]:
    places = [tensor.place for tensor in found.values() if tensor.place.path == buffer.path]
    return [(place.offset, place.offset + place.num_bytes) for place in places]


ARRAYS = st.fixed_dictionaries(
    {},
    optional={
        "input_video": st.tuples(st.integers(1, 20), st.just(2), st.just(2), st.just(3)),
        "vace_frames": st.tuples(st.just(1), st.sampled_from([1, 3]), st.integers(1, 20), st.just(2), st.just(2)),
        "vace_masks": st.tuples(st.just(1), st.just(1), st.integers(1, 20), st.just(2), st.just(2)),
        "first_frame_image": st.sampled_from("ab"),
        "last_frame_image": st.sampled_from("ab"),
        "vace_ref_images": st.lists(st.sampled_from("ab"), max_size=3),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(ARRAYS, min_size=1, max_size=4), st.integers(0, 2), st.sampled_from([0, 1, 7, 40]), st.booleans()
)  # fmt: skip
def test_a_layout_holds_every_chunk_without_overlap(
    buffer: StagingBuffer, uploads: Open, arrays: list[dict[str, Any]], processors: int, num_input: int, locked: bool
) -> None:
    specs = []
    for index, chosen in enumerate(arrays):
        spec: dict[str, Any] = {"chunk": index, "vace_temporally_locked": locked}
        for name, value in chosen.items():
            spec |= array(name, 3, *value) if isinstance(value, tuple) else {name: value}
        specs.append(spec)
    before = PROCESSOR if processors and num_input else None
    plan = make(12 * len(arrays), specs, num_input, Chain(FACTS, before, PROCESSOR if processors > 1 else None))
    frames_offsets, num_bytes = buffer_layout(plan)
    files = uploads(max(num_input, 1))
    assert len(frames_offsets) == len(plan.chain.pipelines)
    for chunk in plan.chunks:
        found = asyncio.run(stage_inputs(chunk, buffer, files, IMAGES))
        taken = [*spans(found, buffer)]
        assert len(taken) == len(chunk.tensors) + len(chunk.images) == len(found)
        taken += [(offset, offset + chunk.frames_shape.num_bytes) for offset in frames_offsets]
        taken.sort()
        assert all(start % 64 == 0 for start, _ in taken)
        assert all(end <= start for (_, end), (start, _) in pairwise(taken))
        assert taken[-1][1] <= num_bytes


# -- Staging buffers and uploads as a generation opens them -------------------------------------------------


class Registry:
    """The part of Triton that staging uses: it takes the first files that it is given, or none."""

    def __init__(self, takes: int, *, takes_shared_memory: bool = True) -> None:
        self.takes = takes
        self.takes_shared_memory = takes_shared_memory
        self.registered_now: dict[str, tuple[Path, int]] = {}

    @asynccontextmanager
    async def registered(self, num_bytes: int, *paths: Path) -> AsyncIterator[tuple[str, ...]]:
        if self.takes < len(paths):
            raise SharedMemoryRefused("full")
        self.takes -= len(paths)
        for path in paths:
            self.registered_now[path.name] = (path, num_bytes)
        yield tuple(path.name for path in paths)
        for path in paths:
            del self.registered_now[path.name]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(Settings(data_dir=tmp_path / "data", uploads_in_shm=True))
    opened.open()
    yield opened
    opened.close()
    left = leftovers(opened, tmp_path)
    for path in left:
        path.unlink()


def leftovers(store: Store, tmp_path: Path) -> list[Path]:
    prefix = store.shm_prefix("x").removesuffix("-x-")
    return [*SHM_DIR.glob(f"{prefix}*"), *(tmp_path / "data" / "work").iterdir()]


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
async def test_what_triton_maps_is_open_to_its_group(store: Store) -> None:
    with store.draft(Kind.BLOB, 4) as draft:
        await draft.append(b"data")
        file = draft.commit()
    async with open_buffers(1000, 2, store, cast("TritonClient", Registry(2))) as buffers:
        assert [path.stat().st_mode & 0o777 for path in (file.path, *(buffer.path for buffer in buffers))] == [
            0o660
        ] * 3


async def test_buffers_lie_in_shared_memory_that_triton_has(store: Store, tmp_path: Path) -> None:
    registry = Registry(2)
    open_files = os.listdir("/proc/self/fd")
    async with open_buffers(1000, 2, store, cast("TritonClient", registry)) as buffers:
        assert {buffer.region for buffer in buffers} == registry.registered_now.keys()
        assert len({buffer.path for buffer in buffers}) == 2
        for buffer in buffers:
            assert buffer.path.parent == SHM_DIR
            buffer.view(buffer.slice(10, 3))[:] = b"abc"
            assert buffer.path.read_bytes() == bytes(10) + b"abc" + bytes(987)
    assert registry.registered_now == {}
    assert leftovers(store, tmp_path) == []
    assert os.listdir("/proc/self/fd") == open_files


@pytest.mark.parametrize("registry", [Registry(0), Registry(1), Registry(2, takes_shared_memory=False)])
async def test_buffers_lie_on_disk_where_triton_takes_none(store: Store, tmp_path: Path, registry: Registry) -> None:
    async with open_buffers(1000, 2, store, cast("TritonClient", registry)) as buffers:
        assert registry.registered_now == {}
        assert [buffer.region for buffer in buffers] == [None, None]
        assert sorted(leftovers(store, tmp_path)) == sorted(buffer.path for buffer in buffers)
        assert [buffer.path.stat().st_size for buffer in buffers] == [1000, 1000]
        assert buffers[0].path.parent == tmp_path / "data" / "work"
    assert leftovers(store, tmp_path) == []


async def test_buffers_that_find_no_room_anywhere_leave_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DiskFull):
        async with open_buffers(2**60, 2, store, cast("TritonClient", Registry(2))):
            pass
    assert leftovers(store, tmp_path) == []


@pytest.mark.parametrize(("takes", "in_shm"), [(1, True), (0, True), (1, False)])
async def test_uploads_stay_open_and_are_registered_where_they_lie_in_shared_memory(
    store: Store, takes: int, in_shm: bool
) -> None:
    with store.draft(Kind.BLOB, 4 if in_shm else 0) as draft:
        await draft.append(b"data")
        file = draft.commit()
    registry = Registry(takes)
    async with open_uploads({UploadField.BLOB: file}, cast("TritonClient", registry)) as opened:
        upload = opened[UploadField.BLOB]
        assert upload.region == (file.path.name if takes and in_shm else None)
        file.path.unlink()
        assert os.pread(upload.fd, 10, 0) == b"data"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(upload.fd)
    assert registry.registered_now == {}


async def test_an_upload_that_is_gone_is_named(store: Store) -> None:
    with store.draft(Kind.BLOB) as draft:
        await draft.append(b"data")
        file = draft.commit()
    file.path.unlink()
    with pytest.raises(UnknownPath, match="data_blob_path") as caught:
        async with open_uploads({UploadField.BLOB: file}, cast("TritonClient", Registry(0))):
            pass
    assert caught.value.field == "data_blob_path"
