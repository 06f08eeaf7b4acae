"""The disk or shared memory is full: a refusal, an error with a code, or another transport; nothing else suffers."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support import http
from tests.support.http import ASSETS, UPLOAD, UPLOAD_DATA
from tests.support.mounts import disk_filled, mounted_frontend, path_inside
from tests.support.processes import chunk_in_progress, error_code
from tests.support.raw_client import RawClient
from tests.support.recovery import assert_recovers, eventually, noise
from tests.support.server import ROOT, Frontend

MIB = 2**20
SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def small_disk(victim: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend whose data directory is a disk of 16 MiB, all of which it may fill."""
    folder = tmp_path_factory.mktemp("small-disk")
    disk = {folder / "data": f"size={16 * MIB}"}
    with mounted_frontend(
        folder, "--triton-url", victim.triton_url, mounts=disk, store_disk_share=1, store_bytes=2**40
    ) as frontend:
        frontend.probe_log = victim.probe_log
        yield frontend


def hashes(frontend: Frontend) -> dict[str, str]:
    """What is stored, by name."""
    return {name: hashlib.sha256((frontend.data_dir / name).read_bytes()).hexdigest() for name in frontend.stored()}


def image(num_pixels: int) -> bytes:
    """A PNG of about three bytes a pixel."""
    file = io.BytesIO()
    side = int(num_pixels**0.5)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


BODIES = {
    "upload": noise(200).tobytes(),
    "upload-data": noise(200).tobytes(),
    "asset": image(1_200_000),
}
PATHS = {"upload": UPLOAD, "upload-data": UPLOAD_DATA, "asset": ASSETS}
SHAPE = {"X-Video-Frames": "200", "X-Video-Height": "64", "X-Video-Width": "96"}


