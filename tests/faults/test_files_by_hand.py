"""Stored files that somebody deletes, truncates or adds by hand: the client gets an error, never wrong data."""

import contextlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import http
from tests.support.processes import MAX_ERROR_DELAY_S, chunk_in_progress, error_code
from tests.support.recovery import PROBE, assert_recovers, eventually, is_generating, noise
from tests.support.server import Events, Frames, Frontend, frontend_on

SHM = Path("/dev/shm")
ELSEWHERE = tempfile.TemporaryDirectory()


def replace_by_link(path: Path) -> None:
    """Replace a file with a symbolic link to one of the same size outside the data directory."""
    there = Path(ELSEWHERE.name) / path.name
    there.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    path.unlink()
    path.symlink_to(there)


HARMS: dict[str, Callable[[Path], None]] = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, 20 + 5000),
    "emptied": lambda path: os.truncate(path, 0),
    "replaced by a link": replace_by_link,
}
BY_HAND = pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)


@pytest.fixture(scope="module")
def on_disk(victim: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(victim, tmp_path_factory.mktemp("on-disk")) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def by_grpc(victim: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(victim, tmp_path_factory.mktemp("by-grpc"), shared_memory=False, chunk_timeout_s=3) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def in_memory(victim: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(victim, tmp_path_factory.mktemp("in-memory"), uploads_in_shm=True) as frontend:
        yield frontend


PLACES = ("on_disk", "by_grpc", "in_memory")


@pytest.fixture(params=PLACES)
def anywhere(request: pytest.FixtureRequest) -> Frontend:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Frontend)
    return found


def path_of(frontend: Frontend, name: str) -> Path:
    """The path of a stored file."""
    (found,) = [*frontend.data_dir.glob(f"*s/{name}"), *SHM.glob(f"filmstrip-*-{name}")]
    return found


def used_from(frontend: Frontend, path: str, num_frames: int) -> dict[str, object]:
    return {"pipeline_id": "passthrough", "prompt": "", "num_frames": num_frames, "input_path": path}


# -- Inputs -----------------------------------------------------------------------------------------------------


@BY_HAND
def test_an_input_is_harmed_before_a_generation(anywhere: Frontend, harm: Callable[[Path], None]) -> None:
    with assert_recovers(anywhere):
        video, blob = anywhere.upload(noise(30)), anywhere.upload_data(bytes(20_000))
        for name, field in ((video, "input_path"), (blob, "data_blob_path")):
            harm(path_of(anywhere, name))
            refused = anywhere.post(**PROBE | {field: name})
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "unknown_path"
            assert refused.json()["error"]["field"] == field


@contextlib.contextmanager
def harmed_in_chunk_0(frontend: Frontend, video: Frames, harm: Callable[[Path], None]) -> Iterator[Events]:
    """A generation whose input is harmed while chunk 0 is with the model."""
    name = frontend.upload(video)
    with chunk_in_progress(frontend, 0, "!sleep 0.5", input_path=name, num_frames=len(video)) as events:
        harm(path_of(frontend, name))
        yield events


@pytest.mark.parametrize(
    "place",
    ["on_disk", "in_memory", "by_grpc"],
)
def test_an_input_is_deleted_in_a_generation_which_completes(request: pytest.FixtureRequest, place: str) -> None:
    frontend: Frontend = request.getfixturevalue(place)
    video = noise(96)
    with assert_recovers(frontend, outputs=1), harmed_in_chunk_0(frontend, video, HARMS["deleted"]) as events:
        name, data = list(events)[-1]
        assert name == "complete", data
        assert np.array_equal(frontend.download(data["output_path"]), video)


@pytest.mark.parametrize("harm", ["truncated", "emptied"])
def test_an_input_is_truncated_in_a_generation(on_disk: Frontend, harm: str) -> None:
    with assert_recovers(on_disk, inputs=1), harmed_in_chunk_0(on_disk, noise(96), HARMS[harm]) as events:
        *_, (name, data) = list(events)
        assert (name, data["code"]) == ("error", "unknown_path")
        assert "input_path" in data["error"]


def test_an_input_is_truncated_in_a_generation_by_grpc(by_grpc: Frontend) -> None:
    with harmed_in_chunk_0(by_grpc, noise(96), HARMS["truncated"]) as events:
        eventually(lambda: not is_generating(by_grpc), 8)
        assert error_code(events) == "unknown_path"


@pytest.mark.parametrize("harm", ["truncated", "emptied"])
def test_an_input_in_shared_memory_is_truncated_in_a_generation(
    victim: Frontend, in_memory: Frontend, harm: str
) -> None:
    """Triton dies when a file that it has mapped is truncated: an error event, and Triton restarts."""
    path = in_memory.upload(noise(96))
    with assert_recovers(in_memory):
        with chunk_in_progress(in_memory, 0, "!sleep 0.5", input_path=path, num_frames=96) as events:
            HARMS[harm](path_of(in_memory, path))
            assert error_code(events) in {"unknown_path", "triton_unavailable", "sequence_lost", "model_died"}
        eventually(lambda: http.get(f"{victim.url}/health").status_code == 200)


# -- Outputs ----------------------------------------------------------------------------------------------------


def get(frontend: Frontend, output: str) -> httpx.Response:
    return http.get(f"{frontend.url}/api/v1/generate/download", params={"path": output})


@BY_HAND
def test_an_output_is_harmed_before_a_download(on_disk: Frontend, harm: Callable[[Path], None]) -> None:
    with assert_recovers(on_disk):
        output = on_disk.generate(**PROBE)[-1][1]["output_path"]
        harm(path_of(on_disk, output))
        for _ in range(2):
            assert get(on_disk, output).status_code == 404
            assert get(on_disk, output).json()["error"]["code"] == "unknown_path"


LARGE = {"pipeline_id": "probe", "prompt": "x", "num_frames": 64, "height": 512, "width": 512}  # 48 MiB: no buffer


def test_an_output_is_deleted_in_a_download_which_completes(on_disk: Frontend) -> None:
    with assert_recovers(on_disk):
        output = on_disk.generate(**LARGE)[-1][1]["output_path"]
        whole = path_of(on_disk, output).read_bytes()
        address = f"{on_disk.url}/api/v1/generate/download"
        with http.stream("GET", address, params={"path": output}) as answer:
            pieces = answer.iter_raw()
            first = next(pieces)
            path_of(on_disk, output).unlink()
            assert first + b"".join(pieces) == whole
        assert get(on_disk, output).status_code == 404


def test_an_output_is_truncated_in_a_download_which_ends_short(on_disk: Frontend) -> None:
    with assert_recovers(on_disk):
        output = on_disk.generate(**LARGE)[-1][1]["output_path"]
        address = f"{on_disk.url}/api/v1/generate/download"
        began = time.monotonic()
        with http.stream("GET", address, params={"path": output}) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            os.truncate(path_of(on_disk, output), 2**20)
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                list(pieces)
        assert time.monotonic() - began < MAX_ERROR_DELAY_S
        assert get(on_disk, output).status_code == 404


# -- Folders ----------------------------------------------------------------------------------------------------


def test_stray_files_are_never_served(on_disk: Frontend, victim: Frontend, tmp_path: Path) -> None:
    header = struct.pack("<5I", 4, 1, 2, 2, 3)
    strays = [on_disk.data_dir / f"{kind}s" / f"{kind}-{'1' * 32}" for kind in ("video", "blob", "asset", "output")]
    with assert_recovers(on_disk):
        made = on_disk.generate(**PROBE)[-1][1]["output_path"]
        for stray in strays:
            stray.write_bytes(header + bytes(12))
        strays += [on_disk.data_dir / "outputs" / made.replace("output-", "x"), on_disk.data_dir / "outputs" / "a.raw"]
        for stray in strays[4:]:
            os.link(path_of(on_disk, made), stray)
        for stray in strays:
            for name in (stray.name, f"{stray.parent.name}/{stray.name}", str(stray)):
                assert get(on_disk, name).status_code == 404
                for field in ("input_path", "data_blob_path"):
                    assert on_disk.post(**PROBE | {field: name}).status_code == 404
                image = on_disk.post(**PROBE, chunk_specs=[{"chunk": 0, "first_frame_image": name}])
                assert image.status_code in (404, 422)
        for stray in (*strays, path_of(on_disk, made)):
            stray.unlink()


def test_the_data_directory_is_removed_under_the_server(victim: Frontend, tmp_path: Path) -> None:
    with frontend_on(victim, tmp_path) as frontend:
        frontend.probe_log = victim.probe_log
        name = frontend.upload(noise(33))
        with chunk_in_progress(frontend, 1, "!sleep 0.5", input_path=name) as events:
            shutil.rmtree(frontend.data_dir)
            assert error_code(events) in {"internal_error", "disk_full"}
        assert http.get(f"{frontend.url}/health").json()["generating"] is False
        assert frontend.post(**PROBE | {"input_path": name}).status_code == 404
        assert frontend.upload_data(b"x")  # the folders are created again
        with assert_recovers(frontend):
            pass
        assert frontend.log().count("Traceback") <= 1
