"""Tiers and groups of tests, and the servers they share: the real frontend on the real Triton."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from filmstrip.video import read_frames
from tests.support.exports import export_once
from tests.support.server import MODELS, ROOT, Frames, Frontend, frontend_on, serving

TIERS = {
    "unit": "starts no server, needs no network and no torch",
    "live": "through a real server on a real Triton",
    "faults": "a real server with broken input, clients, processes and disks",
    "models": "networks, graphs, their export, and servers with exported pipelines; needs torch and ONNX Runtime",
    "page": "the web page in a real Chromium; needs playwright and chromium",
    "research": "the trainer of the small pipeline; needs torch",
    "soak": "a short soak, and its judge",
}
"""Folders below `tests`; each is also the marker of its tests."""
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
"""The live tests in `make test`: each way to use the server, once."""
COLUMNS = (
    (1, ("models", "page", "research")),
    (1, ("faults", "soak", "live")),
    (2, ("unit",)),
)
"""Tiers by the phase in which they start. Of the same phase, those that compute and those that wait take turns."""
SHARED = ("small_server", "longlive", "page_server")
"""Servers whose tests all run in one worker, because they need long to start."""
EXPORTERS = ("small_server", "longlive")
"""Those of them that start first, because they export a pipeline that others wait for."""
LONG_FILES = (
    "models/longlive/test_export.py",
    "models/export/test_tensorrt.py",
    "models/export/test_full_size.py",
    "models/export/modules/test_exportable.py",
    "models/export/test_memory.py",
    "faults/test_several_tritons.py",
    "faults/test_model_gone.py",
    "faults/test_triton_start.py",
    "faults/test_triton_gone.py",
    "faults/test_leftovers.py",
    "faults/test_random_requests.py",
    "faults/test_clients_gone.py",
    "faults/test_triton_elsewhere.py",
    "faults/test_restarts.py",
    "live/frontend/test_memory.py",
    "live/frontend/test_stalled_downloads.py",
    "live/frontend/test_generation_memory.py",
    "live/frontend/test_connection_limit.py",
    "live/frontend/test_models_seen.py",
    "soak/test_soak.py",
)
"""Files that start first in their column, so that no worker is left with a long one at the end."""
EXPORT_S = 600
"""For tests that may have to export a pipeline first, which takes a minute or more."""

# The tests' networks are tiny: a second PyTorch thread would only wait, and take a core from the servers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where Python may not keep bytecode, each process that tests start would compile our modules for half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Under nohup, the processes that tests start would ignore SIGHUP, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# An example's duration depends on the machine, not on the code.
hypothesis.settings.register_profile("filmstrip", deadline=None, print_blob=True)
hypothesis.settings.load_profile("filmstrip")

_log_sizes = pytest.StashKey[dict[Path, int]]()


def pytest_configure(config: pytest.Config) -> None:
    for name, what in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {what}")
    config.addinivalue_line("markers", "smoke: live tests that are part of `make test`")
    config.addinivalue_line("markers", "xdist_group(name): tests that run in the same worker")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    groups: dict[pytest.Item, str] = {}
    for item in items:
        path = item.path.relative_to(tests)
        fixtures: tuple[str, ...] = tuple(getattr(item, "fixturenames", ()))
        servers = [name for name in SHARED if name in fixtures]
        tier = path.parts[0]
        if tier == "unit" and {"server", "victim", "start_frontend", *SHARED} & set(fixtures):
            raise pytest.UsageError(f"{item.nodeid} is in tests/unit but starts a server")
        item.add_marker(tier)
        if path.as_posix() in SMOKE:
            item.add_marker("smoke")
        groups[item] = servers[0] if servers else path.as_posix()
        item.add_marker(pytest.mark.xdist_group(groups[item]))
        if any(name.endswith("_repository") for name in fixtures) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(EXPORT_S))

    def rank(item: pytest.Item) -> int:
        """When a test starts in its column of `COLUMNS`."""
        if groups[item] in EXPORTERS:
            return 0
        if groups[item] in (*SHARED, *LONG_FILES):
            return 1
        waits = any(name.endswith("_repository") for name in getattr(item, "fixturenames", ()))
        return 3 if waits else 2  # by then the shared servers have exported what it would wait for

    # The workers take the groups in this order (with --no-loadscope-reorder; else by the number of tests). The columns
    # go side by side: while some workers compute, the others run tests that wait for servers.
    places: dict[str, tuple[int, float]] = {}
    for phase, tiers in COLUMNS:
        column = [item for item in items if item.path.relative_to(tests).parts[0] in tiers]
        found = list(dict.fromkeys(groups[item] for item in sorted(column, key=rank)))
        places |= {group: (phase * (group not in EXPORTERS), n / len(found)) for n, group in enumerate(found)}
    items.sort(key=lambda item: (*places[groups[item]], rank(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist ignores the groups of tests under this version of pytest")


# -- Servers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend with its embedded Triton."""
    with serving(Frontend(tmp_path_factory.mktemp("server"), "--embedded", model_repository=MODELS)) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with `probe` and `passthrough`, which starts in half the time of `MODELS`."""
    folder = tmp_path_factory.mktemp("two-models")
    for name in ("probe", "passthrough"):
        (folder / name).symlink_to(Path(MODELS) / name)
    return folder


@pytest.fixture(scope="session")
def victim(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """Another embedded server, which tests may damage; it recovers by itself, and quickly because it has few models."""
    frontend = Frontend(
        tmp_path_factory.mktemp("victim"),
        "--embedded",
        model_repository=two_models,
        chunk_timeout_s=3,
        sequence_end_timeout_s=2,
        model_restart_window_s=0,  # tests kill its models repeatedly
        log_format="json",
    )
    with serving(frontend):
        yield frontend


@pytest.fixture(scope="session")
def grpc_server(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that sends arrays to another server's Triton as gRPC tensors."""
    with frontend_on(server, tmp_path_factory.mktemp("grpc"), shared_memory=False) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def shm_server(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend that keeps uploads in shared memory, on another server's Triton."""
    with frontend_on(server, tmp_path_factory.mktemp("shm"), uploads_in_shm=True) as frontend:
        yield frontend


@pytest.fixture
def start_frontend(tmp_path: Path) -> Iterator[Callable[..., Frontend]]:
    """Start frontends that are stopped after the test."""
    started: list[Frontend] = []

    def start(*flags: str, folder: Path = tmp_path, **settings: object) -> Frontend:
        started.append(Frontend(folder, *flags, **settings))
        return started[-1]

    yield start
    for frontend in started:
        frontend.stop()


def servers_of(item: pytest.Item) -> list[Frontend]:
    """The servers among a test's fixtures."""
    return [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Frontend)]