def upload_on_filling_disk(frontend: Frontend, what: str, disk: Path, *, chunked: bool) -> httpx.Response:
    """Send half a body, fill the disk once part of it is written, then send the rest; the response."""
    body = BODIES[what]
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
    with RawClient(frontend.url) as client:
        send = client.send_chunk if chunked else client.send
        client.send_head("POST", PATHS[what], SHAPE | framing)
        send(body[: len(body) // 2])
        partial = frontend.data_dir / "partial"
        eventually(lambda: sum(draft.stat().st_size for draft in partial.iterdir()) >= MIB)
        with disk_filled(disk):
            send(body[len(body) // 2 :])
            if chunked:
                client.send_chunk(b"")
            response = client.read_head()
            return httpx.Response(response.status, content=response.read())


def assert_refused(answer: httpx.Response, code: str) -> None:
    assert answer.status_code == 507, answer.text
    assert answer.json()["error"]["code"] == code
    assert "/" not in answer.json()["detail"]


# -- The disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["upload-data", "asset"])
def test_the_disk_fills_up_in_an_upload_of_unknown_size(small_disk: Frontend, what: str) -> None:
    small_disk.upload_data(b"of another client")
    before = hashes(small_disk)
    with assert_recovers(small_disk):
        answer = upload_on_filling_disk(small_disk, what, small_disk.data_dir, chunked=True)
        assert_refused(answer, "storage_full")
        assert hashes(small_disk) == before
    assert small_disk.upload_data(BODIES["upload-data"])


@pytest.mark.parametrize("what", BODIES)
def test_an_upload_of_known_size_has_its_room_from_the_start(small_disk: Frontend, what: str) -> None:
    with assert_recovers(small_disk, inputs=1):
        answer = upload_on_filling_disk(small_disk, what, small_disk.data_dir, chunked=False)
        assert answer.status_code == 200, answer.text
    for name in small_disk.stored("videos", "blobs", "assets"):
        (small_disk.data_dir / name).unlink()


def test_on_a_full_disk_uploads_are_refused_before_they_are_read(small_disk: Frontend) -> None:
    before = hashes(small_disk)
    with assert_recovers(small_disk):
        with disk_filled(small_disk.data_dir):
            for content in (bytes(MIB), iter([bytes(MIB)])):  # with and without a length
                answer = http.post(f"{small_disk.url}/api/v1/generate/upload-data", content=content)
                assert_refused(answer, "storage_full")
            assert_refused(small_disk.post(pipeline_id="probe", prompt="x"), "storage_full")
        assert hashes(small_disk) == before


def test_a_generation_has_its_room_from_the_start(small_disk: Frontend) -> None:
    with assert_recovers(small_disk, outputs=1), chunk_in_progress(small_disk, 1, "!sleep 0.5") as events:
        with disk_filled(small_disk.data_dir):
            *_, (name, data) = list(events)
            assert name == "complete", data
        assert small_disk.download(data["output_path"]).shape == (33, 64, 96, 3)


def test_finished_videos_can_be_had_from_a_full_disk(small_disk: Frontend) -> None:
    with assert_recovers(small_disk, outputs=1):
        _, data = small_disk.generate(pipeline_id="probe", prompt="x", num_frames=33)[-1]
        with disk_filled(small_disk.data_dir):
            assert small_disk.download(data["output_path"]).shape == (33, 64, 96, 3)


def test_no_room_for_the_arrays_of_a_chunk(victim: Frontend, tmp_path: Path) -> None:
    """Without shared memory, the staging buffers are on disk."""
    disk = {tmp_path / "data": f"size={16 * MIB}"}
    settings = {"shared_memory": False, "store_disk_share": 1}
    output_bytes = 9 * 64 * 96 * 3
    with (
        mounted_frontend(tmp_path, "--triton-url", victim.triton_url, mounts=disk, **settings) as frontend,
        assert_recovers(frontend),
        disk_filled(frontend.data_dir, leave_bytes=2 * output_bytes),  # two staging buffers take more
    ):
        assert error_code(frontend.generate(pipeline_id="probe", prompt="x", num_frames=9)) == "disk_full"


def test_no_room_for_another_file(victim: Frontend, tmp_path: Path) -> None:
    """A disk can run out of files before it runs out of bytes."""
    disk = {tmp_path / "data": f"size={16 * MIB},nr_inodes=32"}
    with mounted_frontend(tmp_path, "--triton-url", victim.triton_url, mounts=disk, store_disk_share=1) as frontend:
        stray = [frontend.data_dir / f"stray-{number}" for number in range(32)]
        with pytest.raises(OSError, match="No space"):  # noqa: PT012
            for path in stray:
                path.touch()
        assert_refused(http.post(f"{frontend.url}/api/v1/generate/upload-data", content=b"x"), "disk_full")
        assert_refused(frontend.post(pipeline_id="probe", prompt="x", num_frames=9), "disk_full")
        for path in stray:
            path.unlink(missing_ok=True)
        with assert_recovers(frontend, inputs=1):
            frontend.upload_data(b"x")


def test_the_share_of_the_free_disk(victim: Frontend, tmp_path: Path) -> None:
    """The limits in bytes and files are in test_uploads.py; this one needs a disk of a known size."""
    disk = {tmp_path / "data": f"size={16 * MIB}"}
    with (
        mounted_frontend(tmp_path, "--triton-url", victim.triton_url, mounts=disk, store_disk_share=0.5) as frontend,
        assert_recovers(frontend, inputs=1),
    ):
        address = f"{frontend.url}/api/v1/generate/upload-data"
        assert_refused(http.post(address, content=bytes(9 * MIB)), "storage_full")
        frontend.upload_data(bytes(4 * MIB))  # counts once, not in what is free too
        assert_refused(http.post(address, content=bytes(5 * MIB)), "storage_full")
        big = {"pipeline_id": "probe", "prompt": "x", "num_frames": 64, "height": 256, "width": 256}  # 12 MiB
        assert_refused(frontend.post(**big), "storage_full")


# -- Shared memory ----------------------------------------------------------------------------------------------


def test_without_room_for_staging_buffers_arrays_go_by_grpc(tmp_path: Path) -> None:
    """An embedded Triton whose /dev/shm has room for its model's 64 MiB, and not much more."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "passthrough").symlink_to(ROOT / "model_repository" / "passthrough")
    shm = {SHM: f"size={80 * MIB}"}
    with mounted_frontend(
        tmp_path, "--embedded", mounts=shm, model_repository=tmp_path / "models", log_level="INFO"
    ) as frontend:
        for side, by_grpc in ((64, False), (512, True)):
            video = noise(25, side, side)
            path = frontend.upload(video)
            made = frontend.generate_frames(pipeline_id="passthrough", prompt="", num_frames=25, input_path=path)
            assert np.array_equal(made, video)
            assert ("arrays go to Triton as gRPC tensors" in frontend.log()) == by_grpc
        assert "No space left on device" in frontend.log()
        assert frontend.stored("partial", "work") == []
        assert not list(path_inside(frontend, SHM).glob("*-tmp-*"))


@pytest.fixture(scope="module")
def apart(victim: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend whose /dev/shm is not its Triton's, as in two containers; it has 16 MiB."""
    folder = tmp_path_factory.mktemp("apart")
    shm = {SHM: f"size={16 * MIB}"}
    with mounted_frontend(folder, "--triton-url", victim.triton_url, mounts=shm, uploads_in_shm=True) as frontend:
        frontend.probe_log = victim.probe_log
        yield frontend


def test_shared_memory_that_is_not_tritons_is_refused_and_not_used(apart: Frontend) -> None:
    video = noise(30)
    with assert_recovers(apart, outputs=1):
        path = apart.upload(video)
        assert (path_inside(apart, SHM) / next(iter(files_of(apart)))).stat().st_size == 20 + video.nbytes
        made = apart.generate_frames(pipeline_id="passthrough", prompt="", num_frames=70, input_path=path)
        assert np.array_equal(made, video[np.arange(70) % 30])
    assert "is copied chunk by chunk" in apart.log()
    assert "arrays go to Triton as gRPC tensors" in apart.log()
    assert len(files_of(apart)) == 1  # the upload


def files_of(frontend: Frontend) -> list[str]:
    return [path.name for path in path_inside(frontend, SHM).glob("filmstrip-*")]


def test_uploads_go_to_disk_when_shared_memory_is_full(apart: Frontend) -> None:
    video = noise(31)
    before = files_of(apart)
    with assert_recovers(apart, inputs=1, outputs=1), disk_filled(path_inside(apart, SHM)):
        path = apart.upload(video)
        assert (apart.data_dir / "videos" / path).is_file()
        made = apart.generate_frames(pipeline_id="passthrough", prompt="", num_frames=31, input_path=path)
        assert np.array_equal(made, video)
    assert files_of(apart) == before


def test_shared_memory_fills_up_in_an_upload(apart: Frontend) -> None:
    before = files_of(apart)
    with assert_recovers(apart):
        body = BODIES["upload"]
        with RawClient(apart.url) as client:
            client.send_head("POST", UPLOAD_DATA, {"Content-Length": str(len(body))})
            client.send(body[: 3 * MIB // 2])
            eventually(lambda: set(files_of(apart)) - set(before))
            (new,) = set(files_of(apart)) - set(before)
            eventually(lambda: (path_inside(apart, SHM) / new).stat().st_size >= MIB)
            with disk_filled(path_inside(apart, SHM)):
                client.send(body[3 * MIB // 2 :])
                status, error = client.read_json()
        assert (status, error["error"]["code"]) == (507, "disk_full")
    assert files_of(apart) == before
