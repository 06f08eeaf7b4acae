"""An external Triton starts late, ends and comes back; the relay to it dies."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from tests.support import http
from tests.support.processes import chunk_in_progress, error_code, is_running, relay_processes
from tests.support.recovery import PROBE, assert_recovers, eventually, is_generating
from tests.support.server import Frontend, free_port, frontend_on


@contextlib.contextmanager
def triton_on(port: int, like: Frontend, log_path: Path, probe_log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a tritonserver on a port, with the command line of another one; stop it with SIGTERM."""
    running = psutil.Process(like.triton_pid)
    prefix = f"filmstrip-test-{port}-"
    instead = {
        "--grpc-address=": "--grpc-address=127.0.0.1",
        "--grpc-port=": f"--grpc-port={port}",
        "--backend-config=python,shm-region-prefix-name=": f"--backend-config=python,shm-region-prefix-name={prefix}",
    }
    command = [next((new for old, new in instead.items() if flag.startswith(old)), flag) for flag in running.cmdline()]
    assert set(instead.values()) <= set(command)
    command.append("--load-model=*")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=running.environ() | {"PROBE_LOG": str(probe_log)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
        process.terminate()
        process.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for left in Path("/dev/shm").glob(f"{prefix}*"):
            left.unlink(missing_ok=True)


def status(frontend: Frontend) -> tuple[int, str]:
    answer = http.get(f"{frontend.url}/health", timeout=10)
    return answer.status_code, str(answer.json()["status"])


def assert_works_without_triton(frontend: Frontend) -> None:
    assert status(frontend) == (503, "unavailable")
    refused = frontend.post(**PROBE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "triton_unavailable")
    assert http.get(f"{frontend.url}/api/v1/pipelines").status_code == 503
    assert frontend.upload_data(b"uploads work all the same")
    assert not is_generating(frontend)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_triton_comes_late_and_comes_back(
    victim: Frontend, start_frontend: Callable[..., Frontend], tmp_path: Path, *, shared_memory: bool
) -> None:
    port = free_port()
    frontend = start_frontend("--triton-url", f"127.0.0.1:{port}", shared_memory=shared_memory)
    assert_works_without_triton(frontend)
    for fault in (signal.SIGTERM, signal.SIGKILL):
        with triton_on(port, victim, tmp_path / "triton.log", frontend.probe_log) as triton:
            frontend.wait_healthy()
            with assert_recovers(frontend):
                pass
            if fault == signal.SIGKILL:
                with chunk_in_progress(frontend, 1) as events:
                    triton.kill()
                    assert error_code(events) == "triton_unavailable"
        assert_works_without_triton(frontend)
        assert frontend.stored("partial", "work") == []
    with triton_on(port, victim, tmp_path / "triton.log", frontend.probe_log):
        frontend.wait_healthy()
        with assert_recovers(frontend):
            pass
    assert "Traceback" not in frontend.log()


def test_triton_forgets_the_memory_of_a_generation(victim: Frontend) -> None:
    """As a new Triton would that the frontend's next call already reaches."""
    with assert_recovers(victim), chunk_in_progress(victim, 1, "!sleep 1") as events:
        # It keeps the region of the present chunk; the next chunk uses another one.
        with victim.triton_client() as client, contextlib.suppress(InferenceServerException):
            client.unregister_system_shared_memory()
        assert error_code(events) == "sequence_lost"


def test_triton_is_replaced_between_two_chunks(
    victim: Frontend, start_frontend: Callable[..., Frontend], tmp_path: Path
) -> None:
    """The frontend is suspended meanwhile, and finds a Triton that knows neither the sequence nor its memory."""
    port = free_port()
    frontend = start_frontend("--triton-url", f"127.0.0.1:{port}")
    process = psutil.Process(frontend.process.pid)
    try:
        with triton_on(port, victim, tmp_path / "triton.log", frontend.probe_log) as triton:
            frontend.wait_healthy()
            with frontend.stream(**PROBE | {"num_frames": 9 + 12 * 400}) as events:
                assert next(iter(events))[0] == "progress"
                process.suspend()
                triton.kill()
                triton.wait(10)
                with triton_on(port, victim, tmp_path / "triton.log", frontend.probe_log):
                    eventually(lambda: is_ready(frontend))
                    process.resume()
                    assert error_code(events) in {"triton_unavailable", "sequence_lost"}
                    with assert_recovers(frontend):
                        pass
    finally:
        process.resume()


def is_ready(frontend: Frontend) -> bool:
    with contextlib.suppress(Exception), frontend.triton_client() as client:
        return bool(client.is_server_ready(client_timeout=2))
    return False


# -- The relay --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_grpc(victim: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that sends arrays through a relay."""
    settings = {"shared_memory": False, "chunk_timeout_s": 3, "sequence_end_timeout_s": 2}
    with frontend_on(victim, tmp_path_factory.mktemp("by-grpc"), **settings) as frontend:
        with assert_recovers(frontend):
            pass
        yield frontend


@pytest.mark.parametrize("index", [0, 2])
def test_the_relay_is_killed_in_a_chunk(by_grpc: Frontend, index: int) -> None:
    with assert_recovers(by_grpc), chunk_in_progress(by_grpc, index) as events:
        (relay,) = relay_processes(by_grpc)
        relay.kill()
        assert error_code(events) == "triton_unavailable"
    assert [process.pid for process in relay_processes(by_grpc)] != [relay.pid]


@pytest.mark.parametrize("num_progress", [1, 7])
def test_the_relay_is_killed_between_chunks(by_grpc: Frontend, num_progress: int) -> None:
    """A new relay may take the next chunk, because Triton still has the sequence. A chunk in the old one is lost."""
    request = PROBE | {"num_frames": 9 + 12 * 200}
    before = set(by_grpc.stored("outputs"))
    with by_grpc.stream(**request) as events:
        for number, _ in enumerate(events, 1):
            if number == num_progress:
                relay_processes(by_grpc)[0].kill()
                break
        name, data = list(events)[-1]
    if name == "error":
        assert data["code"] == "triton_unavailable"
        assert set(by_grpc.stored("outputs")) == before
    else:
        assert name == "complete"
    with assert_recovers(by_grpc):
        pass


def test_the_relay_is_killed_while_idle(by_grpc: Frontend) -> None:
    with assert_recovers(by_grpc):
        (relay,) = relay_processes(by_grpc)
        relay.kill()
        eventually(lambda: not is_running(relay))


def test_the_relay_is_suspended_in_a_chunk(by_grpc: Frontend) -> None:
    with chunk_in_progress(by_grpc) as events:
        (relay,) = relay_processes(by_grpc)
        relay.suspend()
        try:
            eventually(lambda: not is_generating(by_grpc), 9)
            assert error_code(events) == "chunk_timeout"
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                relay.resume()
