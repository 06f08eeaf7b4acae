"""Engines that may not be used, and the sentence that each gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filmstrip.runtime.engines.manifest import (
    SPEC_VERSION,
    BadEngine,
    BadManifest,
    Builder,
    DamagedEngine,
    EngineTensor,
    ForeignEngine,
    Machine,
    MixedEngines,
    check,
    check_together,
    manifest_path,
)
from tests.models.runtime.engines.manifests import manifest, put

VERSIONS = {Builder.TENSORRT_RTX: "1.7.1.116", Builder.ONNX_RUNTIME: "1.32.0"}
GPU = Machine("sm89", VERSIONS.get)
CPU = Machine("cpu", VERSIONS.get)
ON_CPU: dict[str, Any] = {"builder": Builder.ONNX_RUNTIME, "builder_version": "1.22.0", "target": "cpu"}
PLAIN: dict[str, Any] = {"builder": Builder.TENSORRT, "builder_version": "10.9.0.34"}
COMMAND = "Export it again: python -m export longlive --checkpoint DIR --id longlive --size 320x576 --size 480x832"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "longlive" / "1" / "engines" / "transformer.engine"


@pytest.mark.parametrize(("machine", "changed"), [(GPU, {}), (CPU, ON_CPU)], ids=["gpu", "cpu, another version"])
def test_an_engine_for_this_machine_is_used(engine: Path, machine: Machine, changed: dict[str, Any]):
    written = put(engine, **changed)
    assert check(engine, machine) == written


REFUSALS: list[tuple[Machine, dict[str, Any], type[BadEngine], str]] = [
    (GPU, {"spec_version": 0}, BadManifest, f"its graph has version 0, this runtime needs {SPEC_VERSION}"),
    (CPU, {}, ForeignEngine, "was made for a GPU of compute capability 8.9, this is the CPU"),
    (GPU, ON_CPU, ForeignEngine, "was made for the CPU, this is a GPU of compute capability 8.9"),
    (
        GPU,
        {"target": "sm120"},
        ForeignEngine,
        "made for a GPU of compute capability 12.0, this is a GPU of compute capability 8.9",
    ),
    (GPU, {"builder_version": "1.6"}, ForeignEngine, "was made by tensorrt-rtx 1.6, 1.7.1.116 is installed"),
    (GPU, {"files": {}}, DamagedEngine, "is not the file that its manifest is of"),
]


@pytest.mark.parametrize(("machine", "changed", "error", "sentence"), REFUSALS, ids=[row[3] for row in REFUSALS])
def test_an_engine_that_does_not_fit_is_refused(
    engine: Path, machine: Machine, changed: dict[str, Any], error: type[BadEngine], sentence: str
):
    put(engine, **changed)
    with pytest.raises(error) as refusal:
        check(engine, machine)
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
        check(engine, machine)
    assert str(refusal.value) == f"{engine} {sentence}"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "has 3 bytes and should have 4": lambda engine: engine.write_bytes(b"pla"),
    "has changed since it was written": lambda engine: engine.write_bytes(b"plan"[::-1]),
    "transformer.engine is missing": Path.unlink,
    "transformer.engine.json is missing": lambda engine: manifest_path(engine).unlink(),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_a_damaged_copy_is_refused(engine: Path, sentence: str):
    put(engine)
    DAMAGES[sentence](engine)
    with pytest.raises(BadEngine) as refusal:
        check(engine, GPU)
    assert sentence in str(refusal.value)
    assert "python -m export longlive --checkpoint DIR --id longlive --size" in str(refusal.value)


def test_external_data_is_checked_too(engine: Path):
    one = put(engine.with_name("weights.bin"), b"weights")
    put(engine, files=dict(one.files) | dict(put(engine).files))
    check(engine, GPU)
    engine.with_name("weights.bin").write_bytes(b"Weights")
    with pytest.raises(DamagedEngine, match=r"weights\.bin has changed"):
        check(engine, GPU)


# -- Together -------------------------------------------------------------------------------------------------------

FOLDER = Path("/srv/longlive/1/engines")
LATENTS = (EngineTensor("latents", "float32", (1,)),)
TRANSFORMER = FOLDER / "transformer.engine", manifest()
DECODER = FOLDER / "vae_decoder.engine", manifest(graph="vae_decoder", inputs=LATENTS, loras=())
NEEDED = ("transformer", "vae_decoder")
LORAS = ("ink", "anime")
SIZES = ("320x576", "480x832")


def test_engines_of_one_export_belong_together():
    check_together(dict([TRANSFORMER, DECODER]), graphs=NEEDED, loras=LORAS, sizes=SIZES)
    check_together(decoder(profiles={}), graphs=(), loras=LORAS, sizes=SIZES)


def decoder(**changed: Any) -> dict[Path, Any]:
    return dict([TRANSFORMER, (DECODER[0], manifest(**{**vars(DECODER[1]), **changed}))])


@pytest.mark.parametrize(
    ("engines", "loras", "sentence"),
    [
        (dict([TRANSFORMER]), LORAS, f"{FOLDER} lacks vae_decoder. {COMMAND}"),
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
            "vae_decoder.engine was made of another longlive_base.pt than others of its folder",
        ),
        (
            decoder(profiles={"320x576": {}}),
            LORAS,
            "vae_decoder.engine was not made for 480x832, which its pipeline offers",
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
