"""The embedded Triton is killed or stands still: the client is told within seconds, and it comes back by itself."""

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
def stand_still() -> Iterator[Callable[[Frontend], psutil.Process]]:
    """Stop tritonserver as a debugger would; what still stands still after the test goes on."""
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
    """Just when an event was read: the next chunk may be anywhere on its way."""
    with assert_recovers(victim), victim.stream(**PROBE | {"num_frames": 9 + 12 * 200}) as events:
        for number, (name, _) in enumerate(events, 1):
            assert name == "progress"
            if number == num_progress:
                kill(victim)
                break
        assert error_code(events) in GONE


def test_killed_as_the_last_chunk_is_told(victim: Frontend) -> None:
    """It may be too late to hurt: then the video is whole."""
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
    """Anywhere between the body and the first chunk: a refusal or an error event, and never silence."""
    for pause_s in (0, 0.005, 0.02):
        pid = victim.triton_pid
        with assert_recovers(victim):
            with http.stream("POST", f"{victim.url}/api/v1/generate", json=PROBE | {"num_frames": 2000}) as answer:
                time.sleep(pause_s)  # not a wait: where the blow falls
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
        assert http.get(f"{victim.url}/health").json() == {"status": "starting", "generating": False, "degraded": []}
        began = time.monotonic()
        refused = victim.post(**PROBE)
        assert time.monotonic() - began < MAX_ERROR_DELAY_S
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "triton_unavailable")
        assert victim.upload_data(b"uploads work all the same")
        wait_for_another(victim, before)


def test_killed_again_and_again_while_it_comes_back(victim: Frontend) -> None:
    with assert_recovers(victim), chunk_in_progress(victim) as events:
        for _ in range(3):
            before = victim.triton_pid
            kill(victim)
            wait_for_another(victim, before)  # it has begun to start, no more
        assert error_code(events) == "triton_unavailable"


# -- Stopped, so that it hangs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2])
def test_standing_still_in_a_chunk_ends_at_the_deadline_and_is_started_anew(
    victim: Frontend, stand_still: Callable[[Frontend], psutil.Process], index: int
) -> None:
    before = victim.triton_pid
    with assert_recovers(victim):
        with chunk_in_progress(victim, index) as events:
            stopped = stand_still(victim)
            assert error_code(events) == "chunk_timeout"
        eventually(lambda: not is_running(stopped))
        wait_for_another(victim, before)


def test_standing_still_while_idle_refuses_and_goes_on_later(
    victim: Frontend, stand_still: Callable[[Frontend], psutil.Process]
) -> None:
    """Nothing runs that it could lose, so it is not started anew: a machine may well sleep."""
    with assert_recovers(victim):
        stopped = stand_still(victim)
        began = time.monotonic()
        refused = victim.post(**PROBE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "triton_unavailable")
        assert http.get(f"{victim.url}/health", timeout=MAX_ERROR_DELAY_S).status_code == 503
        assert time.monotonic() - began < 2 * MAX_ERROR_DELAY_S
        stopped.resume()
    assert victim.triton_pid == stopped.pid


def test_a_cancel_while_it_stands_still_ends_too(
    victim: Frontend, stand_still: Callable[[Frontend], psutil.Process]
) -> None:
    """The chunk under way is waited for as ever, up to its deadline."""
    with assert_recovers(victim), chunk_in_progress(victim, 1) as events:
        stand_still(victim)
        assert victim.cancel() == "cancelling"
        assert error_code(events) == "chunk_timeout"


def test_a_client_that_leaves_while_it_stands_still_gives_the_slot_back(
    victim: Frontend, stand_still: Callable[[Frontend], psutil.Process]
) -> None:
    with assert_recovers(victim):
        with chunk_in_progress(victim, 1):
            stand_still(victim)
        began = time.monotonic()
        victim.wait_idle()
        assert time.monotonic() - began < MAX_ERROR_DELAY_S


def test_its_models_end_with_it(victim: Frontend) -> None:
    """Also the one that is at work, deaf to anything: its memory must be free for the next."""
    with assert_recovers(victim):
        with chunk_in_progress(victim, prompt="!hang") as events:
            (stub,) = model_processes(victim, "probe")
            kill(victim)
            assert error_code(events) == "triton_unavailable"
        eventually(lambda: not is_running(stub), MAX_ERROR_DELAY_S)
