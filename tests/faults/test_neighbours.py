"""Another user of the same machine cannot reach the embedded Triton, shared memory or files."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import chunk_in_progress, descendants
from tests.support.server import Frontend

NOBODY = 65534
SECRET = "only-the-tests-know"
# Run by a process of ours that becomes another user first, where it may: with only its own files it needs none to read.
TRY = """
import json, os, socket, sys
sockets, *paths = json.load(sys.stdin)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
opened = []
for path in paths:
    try:
        if os.path.isdir(path):
            opened.append([path, *os.listdir(path)])
        else:
            os.close(os.open(path, os.O_RDONLY))
            opened.append(path)
    except OSError:
        pass
for path in sockets:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        opened.append(path)
    except OSError:
        pass
json.dump(opened, sys.stdout)
"""


def open_to_another(sockets: list[Path], paths: list[Path]) -> list[str]:
    """Those that another user can open: tried by one where we may become one, else by their modes."""
    if os.geteuid() != 0:
        return [str(path) for path in (*sockets, *paths) if others_may_open(path)]
    asked = json.dumps([[str(path) for path in sockets], *map(str, paths)])
    done = subprocess.run([sys.executable, "-c", TRY], input=asked, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def others_may_open(path: Path) -> bool:
    on_the_way = all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
    return on_the_way and bool(path.stat().st_mode & stat.S_IROTH)


def test_another_user_is_one_that_can_open_what_is_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Else the test below would say nothing."""
    public = Path("/dev/shm") / f"filmstrip-test-public-{os.getpid()}"
    public.touch()
    public.chmod(0o644)
    try:
        assert open_to_another([], [public]) == [str(public)]
    finally:
        public.unlink()


def test_another_user_cannot_call_triton_or_see_pixels(
    start_frontend: Callable[..., Frontend], two_models: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "data").mkdir(mode=0o755)  # of an older server
    frontend = start_frontend(
        "--embedded", model_repository=two_models, uploads_in_shm=True, triton_secret=SECRET, api_keys=""
    )
    frontend.wait_healthy()
    assert f"{frontend.data_dir} was accessible to other users" in frontend.log()
    frontend.upload_data(b"in shared memory")
    frontend.generate_frames(pipeline_id="probe", prompt="x", num_frames=9)
    socket = Path(frontend.triton_url.removeprefix("unix:"))
    with chunk_in_progress(frontend, 1):
        processes = [frontend.process.pid, *(process.pid for process in descendants(frontend))]
        ours = {str(path) for pid in processes for path in mapped(pid)}
        shm = [path for path in Path("/dev/shm").iterdir() if str(path) in ours]
        assert len(shm) > len(frontend.in_shm()) >= 2  # Triton's for each model; staging buffers and the upload
        secret = [*shm, socket.parent, frontend.data_dir, *(Path(f"/proc/{pid}/environ") for pid in processes)]
        secret += [path for path in frontend.data_dir.rglob("*") if path.is_file()]
        assert open_to_another([socket], secret) == []
        assert [stat.filemode(path.stat().st_mode) for path in shm] == ["-rw-------"] * len(shm)
        commands = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes)
        assert b"tritonserver" in commands
        assert SECRET.encode() not in commands


def mapped(pid: int) -> list[str]:
    """Files of shared memory that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[5] for line in lines if "/dev/shm/" in line]
