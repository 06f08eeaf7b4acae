"""The frontend is killed: its processes end, and the next frontend in its data directory cleans up."""

import os
import signal
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from tests.support import http
from tests.support.http import UPLOAD_DATA
from tests.support.processes import MAX_ERROR_DELAY_S, chunk_in_progress, descendants, is_running, relay_processes
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, assert_recovers, assert_serves, eventually, noise
from tests.support.server import Frontend

SHM = Path("/dev/shm")
SENT_BYTES = 2_000_000  # a body goes to disk a MiB at a time


def half_an_upload(frontend: Frontend) -> RawClient:
    """A client with the second half of an upload still to send."""
    client = RawClient(frontend.url)
    client.send_head("POST", UPLOAD_DATA, {"Transfer-Encoding": "chunked"})
    client.send_chunk(bytes(SENT_BYTES))
    partial = frontend.data_dir / "partial"
    eventually(lambda: any(draft.stat().st_size >= 2**20 for draft in partial.iterdir()))
    return client


def kill_the_frontend(frontend: Frontend) -> list[psutil.Process]:
    """Kill it; the processes that it leaves behind."""
    left = descendants(frontend)
    frontend.process.kill()
    frontend.process.wait(10)
    return left


@pytest.mark.parametrize("shared_memory", [True, False])
def test_all_processes_end_and_the_next_start_cleans_up(
    two_models: Path, tmp_path: Path, *, shared_memory: bool
) -> None:
    settings = {"model_repository": two_models, "uploads_in_shm": shared_memory, "shared_memory": shared_memory}
    first = Frontend(tmp_path, "--embedded", **settings)
    left: list[psutil.Process] = []
    try:
        first.wait_healthy()
        video = noise(33)
        output = first.generate(**PROBE)[-1][1]["output_path"]
        made = first.download(output)
        input_path, blob = first.upload(video), first.upload_data(b"kept" * 1000)
        with half_an_upload(first), pytest.raises(httpx.TransportError):  # noqa: PT012, SIM117
            with chunk_in_progress(first, 1, "!hang", input_path=input_path) as events:
                assert bool(relay_processes(first)) == (not shared_memory)
                assert len(first.stored("partial")) == 2
                assert bool(first.stored("work")) == (not shared_memory)
                assert any("--tmp-" in path.name for path in first.all_in_shm()) == shared_memory
                left = kill_the_frontend(first)
                list(events)
        names = {Path(process.cmdline()[0]).name for process in left if is_running(process)}
        eventually(lambda: not any(is_running(process) for process in left), MAX_ERROR_DELAY_S)
        assert names <= {"tritonserver", "triton_python_backend_stub", Path(psutil.Process().exe()).name, "python"}
    finally:
        for process in [process for process in left if is_running(process)]:
            process.kill()
        first.stop()
    assert first.stored("partial")
    assert first.all_in_shm()  # a crash releases nothing by itself

    second = Frontend(tmp_path, "--embedded", **settings)
    try:
        assert second.stored("partial", "work") == []
        assert [path for path in second.all_in_shm() if "--triton-" not in path.name] == []
        second.wait_healthy()
        assert np.array_equal(second.download(output), made)
        request = {"pipeline_id": "passthrough", "prompt": "", "num_frames": 33}
        if shared_memory:  # uploads were in memory: they are gone, and the client gets an error
            for field, name in (("input_path", input_path), ("data_blob_path", blob)):
                assert second.post(**request | {field: name}).json()["error"]["code"] == "unknown_path"
        else:
            assert np.array_equal(second.generate_frames(**request, input_path=input_path), video)
            assert second.stored("blobs") == [f"blobs/{blob}"]
        with assert_recovers(second):
            pass
    finally:
        assert second.stop() == 0
    assert second.all_in_shm() == []


def test_what_it_leaves_behind_does_not_keep_its_port(two_models: Path, tmp_path: Path) -> None:
    """Else clients would connect to a dead server, and the next one could not listen."""
    frontend = Frontend(tmp_path, "--embedded", model_repository=two_models, shared_memory=False)
    left: list[psutil.Process] = []
    try:
        frontend.wait_healthy()
        frontend.generate(**PROBE)
        assert relay_processes(frontend)
        for process in descendants(frontend):
            process.send_signal(signal.SIGSTOP)  # whatever makes it slow to end
        left = kill_the_frontend(frontend)
        address = ("127.0.0.1", int(urlsplit(frontend.url).port or 0))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        socket.create_server(address).close()
        assert all(is_running(process) for process in left)
    finally:
        for process in left:
            process.kill()
        frontend.stop()


