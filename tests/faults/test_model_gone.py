"""A model's process dies, hangs or answers with nonsense, in any chunk and at any place of the chain."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import http
from tests.support.processes import MAX_ERROR_DELAY_S, chunk_in_progress, error_code, is_running, model_processes
from tests.support.recovery import PROBE, assert_recovers, eventually, is_generating, noise
from tests.support.server import MODELS, ROOT, Frames, Frontend, frontend_on

CHAINS = {
    "alone": {"pipeline_id": "faulty"},
    "pre-processor": {"pipeline_id": "passthrough", "pre_processor_id": "faulty"},
    "post-processor": {"pipeline_id": "passthrough", "post_processor_id": "faulty"},
}


def the_stub(frontend: Frontend, model: str) -> psutil.Process:
    (stub,) = model_processes(frontend, model)
    return stub


def kill_and_wait_for_another(frontend: Frontend, model: str) -> None:
    """Returns when there is another process; its model may still be loading."""
    stub = the_stub(frontend, model)
    stub.kill()
    eventually(lambda: [process.pid for process in model_processes(frontend, model)] not in ([], [stub.pid]))


# -- A process that is killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2])
def test_killed_in_a_chunk(victim: Frontend, index: int) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim), chunk_in_progress(victim, index) as events:
        the_stub(victim, "probe").kill()
        assert error_code(events) == "model_died"
    eventually(lambda: victim.triton_pid != triton)


@pytest.mark.parametrize("num_progress", [1, 2, 7])
def test_killed_between_chunks(victim: Frontend, num_progress: int) -> None:
    triton = victim.triton_pid
    stub = the_stub(victim, "probe")
    with assert_recovers(victim), victim.stream(**PROBE | {"num_frames": 9 + 12 * 200}) as events:
        for number, (name, _) in enumerate(events, 1):
            assert name == "progress"
            if number == num_progress:
                stub.kill()
                break
        assert error_code(events) == "model_died"
    eventually(lambda: victim.triton_pid != triton)


def test_killed_while_idle_it_is_replaced(victim: Frontend, clip: Frames) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim, inputs=1, outputs=1):
        path = victim.upload(clip)
        kill_and_wait_for_another(victim, "passthrough")
        made = victim.generate_frames(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
        assert np.array_equal(made, clip[:12])
    eventually(lambda: victim.triton_pid != triton)


def test_killed_while_idle_and_asked_for_at_once(victim: Frontend, clip: Frames) -> None:
    """Before anyone has noticed: it is refused, fails with a code, or is served by the new one."""
    path = victim.upload(clip)
    for _ in range(3):
        before = set(victim.stored("outputs"))
        the_stub(victim, "passthrough").kill()
        answer = victim.post(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
        assert answer.status_code in (200, 503)
        if '"output_path"' not in answer.text:
            assert any(code in answer.text for code in ("model_died", "load_failed", "triton_unavailable"))
            assert set(victim.stored("outputs")) == before
        eventually(lambda: model_processes(victim, "passthrough"))
        with assert_recovers(victim, outputs=1):
            made = victim.generate_frames(pipeline_id="passthrough", prompt="", num_frames=12, input_path=path)
            assert np.array_equal(made, clip[:12])


def test_killed_again_and_again(victim: Frontend) -> None:
    for _ in range(3):
        with assert_recovers(victim):
            kill_and_wait_for_another(victim, "probe")


def test_killed_while_it_is_loaded(start_frontend: Callable[..., Frontend]) -> None:
    """The second death, too, or one at its start: the model is left unloaded, until somebody asks for it."""
    frontend = start_frontend("--embedded", model_repository=MODELS)
    frontend.wait_healthy()
    with assert_recovers(frontend):
        kill_and_wait_for_another(frontend, "probe")
        the_stub(frontend, "probe").kill()
        eventually(lambda: "probe is not served: " in frontend.log())
        frontend.wait_healthy()
        assert frontend.post(**PROBE).json()["error"]["code"] == "load_failed"
        assert http.post(f"{frontend.url}/api/v1/pipeline/load", json={"pipeline_ids": ["probe"]}).status_code == 200


def test_the_process_of_another_model_is_replaced_beside_a_generation(victim: Frontend) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim, outputs=1), chunk_in_progress(victim, 1, "!sleep 2") as events:
        kill_and_wait_for_another(victim, "passthrough")
        *progress, (name, data) = list(events)
        assert ([name for name, _ in progress], name) == (["progress"] * 3, "complete")
        made = victim.download(data["output_path"])
        assert np.array_equal(made[[0, 9, 32], 0, 0, 0], [42, 73, (42 + 62 + 7 * 11) % 256])  # the probe's pattern
    eventually(lambda: victim.triton_pid != triton)


@pytest.mark.parametrize("place", ["pre_processor_id", "post_processor_id"])
def test_the_process_of_a_processor_dies_in_the_chain(victim: Frontend, place: str) -> None:
    """The pipeline is at work meanwhile, and lets go."""
    triton = victim.triton_pid
    with assert_recovers(victim, inputs=1):
        path = victim.upload(noise(33))
        stub = the_stub(victim, "passthrough")
        more = {"input_path": path, place: "passthrough"}
        with chunk_in_progress(victim, 0, "!sleep 1", **more) as events:
            stub.kill()
            assert error_code(events) == "model_died"
    eventually(lambda: victim.triton_pid != triton)


def test_a_model_that_ends_by_itself(victim: Frontend) -> None:
    triton = victim.triton_pid
    with assert_recovers(victim):
        for index in (0, 2):
            events = victim.generate(**PROBE, chunk_specs=[{"chunk": index, "text": "!die"}])
            assert [name for name, _ in events] == ["progress"] * index + ["error"]
            assert error_code(events) == "model_died"
    eventually(lambda: victim.triton_pid != triton)


# -- A model that fails or hangs --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize(
    ("prompt", "code"), [("!raise", "model_error"), ("!error", "model_error"), ("!shape", "bad_model_output")]
)
def test_a_model_that_fails(victim: Frontend, prompt: str, code: str, index: int) -> None:
    with assert_recovers(victim):
        events = victim.generate(**PROBE, chunk_specs=[{"chunk": index, "text": prompt}])
        assert [name for name, _ in events] == ["progress"] * index + ["error"]
        assert error_code(events) == code


@pytest.mark.parametrize("index", [0, 2])
def test_a_model_that_hangs_ends_at_its_deadline_and_is_started_anew(victim: Frontend, index: int) -> None:
    before = victim.triton_pid
    with assert_recovers(victim):
        with chunk_in_progress(victim, index, "!hang") as events:
            stub = the_stub(victim, "probe")
            assert error_code(events) == "chunk_timeout"
        eventually(lambda: not is_running(stub), MAX_ERROR_DELAY_S)
        eventually(lambda: victim.triton_pid != before)


@pytest.mark.parametrize("place", ["pre_processor_id", "post_processor_id"])
def test_a_processor_that_stands_still(victim: Frontend, place: str) -> None:
    with assert_recovers(victim, inputs=1):
        path = victim.upload(noise(33))
        stub = the_stub(victim, "passthrough")
        stub.suspend()
        try:
            events = victim.generate(**PROBE, input_path=path, **{place: "passthrough"})
            assert error_code(events) in {"model_died", "chunk_timeout"}  # Triton itself looks after a second
            eventually(
                lambda: [process.pid for process in model_processes(victim, "passthrough")] not in ([], [stub.pid])
            )
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                stub.kill()


# -- A model that keeps to no contract --------------------------------------------------------------------------

FAULTY = '''
"""Not on our runtime: answers with the frames it was given, unless the first byte tells it otherwise."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
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
            report = b"no JSON"
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
FAULTS = {
    1: ("raises", {"model_error"}),
    2: ("too few frames", {"bad_model_output"}),
    3: ("too many frames", {"bad_model_output", "model_error"}),
    4: ("frames of another shape", {"bad_model_output"}),
    5: ("no frames", {"bad_model_output", "model_error"}),
}


