"""A server with the pipeline `longlive-small`, exported from the weights of the repository."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmstrip.client import Client
from tests.server import MODELS, ROOT, Frontend


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with `longlive-small`, exported by the command from the weights of this repository."""
    pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: see docs/export.md")
    repository = tmp_path_factory.mktemp("shipped")
    checkpoint = "checkpoints/longlive-small"
    given = ["--checkpoint", checkpoint, "--id", "longlive-small", "--size", "64x64", "--repository", str(repository)]
    given += ["--lora", f"outlines={checkpoint}/loras/outlines.safetensors"]
    command = [sys.executable, "-m", "export", "longlive", *given]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return repository


@pytest.fixture(scope="session")
def small_server(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The real frontend and Triton with `longlive-small` in it, as `make serve` starts them."""
    frontend = Frontend(tmp_path_factory.mktemp("small"), "--embedded", model_repository=f"{small_repository}:{MODELS}")
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0


@pytest.fixture
def client(small_server: Frontend) -> Iterator[Client]:
    """A client of that server."""
    with Client(small_server.url) as client:
        yield client
