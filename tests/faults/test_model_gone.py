"""A model's process dies, hangs or returns invalid outputs, in any chunk and at any place in the chain."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import http
from tests.support.processes import MAX_ERROR_DELAY_S, chunk_in_progress, error_code, is_running, model_processes
from tests.support.recovery import PROBE, all_models_loaded, assert_recovers, eventually, is_generating, noise
from tests.support.server import ROOT, Events, Frames, Frontend, frontend_on

CHAINS = {
    "alone": {"pipeline_id": "faulty"},
    "pre-processor": {"pipeline_id": "passthrough", "pre_processor_id": "faulty"},
    "post-processor": {"pipeline_id": "passthrough", "post_processor_id": "faulty"},
}


def model_process(frontend: Frontend, model: str) -> psutil.Process:
    (stub,) = model_processes(frontend, model)
    return stub


def num_aborts(frontend: Frontend) -> int:
    """How often Triton itself has aborted."""
    return frontend.log().count("tritonserver exited with status -6")


def assert_died(frontend: Frontend, events: Events, aborts_before: int) -> None:
    """Check how a generation ends whose model's process was killed.

    If the process held the lock of the memory that it shares with Triton, Triton itself aborts (SIGABRT).
    """
    code = error_code(events)
    if code == "triton_unavailable":
        eventually(lambda: num_aborts(frontend) > aborts_before)
    else:
        assert code == "model_died"


def kill_and_wait_for_another(frontend: Frontend, model: str) -> None:
    """Kill a model's process and wait until there is another one; its model may still be loading."""
    eventually(lambda: all_models_loaded(frontend))  # one that is killed while it starts stays unloaded
    stub = model_process(frontend, model)
    stub.kill()
    eventually(lambda: [process.pid for process in model_processes(frontend, model)] not in ([], [stub.pid]))


# -- A process that is killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2])
def test_killed_in_a_chunk(victim: Frontend, index: int) -> None:
    triton, aborts = victim.triton_pid, num_aborts(victim)
    with assert_recovers(victim), chunk_in_progress(victim, index) as events:
        model_process(victim, "probe").kill()
        assert_died(victim, events, aborts)
    eventually(lambda: victim.triton_pid != triton)


@pytest.mark.parametrize("num_progress", [1, 7])
def test_killed_between_chunks(victim: Frontend, num_progress: int) -> None:
    triton, aborts = victim.triton_pid, num_aborts(victim)
    stub = model_process(victim, "probe")
    with assert_recovers(victim), victim.stream(**PROBE | {"num_frames": 9 + 12 * 200}) as events:
        for number, (name, _) in enumerate(events, 1):
            assert name == "progress"
            if number == num_progress:
                stub.kill()
                break
        assert_died(victim, events, aborts)
    eventually(lambda: victim.triton_pid != triton)


