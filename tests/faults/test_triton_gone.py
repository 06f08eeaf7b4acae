"""The embedded Triton is killed or suspended: the client gets an error within seconds, and Triton restarts."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support import http
from tests.support.processes import MAX_ERROR_DELAY_S, chunk_in_progress, error_code, is_running, model_processes
from tests.support.recovery import PROBE, assert_recovers, eventually, is_generating
from tests.support.server import Frontend

GONE = {"triton_unavailable", "sequence_lost", "model_died"}


def kill(frontend: Frontend) -> None:
    os.kill(frontend.triton_pid, signal.SIGKILL)


def wait_for_another(frontend: Frontend, than: int) -> None:
    eventually(lambda: frontend.triton_pid != than)


@pytest.fixture
def suspend_triton() -> Iterator[Callable[[Frontend], psutil.Process]]:
    """Suspend tritonserver as a debugger would; it is resumed after the test."""
    stopped: list[psutil.Process] = []

    def stop(frontend: Frontend) -> psutil.Process:
        stopped.append(psutil.Process(frontend.triton_pid))
        stopped[-1].suspend()
        return stopped[-1]

    yield stop
    for process in stopped:
        if is_running(process):
            process.resume()


# -- Killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2])
def test_killed_in_a_chunk(victim: Frontend, index: int) -> None:
    before = victim.triton_pid
    with assert_recovers(victim):
        with chunk_in_progress(victim, index) as events:
            kill(victim)
            assert error_code(events) == "triton_unavailable"
        assert not is_generating(victim)
        wait_for_another(victim, before)


@pytest.mark.parametrize("num_progress", [1, 7])
def test_killed_between_chunks(victim: Frontend, num_progress: int) -> None:
    """Just after an event was read, when the next chunk may be anywhere."""
    with assert_recovers(victim), victim.stream(**PROBE | {"num_frames": 9 + 12 * 200}) as events:
        for number, (name, _) in enumerate(events, 1):
            assert name == "progress"
            if number == num_progress:
                kill(victim)
                break
        assert error_code(events) in GONE


def test_killed_after_the_last_progress_event(victim: Frontend) -> None:
    """If it is too late to matter, the video is complete."""
    before = set(victim.stored("outputs"))
    pid = victim.triton_pid
    with victim.stream(**PROBE) as events:
        came = []
        for name, data in events:
            came.append((name, data))
            if data.get("chunk") == 3:
                kill(victim)
    name, data = came[-1]
    if name == "complete":
        assert victim.download(data["output_path"]).shape == (33, 64, 96, 3)
        assert len(set(victim.stored("outputs")) - before) == 1
    else:
        assert (name, data["code"] in GONE) == ("error", True)
        assert set(victim.stored("outputs")) == before
    wait_for_another(victim, pid)
    with assert_recovers(victim):
        pass


def test_killed_as_a_generation_begins(victim: Frontend) -> None:
    """Anywhere between the body and the first chunk: a refusal or an error event, never silence."""
    for pause_s in (0, 0.005, 0.02):
        pid = victim.triton_pid
        with assert_recovers(victim):
            with http.stream("POST", f"{victim.url}/api/v1/generate", json=PROBE | {"num_frames": 2000}) as answer:
                time.sleep(pause_s)  # not a wait: it varies the moment of the fault
                os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
                text = answer.read().decode()
            assert time.monotonic() - began < MAX_ERROR_DELAY_S
            if answer.status_code == 200:
                assert '"code": "' in text.split("\n\n")[-2]
                assert text.split("\n\n")[-2].split('"code": "')[1].split('"')[0] in GONE
            else:
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "triton_unavailable"
            wait_for_another(victim, pid)


def test_killed_while_idle(victim: Frontend) -> None:
    before = victim.triton_pid
    family = psutil.Process(before).children(recursive=True)
    with assert_recovers(victim):
        kill(victim)
        wait_for_another(victim, before)
    assert not [process for process in family if is_running(process)]


def test_while_it_comes_back_requests_are_refused_at_once(victim: Frontend) -> None:
    before = victim.triton_pid
    with assert_recovers(victim, inputs=1):
        kill(victim)
        eventually(lambda: http.get(f"{victim.url}/health").status_code == 503)
        assert http.get(f"{victim.url}/health").json() == {
            "status": "starting",
            "generating": False,
            "degraded": [],
            "slots": [{"name": "0", "state": "starting"}],
        }
        began = time.monotonic()
        refused = victim.post(**PROBE)
        assert time.monotonic() - began < MAX_ERROR_DELAY_S
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "triton_unavailable")
        assert victim.upload_data(b"uploads work all the same")
        wait_for_another(victim, before)


def test_killed_repeatedly_while_it_restarts(victim: Frontend) -> None:
    with assert_recovers(victim), chunk_in_progress(victim) as events:
        for _ in range(3):
            before = victim.triton_pid
            kill(victim)
            wait_for_another(victim, before)  # it has begun to start, no more
        assert error_code(events) == "triton_unavailable"


# -- Suspended -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2])
def test_suspended_in_a_chunk_it_is_restarted_at_the_deadline(
    victim: Frontend, suspend_triton: Callable[[Frontend], psutil.Process], index: int
) -> None:
    before = victim.triton_pid
    with assert_recovers(victim):
        with chunk_in_progress(victim, index) as events:
            stopped = suspend_triton(victim)
            assert error_code(events) == "chunk_timeout"
        eventually(lambda: not is_running(stopped))
        wait_for_another(victim, before)


def test_suspended_while_idle_it_is_not_restarted(
    victim: Frontend, suspend_triton: Callable[[Frontend], psutil.Process]
) -> None:
    """Requests are refused until it is resumed: a whole machine may be suspended."""
    with assert_recovers(victim):
        stopped = suspend_triton(victim)
        began = time.monotonic()
        refused = victim.post(**PROBE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "triton_unavailable")
        assert http.get(f"{victim.url}/health", timeout=MAX_ERROR_DELAY_S).status_code == 503
        assert time.monotonic() - began < 2 * MAX_ERROR_DELAY_S
        stopped.resume()
    assert victim.triton_pid == stopped.pid


def test_a_cancel_while_it_is_suspended(victim: Frontend, suspend_triton: Callable[[Frontend], psutil.Process]) -> None:
    """The present chunk is waited for as always, up to its deadline."""
    with assert_recovers(victim), chunk_in_progress(victim, 1) as events:
        suspend_triton(victim)
        assert victim.cancel() == "cancelling"
        assert error_code(events) == "chunk_timeout"


def test_a_client_that_leaves_while_it_is_suspended_frees_the_slot(
    victim: Frontend, suspend_triton: Callable[[Frontend], psutil.Process]
) -> None:
    with assert_recovers(victim):
        with chunk_in_progress(victim, 1):
            suspend_triton(victim)
        began = time.monotonic()
        victim.wait_idle()
        assert time.monotonic() - began < MAX_ERROR_DELAY_S


def test_its_models_end_with_it(victim: Frontend) -> None:
    """Also one that is hung: its memory must be free for the next one."""
    with assert_recovers(victim):
        with chunk_in_progress(victim, prompt="!hang") as events:
            (stub,) = model_processes(victim, "probe")
            kill(victim)
            assert error_code(events) == "triton_unavailable"
        eventually(lambda: not is_running(stub), MAX_ERROR_DELAY_S)