@pytest.mark.parametrize("delay_s", [0, 0.05, 0.1, 0.2])
def test_killed_while_its_triton_starts(two_models: Path, tmp_path: Path, delay_s: float) -> None:
    """Models that Triton has not contacted yet do not watch it: without the guard they would wait forever."""
    frontend = Frontend(tmp_path, "--embedded", model_repository=two_models)
    left: list[psutil.Process] = []
    try:
        triton = psutil.Process(frontend.triton_pid)
        eventually(lambda: triton.name() == "tritonserver" and len(triton.children()) > 1)  # the guard and a model's
        time.sleep(delay_s)
        left = kill_the_frontend(frontend)
        eventually(lambda: not any(is_running(process) for process in left), MAX_ERROR_DELAY_S)
    finally:
        for process in [process for process in left if is_running(process)]:
            process.kill()
        frontend.stop()
        for path in frontend.all_in_shm():
            path.unlink()


def test_files_keep_their_names_and_age_and_damaged_ones_go(victim: Frontend, tmp_path: Path) -> None:
    flags = ("--triton-url", victim.triton_url)
    first = Frontend(tmp_path, *flags, store_ttl_s=1000)
    first.wait_healthy()
    outputs = [first.generate(**PROBE)[-1][1]["output_path"] for _ in range(4)]
    blobs = [first.upload_data(b"x"), first.upload_data(b"y")]
    kill_the_frontend(first)
    folder = first.data_dir / "outputs"
    whole, truncated, emptied, longer = outputs
    os.truncate(folder / truncated, 1000)
    os.truncate(folder / emptied, 0)
    with (folder / longer).open("ab") as file:
        file.write(b"x")
    for name, age_s in ((f"outputs/{whole}", 900), (f"blobs/{blobs[0]}", 900), (f"blobs/{blobs[1]}", 1100)):
        os.utime(first.data_dir / name, (time.time() - age_s,) * 2)

    second = Frontend(tmp_path, *flags, store_ttl_s=1000)
    try:
        second.wait_healthy()
        assert second.stored() == sorted([f"outputs/{whole}", f"blobs/{blobs[0]}"])
        assert (folder / whole).stat().st_mtime == pytest.approx(time.time() - 900, abs=30)
        assert second.download(whole).shape == (33, 64, 96, 3)
        for name in (truncated, emptied, longer):
            answer = http.get(f"{second.url}/api/v1/generate/download", params={"path": name})
            assert answer.json()["error"]["code"] == "unknown_path"
    finally:
        assert second.stop() == 0
    third = Frontend(tmp_path, *flags, store_ttl_s=800)  # the time left is counted from the file, not from the start
    try:
        third.wait_healthy()
        assert third.stored() == []
    finally:
        third.stop()


STRAYS = {
    "a file": lambda path: path.write_bytes(b"x"),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere"),
    "a link to a file of the system": lambda path: path.symlink_to("/etc/passwd"),
    "a folder": lambda path: path.mkdir(),
    "a folder with files": lambda path: (path.mkdir(), (path / "inside").touch()),
    "a pipe": os.mkfifo,
}


def test_the_start_survives_stray_things(victim: Frontend, tmp_path: Path) -> None:
    for folder in ("videos", "outputs", "partial", "work"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number, put in enumerate(STRAYS.values()):
            put(tmp_path / "data" / folder / f"lost+found-{number}")
            put(tmp_path / "data" / folder / f"video-{number:032x}")  # a name like ours
    (tmp_path / "data" / "notes.txt").write_text("not in a folder of the store")
    kept = tmp_path / "data" / "outputs" / f"output-{'2' * 32}"
    kept.write_bytes(struct.pack("<5I", 4, 1, 2, 2, 3) + bytes(12))
    frontend = Frontend(tmp_path, "--triton-url", victim.triton_url)
    try:
        frontend.wait_healthy()
        frontend.probe_log = victim.probe_log
        assert frontend.download(kept.name).shape == (1, 2, 2, 3)
        for number in range(len(STRAYS)):
            for name in (f"lost+found-{number}", f"video-{number:032x}"):
                assert frontend.post(**PROBE | {"input_path": name}).json()["error"]["code"] == "unknown_path"
        assert (tmp_path / "data" / "notes.txt").is_file()
        assert Path("/etc/passwd").is_file()
        assert_serves(frontend)
    finally:
        assert frontend.stop() == 0
