"""The file next to an engine, and engines that may not be used, with the sentence that each gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.runtime.engines.manifest import (
    FORMAT,
    SPEC_VERSION,
    BadEngine,
    BadManifest,
    Builder,
    DamagedEngine,
    EngineFile,
    EngineTensor,
    ForeignEngine,
    Machine,
    Manifest,
    MixedEngines,
    PrecisionName,
    ShapeRange,
    check_engine,
    check_together,
    file_sha256,
    how_to_export,
    manifest_path,
    read_manifest,
    write_manifest,
)
from tests.models.runtime.engines.manifests import MANIFEST, manifest, put

# -- The file ------------------------------------------------------------------------------------------------

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
    precision=st.sampled_from(get_args(PrecisionName)),
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


def test_the_manifest_lies_next_to_the_engine(tmp_path: Path):
    engine = tmp_path / "transformer.onnx"
    write_manifest(engine, MANIFEST)
    assert manifest_path(engine) == tmp_path / "transformer.onnx.json"
    assert json.loads(manifest_path(engine).read_text())["format"] == FORMAT
    assert read_manifest(engine) == MANIFEST


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
        ("[]", "format: must be 1, is null"),
        ('{"format": 2}', "format: must be 1, is 2"),
        (without("target"), "target: Field required"),
        (changed(colour="red"), "colour: Unexpected keyword argument"),
        (changed(graph=1), "graph: Input should be a valid string"),
        (changed(spec_version="1"), "spec_version: Input should be a valid integer"),
        (changed(spec_version=True), "spec_version: Input should be a valid integer"),
        (changed(builder="openvino"), "builder: Input should be 'onnxruntime', 'tensorrt-rtx' or 'tensorrt'"),
        (changed(precision="int8"), "precision: Input should be 'fp32', 'bf16' or 'fp16'"),
        (changed(loras="ink"), "loras: Input should be a valid array"),
        (changed(profiles=[]), "profiles: Input should be an object"),
        (changed(profiles={"8x8": {"x": [[1], [1]]}}), "profiles.8x8.x.2: Field required"),
        (changed(inputs=[{"name": "x"}]), "inputs.0.dtype: Field required"),
        (changed(files={"a": {"bytes": 1}}), "files.a.sha256: Field required"),
        (changed(files={"../a": {"bytes": 1, "sha256": ""}}), "must be a file name, without a folder"),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path: Path, text: str, problem: str):
    (tmp_path / "vace.onnx.json").write_text(text)
    with pytest.raises(BadManifest) as refusal:
        read_manifest(tmp_path / "vace.onnx")
    assert problem in str(refusal.value)
    assert f"{tmp_path}/vace.onnx.json cannot be read: " in str(refusal.value)
    assert "python -m export longlive" in str(refusal.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "vace.onnx.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadManifest, match="cannot be read"):
        read_manifest(tmp_path / "vace.onnx")


def test_the_command_says_what_is_known():
    engine = Path("/srv/model_repository/longlive-fast/1/engines/transformer.engine")
    assert how_to_export(engine) == (
        "Export it again: python -m export longlive --checkpoint DIR --id longlive-fast --size WxH ..."
    )
    assert how_to_export(engine, MANIFEST) == (
        "Export it again: python -m export longlive --checkpoint DIR --id longlive-fast"
        " --size 576x320 --size 832x480 --lora ink=FILE --lora anime=FILE"
    )
    assert "--id NAME --size WxH" in how_to_export(Path("/tmp/transformer.engine"), manifest(profiles={}))


# -- Engines that may not be used ----------------------------------------------------------------------------

VERSIONS = {Builder.TENSORRT_RTX: "1.7.1.116", Builder.ONNX_RUNTIME: "1.32.0"}
GPU = Machine("sm89", VERSIONS.get)
CPU = Machine("cpu", VERSIONS.get)
ON_CPU: dict[str, Any] = {"builder": Builder.ONNX_RUNTIME, "builder_version": "1.22.0", "target": "cpu"}
PLAIN: dict[str, Any] = {"builder": Builder.TENSORRT, "builder_version": "10.9.0.34"}
COMMAND = "Export it again: python -m export longlive --checkpoint DIR --id longlive --size 576x320 --size 832x480"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "longlive" / "1" / "engines" / "transformer.engine"


@pytest.mark.parametrize(("machine", "changed"), [(GPU, {}), (CPU, ON_CPU)], ids=["gpu", "cpu, another version"])
def test_an_engine_for_this_machine_is_used(engine: Path, machine: Machine, changed: dict[str, Any]):
    written = put(engine, **changed)
    assert check_engine(engine, machine) == written


REFUSALS: list[tuple[Machine, dict[str, Any], type[BadEngine], str]] = [
    (GPU, {"spec_version": 0}, BadManifest, f"its graph has version 0, this runtime needs {SPEC_VERSION}"),
    (CPU, {}, ForeignEngine, "was built for a GPU of compute capability 8.9, this is the CPU"),
    (GPU, ON_CPU, ForeignEngine, "was built for the CPU, this is a GPU of compute capability 8.9"),
    (
        GPU,
        {"target": "sm120"},
        ForeignEngine,
        "built for a GPU of compute capability 12.0, this is a GPU of compute capability 8.9",
    ),
    (GPU, {"builder_version": "1.6"}, ForeignEngine, "was built by tensorrt-rtx 1.6, 1.7.1.116 is installed"),
    (GPU, {"files": {}}, DamagedEngine, "is not the file that its manifest describes"),
]


@pytest.mark.parametrize(("machine", "changed", "error", "sentence"), REFUSALS, ids=[row[3] for row in REFUSALS])
def test_an_engine_that_does_not_fit_is_refused(
    engine: Path, machine: Machine, changed: dict[str, Any], error: type[BadEngine], sentence: str
):
    put(engine, **changed)
    with pytest.raises(error) as refusal:
        check_engine(engine, machine)
    assert str(engine) in str(refusal.value)
    assert sentence in str(refusal.value)
    assert COMMAND in str(refusal.value)


@pytest.mark.parametrize(
    ("machine", "changed", "sentence"),
    [
        (GPU, PLAIN, "needs tensorrt: pip install tensorrt==10.9.0.34"),
        (Machine("cpu", lambda _: None), ON_CPU, "needs onnxruntime: pip install onnxruntime"),
    ],
)
def test_a_library_that_lacks_is_named(engine: Path, machine: Machine, changed: dict[str, Any], sentence: str):
    put(engine, **changed)
    with pytest.raises(ForeignEngine) as refusal:
        check_engine(engine, machine)
    assert str(refusal.value) == f"{engine} {sentence}"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "has 3 bytes, should have 4": lambda engine: engine.write_bytes(b"pla"),
    "has changed since it was written": lambda engine: engine.write_bytes(b"plan"[::-1]),
    "transformer.engine is missing": Path.unlink,
    "transformer.engine.json is missing": lambda engine: manifest_path(engine).unlink(),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_a_damaged_copy_is_refused(engine: Path, sentence: str):
    put(engine)
    DAMAGES[sentence](engine)
    with pytest.raises(BadEngine) as refusal:
        check_engine(engine, GPU)
    assert sentence in str(refusal.value)
    assert "python -m export longlive --checkpoint DIR --id longlive --size" in str(refusal.value)


def test_external_data_is_checked_too(engine: Path):
    one = put(engine.with_name("weights.bin"), b"weights")
    put(engine, files=dict(one.files) | dict(put(engine).files))
    check_engine(engine, GPU)
    engine.with_name("weights.bin").write_bytes(b"Weights")
    with pytest.raises(DamagedEngine, match=r"weights\.bin has changed"):
        check_engine(engine, GPU)


# -- Together -------------------------------------------------------------------------------------------------------

FOLDER = Path("/srv/longlive/1/engines")
LATENTS = (EngineTensor("latents", "float32", (1,)),)
TRANSFORMER = FOLDER / "transformer.engine", manifest()
DECODER = FOLDER / "vae_decoder.engine", manifest(graph="vae_decoder", inputs=LATENTS, loras=())
NEEDED = ("transformer", "vae_decoder")
LORAS = ("ink", "anime")
SIZES = ((320, 576), (480, 832))


def test_engines_of_one_export_belong_together():
    check_together(dict([TRANSFORMER, DECODER]), graphs=NEEDED, loras=LORAS, sizes=SIZES)
    check_together(decoder(profiles={}), graphs=(), loras=LORAS, sizes=SIZES)


def decoder(**changed: Any) -> dict[Path, Any]:
    return dict([TRANSFORMER, (DECODER[0], manifest(**{**vars(DECODER[1]), **changed}))])


@pytest.mark.parametrize(
    ("engines", "loras", "sentence"),
    [
        (dict([TRANSFORMER]), LORAS, f"{FOLDER} has no engine for vae_decoder. {COMMAND}"),
        (dict([TRANSFORMER, DECODER]), ("anime", "ink"), "has the LoRAs ink, anime, its pipeline the LoRAs anime, ink"),
        (dict([TRANSFORMER, DECODER]), (), "has the LoRAs ink, anime, its pipeline no LoRAs"),
        (
            {TRANSFORMER[0]: manifest(inputs=LATENTS), **dict([DECODER])},
            LORAS,
            f"no engine of {FOLDER} has the LoRAs ink, anime",
        ),
        (
            decoder(checkpoint={"longlive_base.pt": "cd" * 32}),
            LORAS,
            "vae_decoder.engine was built from another longlive_base.pt than the other engines of its folder",
        ),
        (
            decoder(profiles={"320x576": {}}),
            LORAS,
            "vae_decoder.engine was not built for 832x480, which its pipeline offers",
        ),
        (decoder(graph="transformer"), LORAS, "vae_decoder.engine and transformer.engine are the same graph"),
    ],
)
def test_engines_that_do_not_belong_together_are_refused(
    engines: dict[Path, Any], loras: tuple[str, ...], sentence: str
):
    with pytest.raises(MixedEngines) as refusal:
        check_together(engines, graphs=NEEDED, loras=loras, sizes=SIZES)
    assert sentence in str(refusal.value)
