"""The folder of a Triton model that the export writes: what the frontend and the runtime read out of it."""

import json
import py_compile
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.__main__ import longlive
from export.errors import BadConfig
from export.model_folder import IDLE_S, check_pipeline_id, pipeline_spec, runtime_config, write_model_folder
from export.spec import Size
from filmstrip.contract import INPUTS, OUTPUTS, Mode, PipelineSpec
from filmstrip.model_folders import is_exported
from filmstrip.runtime.longlive_config import LongLiveConfig
from tests.models.export.configs import LONGLIVE, REWARD_FORCING, SELF_FORCING, parse_config, tiny

SIZES = (Size(320, 576), Size(480, 832))


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """Triton's own reading of the file."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("on_gpu", [False, True])
def test_triton_reads_a_model_with_one_sequence_and_all_tensors(tmp_path: Path, on_gpu: bool):
    folder = tmp_path / "longlive"
    write_model_folder(folder, runtime_config(parse_config(LONGLIVE), SIZES, ("ink",)), on_gpu=on_gpu)
    config = read_config(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("longlive", "python", 0)
    assert [(one.name, list(one.dims), one.optional) for one in config.input] == [
        (spec.name, list(spec.dims), True) for spec in INPUTS
    ]
    assert [(one.name, list(one.dims)) for one in config.output] == [(spec.name, list(spec.dims)) for spec in OUTPUTS]
    assert config.sequence_batching.HasField("direct")
    assert config.sequence_batching.max_sequence_idle_microseconds == IDLE_S * 1_000_000
    group = model_config_pb2.ModelInstanceGroup
    assert [one.kind for one in config.instance_group] == [group.KIND_GPU if on_gpu else group.KIND_CPU]
    assert (config.parameters["cuda_graphs"].string_value == "true") is on_gpu
    py_compile.compile(str(folder / "1" / "model.py"), doraise=True)


def test_the_frontend_reads_the_facts_that_were_written(tmp_path: Path):
    config = runtime_config(parse_config({**LONGLIVE, "vace_layers": [0, 2]}), SIZES, ('né"w', "ink"))
    write_model_folder(tmp_path / "longlive", config, on_gpu=False)
    parameters = {name: value.string_value for name, value in read_config(tmp_path / "longlive").parameters.items()}
    facts = PipelineSpec.from_parameters("longlive", parameters)
    written = pipeline_spec("longlive", config)
    assert facts == replace(written, defaults=json.loads(json.dumps(written.defaults)))
    assert facts.modes == (Mode.TEXT, Mode.VIDEO)
    assert (facts.chunk_size, facts.first_chunk_size, facts.latent_frames, facts.granularity) == (12, 9, 3, 16)
    assert (facts.height, facts.width, facts.sizes) == (320, 576, SIZES)
    assert facts.features.vace
    assert facts.features.loras == ('né"w', "ink")
    assert not facts.features.frame_processor


@pytest.mark.parametrize(
    ("values", "window", "sink"), [(LONGLIVE, 12, 3), (REWARD_FORCING, 9, 3), (SELF_FORCING, 21, 0)]
)
def test_the_runtime_reads_what_was_written_and_another_pipeline_needs_a_configuration_only(
    tmp_path: Path, values: dict[str, object], window: int, sink: int
):
    config = runtime_config(parse_config(values), SIZES, ())
    write_model_folder(tmp_path / "self-forcing", config, on_gpu=False)
    read = LongLiveConfig.read(tmp_path / "self-forcing" / "1")
    assert read == config
    assert (read.window, read.sink, read.head_dim, read.latent_channels) == (window, sink, 128, 16)


@pytest.mark.parametrize("change", [{"colour": 1}, {"window": ...}])
def test_a_configuration_of_another_version_is_refused_by_name(change: dict[str, object]):
    text = runtime_config(tiny(vace_layers=[]), SIZES, ()).to_json()
    values = {name: value for name, value in (json.loads(text) | change).items() if value is not ...}
    with pytest.raises(ValueError, match=next(iter(change))):
        LongLiveConfig.from_json(json.dumps(values))


def test_a_vace_branch_with_other_channels_than_the_runtime_makes_is_refused():
    with pytest.raises(BadConfig, match="vace_in_dim = 12 must be"):
        runtime_config(tiny(), SIZES, ())


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101])
def test_an_invalid_model_name_is_refused(name: str):
    with pytest.raises(BadConfig, match="pipeline id"):
        check_pipeline_id(name)


def test_names_of_models():
    assert [check_pipeline_id(name) for name in ("longlive", "longlive-small", "v1.2_x")] == [
        "longlive",
        "longlive-small",
        "v1.2_x",
    ]


def test_what_marks_an_exported_folder_is_written_by_the_export(tmp_path: Path):
    write_model_folder(tmp_path / "tiny", runtime_config(parse_config(LONGLIVE), SIZES, ()), on_gpu=False)
    assert is_exported(tmp_path / "tiny")
    (repository,) = (option for option in longlive.params if option.name == "repository")
    assert repository.default == "models"  # what git ignores and the embedded Triton reads
