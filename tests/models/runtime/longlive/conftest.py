from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # without torch the tests here are skipped, and this file is read all the same
    from tests.models.runtime.longlive.pipeline import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> "Tiny":
    return _tiny(tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_with_loras(tmp_path_factory) -> "Tiny":
    return _tiny(tmp_path_factory, loras=True)


@pytest.fixture(scope="session")
def tiny_in_window(tmp_path_factory) -> "Tiny":
    """RoPE positions are places in the window."""
    return _tiny(tmp_path_factory, rope_positions="window")


@pytest.fixture(scope="session")
def tiny_without_vace(tmp_path_factory) -> "Tiny":
    return _tiny(tmp_path_factory, vace_layers=[])


def _tiny(tmp_path_factory: pytest.TempPathFactory, **changed: Any) -> "Tiny":
    from tests.models.runtime.longlive.pipeline import Tiny  # noqa: PLC0415

    return Tiny(tmp_path_factory.mktemp("checkpoint"), **changed)