@pytest.fixture(scope="module")
def faulty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """An embedded server with a model that keeps to no contract."""
    folder = tmp_path_factory.mktemp("faulty")
    model = folder / "models" / "faulty"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(FAULTY)
    config = (ROOT / "model_repository" / "passthrough" / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("passthrough", "faulty"))
    frontend = Frontend(
        folder,
        "--embedded",
        model_repository=f"{MODELS}:{folder / 'models'}",
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
    """The same by gRPC."""
    folder = tmp_path_factory.mktemp("faulty-grpc")
    with frontend_on(
        faulty_server, folder, shared_memory=False, chunk_timeout_s=3, sequence_end_timeout_s=2
    ) as frontend:
        yield frontend


def video_with(fault: int, index: int) -> Frames:
    """36 frames, the first of a chunk telling the model to fail."""
    video = noise(36)
    video[::12, 0, 0, 0] = 0
    video[index * 12, 0, 0, 0] = fault
    return video


@pytest.mark.parametrize("transport", ["faulty_server", "faulty_grpc_server"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("fault", FAULTS, ids=[name for name, _ in FAULTS.values()])
def test_nonsense_is_an_error_event(request: pytest.FixtureRequest, fault: int, chain: str, transport: str) -> None:
    frontend: Frontend = request.getfixturevalue(transport)
    with assert_recovers(frontend, inputs=2):
        for index in (0, 2):
            path = frontend.upload(video_with(fault, index))
            events = frontend.generate(**CHAINS[chain], prompt="", num_frames=36, input_path=path)
            assert len(events) <= index + 1
            code = error_code(events)
            assert code in FAULTS[fault][1], json.dumps(events[-1])
    assert "Traceback" not in frontend.log()


@pytest.mark.parametrize("transport", ["faulty_server", "faulty_grpc_server"])
@pytest.mark.parametrize("fault", [6, 7], ids=["no JSON", "no object"])
def test_a_report_that_cannot_be_read(request: pytest.FixtureRequest, fault: int, transport: str) -> None:
    frontend: Frontend = request.getfixturevalue(transport)
    path = frontend.upload(video_with(fault, 0))
    with frontend.stream(**CHAINS["alone"], prompt="", num_frames=36, input_path=path) as events:
        eventually(lambda: not is_generating(frontend), 5)
        assert error_code(events) == "model_error"
    with assert_recovers(frontend):
        pass


@pytest.mark.parametrize("chain", CHAINS)
def test_a_foreign_model_that_hangs(faulty_server: Frontend, chain: str) -> None:
    with assert_recovers(faulty_server, inputs=1):
        path = faulty_server.upload(video_with(8, 1))
        events = faulty_server.generate(**CHAINS[chain], prompt="", num_frames=36, input_path=path)
        assert error_code(events) == "chunk_timeout"


@pytest.mark.parametrize("chain", CHAINS)
def test_what_fails_on_request_works_otherwise(faulty_server: Frontend, tmp_path: Path, chain: str) -> None:
    video = video_with(0, 0)
    path = faulty_server.upload(video)
    made = faulty_server.generate_frames(**CHAINS[chain], prompt="", num_frames=36, input_path=path)
    assert np.array_equal(made, video)
