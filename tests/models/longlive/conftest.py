"""A server with the pipeline `tiny`, which has all of LongLive's parts and random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import MODELS, Frontend


@pytest.fixture(scope="session")
def longlive(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """The real frontend and Triton, with the exported engines in it."""
    frontend = Frontend(
        tmp_path_factory.mktemp("longlive"), "--embedded", model_repository=f"{tiny_repository}:{MODELS}"
    )
    try:
        frontend.wait_healthy()
        yield frontend
    finally:
        assert frontend.stop() == 0
