"""Tiers and groups of tests, and the servers that they share: the real frontend on the real Triton."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from filmstrip.video import read_frames
from tests.support.exports import made_once
from tests.support.server import MODELS, ROOT, Frames, Frontend, frontend_on, running

TIERS = {
    "unit": "starts no server, needs no network and no torch",
    "live": "through a real server on a real Triton",
    "faults": "what a real server makes of broken input, clients, processes and disks",
    "models": "networks, graphs, their export, and servers with exported pipelines; needs torch and ONNX Runtime",
    "research": "the trainer of the small pipeline; needs torch",
    "soak": "a short soak, and its judge",
}
"""By the folder below `tests`, which is the marker of all tests in it."""
SMOKE = (
    "live/comfyui/test_workflows_live.py",
    "live/deploy/test_triton.py",
    "live/filmstrip/test_cli_live.py",
    "live/filmstrip/test_client_live.py",
    "live/frontend/test_generate.py",
    "live/frontend/test_status.py",
    "live/frontend/test_uploads.py",
    "live/runtime/test_triton_models.py",
)
"""The live tests that `make test` runs: each way to reach the server, once."""
SHARED = ("small_server", "longlive", "victim", "server")
"""Servers whose tests all run in one worker; a test that uses two runs with the one named first."""
EXPORT_S = 600
"""For tests that may be the first to need an export, which takes a minute or more."""

# The networks of the tests are tiny: a second thread of PyTorch would only wait, and take a core from the servers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where the tests run under nohup, what they start would ignore SIGHUP, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("filmstrip", deadline=None, print_blob=True)
hypothesis.settings.load_profile("filmstrip")

_first_server = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    for name, what in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {what}")
    config.addinivalue_line("markers", "smoke: what `make test` runs of the live tests")
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker runs")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(tests)
        fixtures: tuple[str, ...] = tuple(getattr(item, "fixturenames", ()))
        servers = [name for name in SHARED if name in fixtures]
        tier = path.parts[0]
        if tier == "unit" and (servers or "start_frontend" in fixtures):
            raise pytest.UsageError(f"{item.nodeid} is in tests/unit but starts a server")
        item.add_marker(tier)
        if path.as_posix() in SMOKE:
            item.add_marker("smoke")
        # Tests that share no server may still share the fixtures of their file.
        item.add_marker(pytest.mark.xdist_group(servers[0] if servers else path.as_posix()))
        if any(name.endswith("_repository") for name in fixtures) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(EXPORT_S))


# -- Servers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend with its embedded Triton."""
    with running(Frontend(tmp_path_factory.mktemp("server"), "--embedded", model_repository=MODELS)) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """Another embedded server, which tests may damage: it recovers by itself, and quickly with so few models."""
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
    with running(frontend):
        yield frontend


@pytest.fixture(scope="session")
def grpc_server(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend with a Triton elsewhere, to which arrays go as gRPC tensors."""
    with frontend_on(server, tmp_path_factory.mktemp("grpc"), shared_memory=False) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def shm_server(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that keeps uploads in shared memory, with a Triton that is not its own."""
    with frontend_on(server, tmp_path_factory.mktemp("shm"), uploads_in_shm=True) as frontend:
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


def servers_of(item: pytest.Item) -> list[Frontend]:
    """The servers that are fixtures of a test."""
    return [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Frontend)]


@pytest.fixture(autouse=True)
def shared_servers_stay_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test hands no dead, sick or busy server to the next one: it is replaced, and the test has failed."""
    yield
    used = servers_of(request.node)
    ill: dict[Frontend, str] = {}
    for frontend in Frontend.kept:
        why = "its Triton has gone" if frontend.triton in ill else frontend.illness(ask=frontend in used)
        if why is not None:
            ill[frontend] = f"{frontend.folder.name}: {why}\n{frontend.last_log_lines()}"
    for frontend in ill:
        frontend.replace()
    if ill:
        pytest.fail("this test left servers that cannot go on, and were replaced:\n" + "\n\n".join(ill.values()))


# -- What their logs say of a failure -----------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_first_server] = len(Frontend.started)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    if report.failed:
        for frontend in dict.fromkeys((*servers_of(item), *Frontend.started[item.stash.get(_first_server, 0) :])):
            report.sections.append((f"last lines of {frontend.log_path}", frontend.last_log_lines()))
    return report  # type: ignore[return-value]


# -- Exports ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, for all its workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_repository(shared_folder: Path) -> Path:
    """A model repository with the pipeline `tiny`, exported by the command from a checkpoint with all parts."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    return made_once("tests.models.export.exported", shared_folder)


@pytest.fixture(scope="session")
def small_repository(shared_folder: Path) -> Path:
    """A model repository with `longlive-small`, exported by the command from the weights of this repository."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    return made_once("tests.support.shipped", shared_folder)


@pytest.fixture(scope="session")
def small_server(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The real frontend and Triton with `longlive-small` in it, as `make serve` starts them."""
    repository = f"{small_repository}:{MODELS}"
    with running(Frontend(tmp_path_factory.mktemp("small"), "--embedded", model_repository=repository)) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def clip() -> Frames:
    """The first 30 frames of the demo's clip, [30, 160, 288, 3]."""
    frames = read_frames(ROOT / "demo" / "big_buck_bunny.mp4", size=(160, 288), max_frames=30)
    return np.stack(list(frames))
