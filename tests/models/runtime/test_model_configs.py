"""Every config.pbtxt against the contract that the frontend goes by."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from filmstrip.contract import INPUTS, OUTPUTS, Mode, PipelineSpec, TensorSpec

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(ROOT.glob("tests/support/model_repository/*/config.pbtxt"))
SHIPPED = {path.parent.name: path for path in ROOT.glob("model_repository/*/config.pbtxt")}
LONGEST_CHUNK_S = 600


def read(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(), ModelConfig())


def facts(config: ModelConfig) -> PipelineSpec | None:
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    return PipelineSpec.from_parameters(config.name, parameters)


@pytest.fixture(params=CONFIGS, ids=lambda path: path.parent.name)
def path(request) -> Path:
    return request.param


def as_spec(tensor) -> TensorSpec:
    known = DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return TensorSpec(tensor.name, "BYTES" if known == "STRING" else known, tuple(tensor.dims))


def test_tests_have_the_probe_and_all_models_that_come_with_the_code():
    assert SHIPPED
    assert {path.parent.name for path in CONFIGS} == {*SHIPPED, "probe"}
    assert {path.resolve() for path in CONFIGS} >= set(SHIPPED.values())


def test_the_name_is_the_folders_and_the_code_is_there(path):
    config = read(path)
    assert config.name == path.parent.name
    assert config.backend == "python"
    assert (path.parent / "1" / "model.py").is_file()


def test_tensors_are_the_contracts(path):
    config = read(path)
    inputs = [as_spec(tensor) for tensor in config.input]
    assert set(inputs) <= set(INPUTS)
    assert inputs[0] is not None
    assert inputs[0].name == "chunk"
    assert tuple(as_spec(tensor) for tensor in config.output) == OUTPUTS


def test_every_input_can_be_left_out(path):
    config = read(path)
    assert all(tensor.optional for tensor in config.input)
    assert config.max_batch_size == 0


def test_sequences_outlive_the_longest_chunk(path):
    batching = read(path).sequence_batching
    assert batching.WhichOneof("strategy_choice") in {"direct", "oldest"}
    assert batching.max_sequence_idle_microseconds >= 1.5 * LONGEST_CHUNK_S * 1e6
    assert not batching.control_input  # flags and the correlation id come with the request


def test_one_instance(path):
    (group,) = read(path).instance_group
    assert group.count == 1


def test_the_facts_can_be_read(path):
    known = facts(read(path))
    assert known is not None
    assert known.modes
    assert 1 <= known.first_chunk_size <= known.chunk_size


def test_a_frame_processor(subtests):
    for name in sorted(SHIPPED):
        with subtests.test(name):
            config = read(ROOT / "model_repository" / name / "config.pbtxt")
            known = facts(config)
            assert known is not None
            assert known.features.frame_processor
            assert (known.modes, known.chunk_size, known.first_chunk_size) == ((Mode.VIDEO,), 12, 12)
            assert (known.granularity, known.height, known.width) == (1, None, None)
            assert [tensor.name for tensor in config.input] == ["chunk", "input_video"]
            assert config.sequence_batching.oldest.max_candidate_sequences >= 3  # before, in and after one generation
            assert config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU


def test_the_probe_has_every_feature():
    config = read(ROOT / "tests" / "support" / "model_repository" / "probe" / "config.pbtxt")
    known = facts(config)
    assert known is not None
    assert {as_spec(tensor) for tensor in config.input} == set(INPUTS)
    assert known.modes == (Mode.TEXT, Mode.VIDEO)
    assert config.sequence_batching.HasField("direct")
    shown = known.features.to_dict()
    assert not shown.pop("frame_processor")
    assert all(shown.values()), shown
