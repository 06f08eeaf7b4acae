"""What a user's environment gets: one package, and a command that finds the server or says how to install it."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from filmstrip.cli import main
from frontend import settings

ROOT = Path(settings.__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages(folder: str, name: str) -> set[str]:
    """A package and those within it, by the name that they are installed under."""
    found = {path.parent.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("__init__.py")}
    return {".".join((name, *path.parts)) for path in found}


def test_the_wheel_has_every_package_of_the_client_and_the_server():
    expected = packages("filmstrip", "filmstrip") | packages("frontend", "filmstrip.server")
    assert set(SETUPTOOLS["packages"]) == expected | {"filmstrip.model_repository"}
    assert SETUPTOOLS["package-dir"] == {
        "filmstrip.server": "frontend",
        "filmstrip.model_repository": "model_repository",
    }


def test_every_file_of_a_model_is_package_data():
    models = ROOT / "model_repository"
    files = {path for path in models.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    ours = {path for path in files if not (models / path.relative_to(models).parts[0] / "1" / "pipeline.json").exists()}
    named = {
        path for pattern in SETUPTOOLS["package-data"]["filmstrip.model_repository"] for path in models.glob(pattern)
    }
    assert ours <= named


def test_every_file_of_the_page_is_package_data():
    server = ROOT / "frontend"
    files = {path for path in (server / "page").rglob("*") if path.is_file()}
    named = {path for pattern in SETUPTOOLS["package-data"]["filmstrip.server"] for path in server.glob(pattern)}
    assert files == named


def test_serve_hands_its_arguments_to_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "filmstrip.server.__main__", importlib.import_module("frontend.__main__"))
    answer = CliRunner().invoke(main, ["serve", "--help"])
    assert answer.exit_code == 0
    assert answer.output.startswith("Usage: filmstrip serve [OPTIONS]")
    assert "--triton-url" in answer.output
    answer = CliRunner().invoke(main, ["serve", "--port", "99999"])
    assert answer.exit_code == 1
    assert "FILMSTRIP_PORT" in answer.output


def test_serve_says_how_to_install_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "filmstrip.server.__main__", None)
    answer = CliRunner().invoke(main, ["serve", "--embedded"])
    assert answer.exit_code == 1
    assert answer.output.startswith("Error: the server is not installed")
    assert "pip install 'filmstrip[server]'" in answer.output


@pytest.mark.parametrize("has_models", [False, True])
def test_an_installed_server_takes_the_models_that_come_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_models: bool
):
    """It finds those in its working directory, too, and makes no folder."""
    site_packages, models = tmp_path / "filmstrip", tmp_path / "models"
    (site_packages / "model_repository").mkdir(parents=True)
    if has_models:
        models.mkdir()
    monkeypatch.setattr(settings, "_HOME", site_packages)
    monkeypatch.setattr(settings, "_IS_CHECKOUT", False)
    monkeypatch.setattr(settings, "MODELS_DIR", models)
    expected = (site_packages / "model_repository", *([models] if has_models else []))
    assert settings.Settings(data_dir=tmp_path).model_repository == expected
