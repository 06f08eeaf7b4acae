"""`python -m deploy.triton` against the tritonserver of the wheel: as the container does it, without the container."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from frontend.embedded.wheel import find_server, link_backends
from tests.support import http
from tests.support.processes import relay_processes
from tests.support.recovery import eventually
from tests.support.server import MODELS, ROOT, Frames, Frontend, free_port

TRITON_SECRET = "only-the-tests-know"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "deploy.triton", *words]


def ask_health(port: int, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("health", f"--port={port}", *flags),
        cwd=ROOT,
        env=os.environ | {"http_proxy": "http://127.0.0.1:9"},  # a container gets the proxies of its builder
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextlib.contextmanager
def triton(folder: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """The wheel's tritonserver, started by the command of the container."""
    server = find_server()
    backends = link_backends(server, folder / "backends")
    own = (f"--server={server / 'bin' / 'tritonserver'}", f"--backends={backends}")
    with (folder / "triton.log").open("wb") as log:
        process = subprocess.Popen(
            command("start", *own, *flags), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_a_frontend_generates_through_it_with_the_secret(tmp_path: Path, clip: Frames) -> None:
    port, metrics_port = free_port(), free_port()
    prefix = f"filmstrip-test-{port}-"
    secret = tmp_path / "secret"
    secret.write_text(f"{TRITON_SECRET}\n")
    stale = Path("/dev/shm") / f"{prefix}stale"
    stale.touch()
    models = tmp_path / 'it\'s "my" (1) & $HOME; ü'
    models.symlink_to(MODELS)
    chosen = [f"--models={models}"]
    chosen += ["--load=passthrough", "--load=gray", f"--secret-file={secret}", f"--shm-prefix={prefix}"]
    with triton(tmp_path, *chosen, f"--port={port}", f"--metrics-port={metrics_port}") as process:
        eventually(lambda: ask_health(port, f"--secret-file={secret}").returncode == 0, 30)
        assert not stale.exists()
        stranger = ask_health(port)
        assert (stranger.returncode, "restricted" in stranger.stderr) == (1, True)
        metrics = http.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        assert_says_what_is_missing(tmp_path / "stranger", port)
        assert_relays_the_secret(tmp_path / "relayed", port, clip)
        frontend = Frontend(tmp_path, "--triton-url", f"127.0.0.1:{port}", triton_secret=TRITON_SECRET)
        try:
            frontend.wait_healthy()
            with frontend.triton_client() as client:
                assert [client.is_model_ready(name) for name in ("passthrough", "gray", "scribble", "probe")] == [
                    *(True, True),
                    *(False, False),
                ]
            path = frontend.upload(clip)
            made = frontend.generate_frames(pipeline_id="passthrough", prompt="", input_path=path, num_frames=30)
            assert np.array_equal(made, clip)
            assert "gRPC tensors" not in frontend.log()
        finally:
            assert frontend.stop() == 0
        process.terminate()
        assert process.wait(20) == 0
        assert ask_health(port, f"--secret-file={secret}").returncode == 1
    assert 'nv_inference_request_success{model="passthrough"' in metrics
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))


def assert_says_what_is_missing(folder: Path, port: int) -> None:
    folder.mkdir()
    frontend = Frontend(folder, "--triton-url", f"127.0.0.1:{port}", triton_secret="wrong")
    try:
        assert http.get(f"{frontend.url}/health").json()["status"] == "unavailable"
        assert "FILMSTRIP_TRITON_SECRET" in frontend.log()
        assert frontend.post(pipeline_id="gray", prompt="", num_frames=12).status_code == 503
    finally:
        assert frontend.stop() == 0


def assert_relays_the_secret(folder: Path, port: int, clip: Frames) -> None:
    """Without showing it to who lists processes."""
    folder.mkdir()
    address, settings = f"127.0.0.1:{port}", {"shared_memory": False, "triton_secret": TRITON_SECRET}
    frontend = Frontend(folder, "--triton-url", address, **settings)
    try:
        frontend.wait_healthy()
        made = frontend.generate_frames(
            pipeline_id="passthrough", prompt="", input_path=frontend.upload(clip), num_frames=30
        )
        assert np.array_equal(made, clip)
        (relay,) = relay_processes(frontend)
        assert address in relay.cmdline()
        assert not any(TRITON_SECRET in word for word in relay.cmdline())
    finally:
        assert frontend.stop() == 0