def test_killed_while_idle_it_is_replaced(victim: Frontend, clip: Frames) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim, inputs=1, outputs=1):
        path = victim.upload(clip)
        kill_and_wait_for_another(victim, "passthrough")
        frames = victim.generate_frames(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
        assert np.array_equal(frames, clip[:12])
    eventually(lambda: victim.triton_pid != triton)


def test_killed_while_idle_and_asked_for_at_once(victim: Frontend, clip: Frames) -> None:
    """Before anyone notices, a request is refused, fails with a code, or is served by the new process."""
    path = victim.upload(clip)
    for _ in range(2):
        before = set(victim.stored("outputs"))
        model_process(victim, "passthrough").kill()
        answer = victim.post(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
        assert answer.status_code in (200, 503)
        if '"output_path"' not in answer.text:
            assert any(code in answer.text for code in ("model_died", "load_failed", "triton_unavailable"))
            assert set(victim.stored("outputs")) == before
        eventually(lambda: model_processes(victim, "passthrough"))
        with assert_recovers(victim, outputs=1):
            frames = victim.generate_frames(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
            assert np.array_equal(frames, clip[:12])


def test_killed_while_it_is_loaded(start_frontend: Callable[..., Frontend], two_models: Path) -> None:
    """After a second death, or one at its start, the model stays unloaded until it is requested."""
    frontend = start_frontend("--embedded", model_repository=two_models)
    frontend.wait_healthy()
    with assert_recovers(frontend):
        kill_and_wait_for_another(frontend, "probe")
        model_process(frontend, "probe").kill()
        eventually(lambda: "probe is not served: " in frontend.log())
        frontend.wait_healthy()
        assert frontend.post(**PROBE).json()["error"]["code"] == "load_failed"
        assert http.post(f"{frontend.url}/api/v1/pipeline/load", json={"pipeline_ids": ["probe"]}).status_code == 200


def test_the_process_of_another_model_is_replaced_during_a_generation(victim: Frontend) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim, outputs=1), chunk_in_progress(victim, 1, "!sleep 2") as events:
        kill_and_wait_for_another(victim, "passthrough")
        *progress, (name, data) = list(events)
        assert ([name for name, _ in progress], name) == (["progress"] * 3, "complete")
        frames = victim.download(data["output_path"])
        assert np.array_equal(frames[[0, 9, 32], 0, 0, 0], [42, 73, (42 + 62 + 7 * 11) % 256])  # the probe's pattern
    eventually(lambda: victim.triton_pid != triton)


@pytest.mark.parametrize("place", ["pre_processor_id", "post_processor_id"])
def test_the_process_of_a_processor_dies_in_the_chain(victim: Frontend, place: str) -> None:
    """The pipeline, which is generating a chunk, stops."""
    triton, aborts = victim.triton_pid, num_aborts(victim)
    with assert_recovers(victim, inputs=1):
        path = victim.upload(noise(33))
        stub = model_process(victim, "passthrough")
        more = {"input_path": path, place: "passthrough"}
        with chunk_in_progress(victim, 0, "!sleep 1", **more) as events:
            stub.kill()
            assert_died(victim, events, aborts)
    eventually(lambda: victim.triton_pid != triton)


def test_a_model_process_that_exits(victim: Frontend) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim):
        for index in (0, 2):
            events = victim.generate(**PROBE, chunk_specs=[{"chunk": index, "text": "!die"}])
            assert [name for name, _ in events] == ["progress"] * index + ["error"]
            assert error_code(events) == "model_died"
    eventually(lambda: victim.triton_pid != triton)


# -- A model that fails or hangs --------------------------------------------------------------------------------


def test_a_model_that_fails(victim: Frontend, subtests: pytest.Subtests) -> None:
    failures = {"!raise": "model_error", "!error": "model_error", "!shape": "bad_model_output"}
    with assert_recovers(victim):
        for prompt, code in failures.items():
            for index in (0, 2):
                with subtests.test(prompt, index=index):
                    events = victim.generate(**PROBE, chunk_specs=[{"chunk": index, "text": prompt}])
                    assert [name for name, _ in events] == ["progress"] * index + ["error"]
                    assert error_code(events) == code


@pytest.mark.parametrize("index", [0, 2])
def test_a_model_that_hangs_is_killed_at_its_deadline(victim: Frontend, index: int) -> None:
    before = victim.triton_pid
    with assert_recovers(victim):
        with chunk_in_progress(victim, index, "!hang") as events:
            stub = model_process(victim, "probe")
            assert error_code(events) == "chunk_timeout"
        eventually(lambda: not is_running(stub), MAX_ERROR_DELAY_S)
        eventually(lambda: victim.triton_pid != before)


@pytest.mark.parametrize("place", ["pre_processor_id", "post_processor_id"])
def test_a_suspended_processor(victim: Frontend, place: str) -> None:
    with assert_recovers(victim, inputs=1):
        path = victim.upload(noise(33))
        stub = model_process(victim, "passthrough")
        stub.suspend()
        try:
            events = victim.generate(**PROBE, input_path=path, **{place: "passthrough"})
            assert error_code(events) in {"model_died", "chunk_timeout"}  # Triton itself checks after a second
            eventually(
                lambda: [process.pid for process in model_processes(victim, "passthrough")] not in ([], [stub.pid])
            )
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                stub.kill()


# -- A model that violates the contract --------------------------------------------------------------------------

FAULTY = '''
"""A model without our runtime: returns its input, unless the first byte selects a fault."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        video = pb_utils.get_input_tensor_by_name(request, "input_video")
        if video is None:  # the end of the sequence
            return pb_utils.InferenceResponse(output_tensors=[])
        frames = video.as_numpy()
        fault, report = int(frames[0, 0, 0, 0]), b"{}"
        if fault == 1:
            raise RuntimeError("no such file: /opt/models/secret/engine.plan")
        if fault == 2:
            frames = frames[:-1]
        if fault == 3:
            frames = np.concatenate([frames, frames])
        if fault == 4:
            frames = frames.transpose(0, 2, 1, 3)
        if fault == 5:
            return pb_utils.InferenceResponse(output_tensors=[])
        if fault == 6:
            report = b"not JSON"
        if fault == 7:
            report = b"[1, 2]"
        if fault == 8:
            time.sleep(3600)
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("frames", np.ascontiguousarray(frames)),
                pb_utils.Tensor("report", np.array([report], np.object_)),
            ]
        )
'''
INVALID_OUTPUTS = {
    1: ("raises", {"model_error"}),
    2: ("too few frames", {"bad_model_output"}),
    3: ("too many frames", {"bad_model_output", "model_error"}),
    4: ("frames of another shape", {"bad_model_output"}),
    5: ("no frames", {"bad_model_output", "model_error"}),
}


@pytest.fixture(scope="module")
def faulty_server(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """An embedded server with a model that violates the contract."""
    folder = tmp_path_factory.mktemp("faulty")
    model = folder / "models" / "faulty"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(FAULTY)
    config = (ROOT / "model_repository" / "passthrough" / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("passthrough", "faulty"))
    frontend = Frontend(
        folder,
        "--embedded",
        model_repository=f"{two_models}:{folder / 'models'}",
        chunk_timeout_s=3,
        sequence_end_timeout_s=2,
    )
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


@pytest.fixture(scope="module")
def faulty_grpc_server(faulty_server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The same with arrays as gRPC tensors."""
    folder = tmp_path_factory.mktemp("faulty-grpc")
    with frontend_on(faulty_server, folder, shared_memory=False) as frontend:
        yield frontend


def video_with(fault: int, index: int) -> Frames:
    """36 frames; the first byte of a chunk selects a fault."""
    video = noise(36)
    video[::12, 0, 0, 0] = 0
    video[index * 12, 0, 0, 0] = fault
    return video


@pytest.mark.parametrize("transport", ["faulty_server", "faulty_grpc_server"])
def test_invalid_outputs_are_error_events(
    request: pytest.FixtureRequest, transport: str, subtests: pytest.Subtests
) -> None:
    frontend: Frontend = request.getfixturevalue(transport)
    paths = {(fault, index): frontend.upload(video_with(fault, index)) for fault in INVALID_OUTPUTS for index in (0, 2)}
    with assert_recovers(frontend):
        for (fault, index), path in paths.items():
            name, codes = INVALID_OUTPUTS[fault]
            for chain, pipelines in CHAINS.items():
                with subtests.test(name, chain=chain, chunk=index):
                    events = frontend.generate(**pipelines, prompt="", num_frames=36, input_path=path)
                    assert len(events) <= index + 1
                    assert error_code(events) in codes, json.dumps(events[-1])
    assert "Traceback" not in frontend.log()


@pytest.mark.parametrize("transport", ["faulty_server", "faulty_grpc_server"])
def test_reports_that_cannot_be_read(request: pytest.FixtureRequest, transport: str) -> None:
    frontend: Frontend = request.getfixturevalue(transport)
    for fault in (6, 7):
        path = frontend.upload(video_with(fault, 0))
        with frontend.stream(**CHAINS["alone"], prompt="", num_frames=36, input_path=path) as events:
            eventually(lambda: not is_generating(frontend), 5)
            assert error_code(events) == "model_error"
    with assert_recovers(frontend):
        pass


@pytest.mark.parametrize("chain", CHAINS)
def test_a_model_without_our_runtime_hangs(faulty_server: Frontend, chain: str) -> None:
    with assert_recovers(faulty_server, inputs=1):
        path = faulty_server.upload(video_with(8, 1))
        events = faulty_server.generate(**CHAINS[chain], prompt="", num_frames=36, input_path=path)
        assert error_code(events) == "chunk_timeout"


def test_the_faulty_model_works_without_a_fault(faulty_server: Frontend) -> None:
    video = video_with(0, 0)
    path = faulty_server.upload(video)
    for chain in CHAINS.values():
        frames = faulty_server.generate_frames(**chain, prompt="", num_frames=36, input_path=path)
        assert np.array_equal(frames, video)
