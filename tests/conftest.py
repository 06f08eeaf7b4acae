"""Servers for tests: the real frontend on the real Triton, started once."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from filmstrip.video import read_frames
from tests.support.exports import MODULES, Exports
from tests.support.server import MODELS, ROOT, Frames, Frontend

# The networks of the tests are tiny: a second thread of PyTorch would only wait, and take a core from the servers.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend with its embedded Triton."""
    frontend = Frontend(tmp_path_factory.mktemp("server"), "--embedded", model_repository=MODELS)
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """Another embedded server, which tests may hurt: it comes back by itself, soon as its models are few."""
    models = tmp_path_factory.mktemp("victims-models")
    for name in ("probe", "passthrough", "gray"):
        (models / name).symlink_to(Path(MODELS) / name)
    frontend = Frontend(
        tmp_path_factory.mktemp("victim"),
        "--embedded",
        model_repository=models,
        chunk_timeout_s=3,
        sequence_end_timeout_s=2,
        model_restart_window_s=0,  # tests kill its models again and again
        log_format="json",
    )
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


@pytest.fixture(scope="session", autouse=True)
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    """The exports that the chosen tests need, under way from the first of these on."""
    named = dict.fromkeys(name for item in request.session.items for name in getattr(item, "fixturenames", ()))
    with Exports({name: tmp_path_factory.mktemp("exported") for name in named if name in MODULES}) as under_way:
        yield under_way


@pytest.fixture(scope="session")
def tiny_repository(exports: Exports) -> Path:
    """A model repository with the pipeline `tiny`, exported by the command from a checkpoint with all parts."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    return exports.repository("tiny_repository")


@pytest.fixture(scope="session")
def small_repository(exports: Exports) -> Path:
    """A model repository with `longlive-small`, exported by the command from the weights of this repository."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    return exports.repository("small_repository")


@pytest.fixture(scope="session")
def small_server(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The real frontend and Triton with `longlive-small` in it, as `make serve` starts them."""
    frontend = Frontend(tmp_path_factory.mktemp("small"), "--embedded", model_repository=f"{small_repository}:{MODELS}")
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


@pytest.fixture(autouse=True)
def slot_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test whose client leaves early does not hand a busy server to the next one."""
    yield
    for name in ("server", "grpc_server", "shm_server", "victim", "small_server"):
        if name in request.fixturenames:
            request.getfixturevalue(name).wait_idle()


# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("filmstrip", deadline=None, print_blob=True)
hypothesis.settings.load_profile("filmstrip")


@contextmanager
def beside(server: Frontend, folder: Path, **settings: object) -> Iterator[Frontend]:
    """A frontend of its own on the Triton of another."""
    frontend = Frontend(folder, "--triton-url", server.triton_url, **settings)
    frontend.probe_log = server.probe_log
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


@pytest.fixture(scope="session")
def grpc_server(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend with a Triton elsewhere, to which arrays go as gRPC tensors."""
    with beside(server, tmp_path_factory.mktemp("grpc"), shared_memory=False) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def shm_server(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that keeps uploads in shared memory, with a Triton that is not its own."""
    with beside(server, tmp_path_factory.mktemp("shm"), uploads_in_shm=True) as frontend:
        yield frontend


@pytest.fixture
def start_frontend(tmp_path: Path) -> Iterator[Callable[..., Frontend]]:
    """Start frontends of the test's own; they are ended after it."""
    started: list[Frontend] = []

    def start(*flags: str, folder: Path = tmp_path, **settings: object) -> Frontend:
        started.append(Frontend(folder, *flags, **settings))
        return started[-1]

    yield start
    for frontend in started:
        frontend.stop()


@pytest.fixture(scope="session")
def clip() -> Frames:
    """The first 30 frames of the demo's clip, [30, 160, 288, 3]."""
    frames = read_frames(ROOT / "demo" / "big_buck_bunny.mp4", size=(160, 288), max_frames=30)
    return np.stack(list(frames))
