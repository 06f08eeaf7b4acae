"""The file beside an engine: what is written is read, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.runtime.engines.manifest import (
    FORMAT,
    PRECISIONS,
    BadManifest,
    Builder,
    EngineFile,
    EngineTensor,
    Manifest,
    ShapeRange,
    file_sha256,
    how_to_export,
    manifest_path,
    read,
    write,
)
from tests.models.runtime.engines.manifests import MANIFEST, manifest

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
lengths = st.integers(-1, 2**40)
shapes = st.lists(lengths, max_size=3).map(tuple)
tensors = st.lists(st.builds(EngineTensor, texts, texts, shapes), max_size=3).map(tuple)
manifests = st.builds(
    Manifest,
    graph=texts,
    spec_version=st.integers(),
    builder=st.sampled_from(Builder),
    builder_version=texts,
    precision=st.sampled_from(PRECISIONS),
    target=texts,
    profiles=st.dictionaries(texts, st.dictionaries(texts, st.builds(ShapeRange, shapes, shapes, shapes), max_size=2)),
    inputs=tensors,
    outputs=tensors,
    checkpoint=st.dictionaries(texts, texts, max_size=2),
    loras=st.lists(texts, max_size=3).map(tuple),
    files=st.dictionaries(st.from_regex(r"\w{1,8}\.\w{1,8}", fullmatch=True), st.builds(EngineFile, lengths, texts)),
)


@given(one=manifests)
def test_what_is_written_is_read(one: Manifest):
    again = Manifest.from_json(one.to_json())
    assert again == one
    assert list(again.profiles) == list(one.profiles)  # their order is the engine's
    assert type(again.builder) is Builder


def test_the_file_lies_beside_the_engine(tmp_path: Path):
    engine = tmp_path / "transformer.onnx"
    write(engine, MANIFEST)
    assert manifest_path(engine) == tmp_path / "transformer.onnx.json"
    assert json.loads(manifest_path(engine).read_text())["format"] == FORMAT
    assert read(engine) == MANIFEST


def test_the_digest_is_that_of_sha256sum(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def without(key: str) -> str:
    keys = json.loads(MANIFEST.to_json())
    del keys[key]
    return json.dumps(keys)


def changed(**keys: Any) -> str:
    return json.dumps(json.loads(MANIFEST.to_json()) | keys)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ('{"format": 1,', "Expecting property name"),
        ("[]", "no manifest of an engine"),
        ('{"format": 2}', "its format is 2, this runtime reads 1"),
        (without("target"), "missing or unknown: target"),
        (changed(colour="red"), "missing or unknown: colour"),
        (changed(graph=1), "1 is no text"),
        (changed(spec_version="1"), '"1" is no whole number'),
        (changed(spec_version=True), "true is no whole number"),
        (changed(builder="openvino"), '"openvino" is none of onnxruntime, tensorrt-rtx, tensorrt'),
        (changed(precision="int8"), '"int8" is none of fp32, bf16, fp16'),
        (changed(loras="ink"), '"ink" is no list'),
        (changed(profiles=[]), "[] is no object"),
        (changed(profiles={"8x8": {"x": [[1], [1]]}}), "not a shortest, a usual and a longest shape"),
        (changed(inputs=[{"name": "x"}]), "does not have the keys name, dtype, dims"),
        (changed(files={"a": {"bytes": 1}}), "does not have the keys bytes, sha256"),
        (changed(files={"../a": {"bytes": 1, "sha256": ""}}), '"../a" is no name of a file'),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, problem: str):
    (tmp_path / "vace.onnx.json").write_text(text)
    with pytest.raises(BadManifest) as refusal:
        read(tmp_path / "vace.onnx")
    assert problem in str(refusal.value)
    assert f"{tmp_path}/vace.onnx.json cannot be read: " in str(refusal.value)
    assert "python -m export longlive" in str(refusal.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "vace.onnx.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadManifest, match="cannot be read"):
        read(tmp_path / "vace.onnx")


def test_the_command_says_what_is_known():
    engine = Path("/srv/model_repository/longlive-fast/1/engines/transformer.engine")
    assert how_to_export(engine) == (
        "Export it again: python -m export longlive --checkpoint DIR --id longlive-fast --size HxW ..."
    )
    assert how_to_export(engine, MANIFEST) == (
        "Export it again: python -m export longlive --checkpoint DIR --id longlive-fast"
        " --size 320x576 --size 480x832 --lora ink=FILE --lora anime=FILE"
    )
    assert "--id NAME --size HxW" in how_to_export(Path("/tmp/transformer.engine"), manifest(profiles={}))
