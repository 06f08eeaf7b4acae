"""longlive-small: the weights that come with the repository, exported and served as `make serve` does it."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.following import CheckFailed
from demo.text_to_video import PROMPT, text_to_video
from filmstrip.client import Client, Event
from filmstrip.runtime.engines.manifest import file_sha256, read_manifest
from filmstrip.video import count_frames, probe
from tests.support import http
from tests.support.server import ROOT, Frontend
from tests.support.small_export import CHECKPOINT, ID, LORAS, SIDES, export_arguments
from tests.support.toyworld.grammar import is_held_out, parse

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

FIRST, CHUNK = 9, 12


def test_make_gives_the_same_command():
    recipe = (ROOT / "Makefile").read_text().replace("$(SMALL)", f"checkpoints/{ID}").replace("\\\n", " ")
    assert f"python -m export {' '.join(export_arguments())} $(if" in re.sub(r"[ \t]+", " ", recipe)


def test_every_manifest_names_the_weights_that_are_shipped(small_repository: Path):
    engines = sorted((small_repository / ID / "1" / "engines").glob("*.onnx"))
    manifests = {path.stem: read_manifest(path) for path in engines}
    weights = {path.relative_to(CHECKPOINT).as_posix(): path for path in CHECKPOINT.rglob("*.safetensors")}
    own = {name: file_sha256(path) for name, path in weights.items() if path not in LORAS.values()}
    told = {
        name: sha256
        for manifest in manifests.values()
        for name, sha256 in manifest.checkpoint.items()
        if name.endswith(".safetensors")
    }
    assert told == own
    of_transformer = manifests["transformer"].checkpoint
    assert of_transformer["model.safetensors"] == own["model.safetensors"]
    assert {f"--lora {name}": file_sha256(path) for name, path in LORAS.items()}.items() <= of_transformer.items()
    for manifest in manifests.values():
        assert any(name.endswith(".safetensors") for name in manifest.checkpoint), manifest.graph


def test_it_is_loaded_at_the_start_and_says_what_it_can_do(small_server: Frontend):
    pipelines = http.get(f"{small_server.url}/api/v1/pipelines").json()["pipelines"]
    small = next(pipeline for pipeline in pipelines if pipeline["id"] == ID)
    assert small["loaded"]
    assert small["modes"] == ["text", "video"]
    assert (small["height"], small["width"]) == SIDES, export_arguments
    assert (small["first_chunk_size"], small["chunk_size"]) == (FIRST, CHUNK)
    assert small["features"]["vace"]
    assert small["features"]["loras"] == list(LORAS)


def test_the_demos_prompt_is_the_readmes_and_no_training_video_shows_it():
    readme = (ROOT / "README.md").read_text()
    assert f"filmstrip generate --wait '{PROMPT}'" in readme
    assert is_held_out(parse(PROMPT))


def test_the_demo_makes_what_its_prompt_says(small_server: Frontend, tmp_path: Path):
    with Client(small_server.url) as client:
        video, sheet = text_to_video(client, tmp_path)  # fails where the detectors see something else
    info = probe(video)
    assert (info.height, info.width) == (8 * SIDES[0], 8 * SIDES[1])
    assert count_frames(video) == FIRST + 5 * CHUNK
    with Image.open(sheet) as image:
        assert image.width > 6 * 2 * SIDES[1]


class OtherPrompt(Client):
    """Asks for something else than it is told."""

    def generate(self, **request: Any) -> AbstractContextManager[Iterator[Event]]:
        return super().generate(**request | {"prompt": "a white square moving up on a red background"})


def test_the_demo_fails_where_the_video_shows_something_else(small_server: Frontend, tmp_path: Path):
    with (
        OtherPrompt(small_server.url) as client,
        pytest.raises(CheckFailed, match="0 of 6 chunks show what the prompt says"),
    ):
        list(text_to_video(client, tmp_path))