@pytest.fixture(autouse=True)
def check_shared_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a shared server dead, unhealthy or busy, and replace the server for the next test."""
    yield
    used = servers_of(request.node)
    unusable: dict[Frontend, str] = {}
    for frontend in Frontend.serving:
        if frontend.triton in unusable:
            reason: str | None = "its Triton is gone"
        else:
            reason = frontend.why_unusable(check_health=frontend in used)
        if reason is not None:
            unusable[frontend] = f"{frontend.folder.name}: {reason}"
    if unusable:
        logs = logs_since_start(request.node)  # before they are replaced
        for frontend in unusable:
            frontend.replace()
        reasons = "\n".join(unusable.values())
        shown = "\n\n".join(f"{path}:\n{lines}" for path, lines in logs.items())
        pytest.fail(f"this test left servers unusable, which were replaced:\n{reasons}\n\n{shown}")


# -- Server logs of a failed test ---------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    logs = (frontend.log_path for frontend in Frontend.started)
    item.stash[_log_sizes] = {path: path.stat().st_size for path in logs if path.exists()}


def logs_since_start(item: pytest.Item) -> dict[Path, str]:
    """The last log lines of each server that a test has used, started or caused to log something."""
    before = item.stash.get(_log_sizes, {})
    servers = [*servers_of(item), *(server.triton for server in servers_of(item) if server.triton), *Frontend.started]
    used = {server.log_path: server for server in servers if server.log_path.exists()}
    return {
        path: server.last_log_lines()
        for path, server in used.items()
        if server in servers_of(item) or path.stat().st_size != before.get(path, 0)
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    if report.failed:
        report.sections += [(f"last lines of {path}", lines) for path, lines in logs_since_start(item).items()]
    return report  # type: ignore[return-value]


# -- Exports ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_repository(shared_folder: Path) -> Path:
    """A model repository with the pipeline `tiny`, exported by the command from a complete checkpoint."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    return export_once("tests.models.export.exported", shared_folder)


@pytest.fixture(scope="session")
def small_repository(shared_folder: Path) -> Path:
    """A model repository with `longlive-small`, exported by the command from the weights in the repository."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    return export_once("tests.support.small_export", shared_folder)


@pytest.fixture(scope="session")
def small_server(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The real frontend and Triton with `longlive-small` in it, as `make serve` starts them."""
    repository = f"{small_repository}:{MODELS}"
    with serving(Frontend(tmp_path_factory.mktemp("small"), "--embedded", model_repository=repository)) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def clip() -> Frames:
    """The first 30 frames of the demo's clip, [30, 160, 288, 3]."""
    frames = read_frames(ROOT / "demo" / "big_buck_bunny.mp4", size=(160, 288), max_frames=30)
    return np.stack(list(frames))
