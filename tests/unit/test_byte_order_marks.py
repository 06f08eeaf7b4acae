"""Files that people edit may begin with a byte order mark, which editors on Windows write."""

import json
from pathlib import Path

import pytest

from deploy.triton import _read_secret
from export.config import load_config
from filmstrip import connection_settings
from filmstrip.model_folders import EXPORT_FILE
from filmstrip.runtime.engines import manifest
from filmstrip.runtime.longlive_config import LongLiveConfig
from frontend import settings as frontend_settings
from frontend.schema import LoadRequest, parse
from frontend.settings import ApiKey, Settings
from research.settings import DEFAULT_PATH, read_settings
from tests.models.export.configs import LONGLIVE
from tests.models.runtime.engines.manifests import MANIFEST

MARK = "\ufeff"


def marked(path: Path, text: str) -> Path:
    path.write_text(MARK + text, "utf-8")
    return path


def test_the_configuration_of_a_checkpoint(tmp_path: Path):
    marked(tmp_path / "config.json", json.dumps(LONGLIVE))
    assert load_config(tmp_path).dim == 1536


def test_the_settings_of_a_training(tmp_path: Path):
    assert read_settings(marked(tmp_path / "settings.json", DEFAULT_PATH.read_text())) == read_settings()


def test_the_manifest_of_an_engine(tmp_path: Path):
    engine = tmp_path / "engine.onnx"
    marked(manifest.manifest_path(engine), MANIFEST.to_json())
    assert manifest.read_manifest(engine) == MANIFEST


def test_the_file_of_a_models_version_folder(tmp_path: Path):
    marked(tmp_path / EXPORT_FILE, "{}")
    with pytest.raises(ValueError, match="Field required"):  # and not: Unexpected UTF-8 BOM
        LongLiveConfig.read(tmp_path)


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert _read_secret(marked(tmp_path / "secret", "s3cret\n")) == "s3cret"
    monkeypatch.setattr(frontend_settings, "SECRETS_DIR", tmp_path)
    marked(tmp_path / "filmstrip_triton_secret", "s3cret\r\n")
    marked(tmp_path / "filmstrip_api_keys", "studio:one,render:two\r\n")
    settings = Settings()
    assert settings.triton_secret == "s3cret"
    assert settings.api_keys == (ApiKey("studio", "one"), ApiKey("render", "two"))


def test_variables_that_are_filled_from_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FILMSTRIP_API_KEYS", f"{MARK}studio:one")
    monkeypatch.setenv("FILMSTRIP_PORT", f"{MARK}8123")
    settings = Settings()
    assert (settings.api_keys, settings.port) == ((ApiKey("studio", "one"),), 8123)
    monkeypatch.setenv("FILMSTRIP_SERVER", f"{MARK}http://films.test")
    monkeypatch.setenv("FILMSTRIP_TOKEN", f"{MARK}key")
    target = connection_settings.resolve_server(None, None)
    assert (str(target.url), target.token) == ("http://films.test", "key")


def test_the_body_of_a_request():
    body = f'{MARK}{{"pipeline_ids": ["gray"]}}'.encode()
    assert parse(LoadRequest, body).pipeline_ids == ["gray"]
