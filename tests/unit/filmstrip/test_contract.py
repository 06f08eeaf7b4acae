import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.contract import (
    CHUNK,
    FRAMES,
    INPUT_VIDEO,
    INPUTS,
    OUTPUTS,
    VACE_FRAMES,
    VACE_MASKS,
    ChunkParameters,
    Features,
    Interpolation,
    Mode,
    PipelineSpec,
    Prompt,
    Transition,
    numpy_dtype,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SIZES = st.integers(0, 2**31)
PROMPTS = st.lists(st.builds(Prompt, st.text(), NUMBERS), max_size=3).map(tuple)
METHODS = st.sampled_from(Interpolation)
CHUNKS = st.builds(
    ChunkParameters,
    index=SIZES,
    num_frames=SIZES,
    height=SIZES,
    width=SIZES,
    mode=st.sampled_from(Mode),
    reset=st.booleans(),
    prompts=PROMPTS,
    prompt_interpolation_method=METHODS,
    transition=st.none() | st.builds(Transition, PROMPTS, SIZES, SIZES, METHODS),
    seed=st.integers(0, 2**63 - 1),
    noise_scale=NUMBERS,
    noise_controller=st.booleans(),
    kv_cache_attention_bias=st.none() | NUMBERS,
    denoising_steps=st.none() | st.lists(st.integers(1, 1000)).map(tuple),
    lora_scales=st.dictionaries(st.text(), NUMBERS),
    pad_first_frame=st.booleans(),
    vace_context_scale=NUMBERS,
    vace_use_input_video=st.booleans(),
    vace_temporally_locked=st.booleans(),
    ref_image_shapes=st.lists(st.tuples(SIZES, SIZES, st.just(3))).map(tuple),
)
PLAIN = ChunkParameters(index=0, num_frames=12, height=64, width=64)
LONGLIVE = {
    "chunk_size": "12",
    "first_chunk_size": "9",
    "granularity": "16",
    "height": "320",
    "width": "576",
    "sizes": "[[320, 576], [480, 832]]",
    "max_references": "4",
    "latent_frames": "3",
    "modes": '["text", "video"]',
    "features": '{"seed": true, "prompts": true, "vace": true, "loras": ["ghibli"]}',
    "defaults": '{"noise_scale": 0.7}',
}


@given(CHUNKS)
def test_chunks_round_trip_as_json(chunk):
    read = ChunkParameters.from_json(chunk.to_json())
    assert read == chunk
    assert isinstance(read.mode, Mode)
    assert all(isinstance(prompt, Prompt) for prompt in read.prompts)


def test_a_chunk_of_an_older_frontend_takes_the_defaults():
    assert ChunkParameters.from_json(b'{"index": 0, "num_frames": 12, "height": 64, "width": 64}') == PLAIN


@pytest.mark.parametrize(
    ("change", "named"),
    [({"colour": 1}, "colour"), ({"mode": "audio"}, "audio"), ({"prompt_interpolation_method": "cubic"}, "cubic")],
)
def test_a_chunk_that_this_version_does_not_know_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        ChunkParameters.from_json(json.dumps(json.loads(PLAIN.to_json()) | change).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff"])
def test_an_invalid_chunk_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        ChunkParameters.from_json(text)


@pytest.mark.parametrize("change", [{"index": ...}, {"transition": {}}, {"prompts": [["a", 1, 2]]}])
def test_a_chunk_with_holes_is_a_value_error(change):
    raw = json.loads(PLAIN.to_json()) | change
    with pytest.raises(ValueError, match=r".+"):
        ChunkParameters.from_json(json.dumps({key: value for key, value in raw.items() if value is not ...}).encode())


def test_tensor_names_are_distinct_and_specs_know_their_shapes():
    names = [spec.name for spec in (*INPUTS, *OUTPUTS)]
    assert len(set(names)) == len(names)
    assert INPUT_VIDEO.accepts((12, 320, 576, 3))
    assert not INPUT_VIDEO.accepts((12, 320, 576, 4))
    assert not INPUT_VIDEO.accepts((320, 576, 3))
    assert VACE_MASKS.accepts((1, 1, 12, 320, 576))
    assert not VACE_MASKS.accepts((1, 3, 12, 320, 576))


def test_tensor_types():
    assert (CHUNK.config_dtype, FRAMES.config_dtype, VACE_FRAMES.config_dtype) == (
        "TYPE_STRING",
        "TYPE_UINT8",
        "TYPE_FP32",
    )
    for spec in (FRAMES, VACE_FRAMES):
        assert numpy_dtype(spec).itemsize == spec.itemsize
    assert np.array([1.0], numpy_dtype(VACE_FRAMES)).tobytes() == bytes.fromhex("0000803f")


def test_facts_of_a_pipeline():
    spec = PipelineSpec.from_parameters("longlive", LONGLIVE)
    assert spec == PipelineSpec(
        id="longlive",
        modes=(Mode.TEXT, Mode.VIDEO),
        chunk_size=12,
        first_chunk_size=9,
        granularity=16,
        height=320,
        width=576,
        sizes=((320, 576), (480, 832)),
        max_references=4,
        latent_frames=3,
        features=Features(seed=True, prompts=True, vace=True, loras=("ghibli",)),
        defaults={"noise_scale": 0.7},
    )


def test_a_model_without_a_chunk_size_is_not_a_pipeline():
    assert PipelineSpec.from_parameters("decoder", {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}) is None


def test_the_first_chunk_is_as_long_as_the_others_unless_said():
    spec = PipelineSpec.from_parameters("gray", {"chunk_size": "12", "modes": '["video"]', "EXECUTION_ENV_PATH": "x"})
    assert spec is not None
    assert spec.first_chunk_size == 12


@pytest.mark.parametrize(
    "change",
    [
        {"modes": ...},
        {"modes": '["audio"]'},
        {"chunk_size": "twelve"},
        {"sizes": "[[320]]"},
        {"sizes": "[[320, 0]]"},
        {"features": '{"sound": true}'},
        {"features": "[]"},
        {"features": "[" * 3000},
        {"features": "[" * 3000 + "]" * 3000},
        {"features": "null"},
        {"features": '{"loras": ["\\ud800"]}'},
        {"modes": "5"},
        {"sizes": "null"},
        {"chunk_size": "99999999999999999999"},
        {"chunk_size": "9" * 5000},
        {"granularity": "true"},
        {"defaults": "[]"},
        {"defaults": '"x"'},
        {"defaults": "null"},
        {"defaults": '{"x": NaN}'},
        {"defaults": '{"x": 1e999}'},
        {"defaults": '{"\\udc80": 1}'},
        {"defaults": '{"x": ' + "[" * 300 + "]" * 300 + "}"},
        {"defaults": '{"x": ' + "[" * 20 + "]" * 20 + "}"},
        {"defaults": '{"x": 18446744073709551616}'},
        {"defaults": '{"x": -18446744073709551616}'},
    ],
)
def test_bad_facts_name_their_pipeline(change):
    parameters = {key: value for key, value in (LONGLIVE | change).items() if value is not ...}
    with pytest.raises(ValueError, match=r"config\.pbtxt of longlive"):
        PipelineSpec.from_parameters("longlive", parameters)


def test_defaults_may_be_as_deep_and_as_large_as_clients_can_read():
    defaults = '{"seed": 18446744073709551615, "x": ' + "[" * 19 + "]" * 19 + "}"
    spec = PipelineSpec.from_parameters("longlive", LONGLIVE | {"defaults": defaults})
    assert spec is not None
    assert spec.defaults == json.loads(defaults)


def test_what_the_pipeline_list_shows_is_json_without_latents():
    spec = PipelineSpec.from_parameters("longlive", LONGLIVE)
    assert spec is not None
    shown = json.loads(json.dumps(spec.to_dict()))
    assert shown["modes"] == ["text", "video"]
    assert shown["features"]["loras"] == ["ghibli"]
    assert "latent_frames" not in shown


@pytest.mark.parametrize(
    ("mode", "reset", "has_vace_arrays", "length"),
    [
        (Mode.TEXT, True, False, (9, 3, False)),
        (Mode.TEXT, False, False, (12, 3, False)),
        (Mode.TEXT, True, True, (12, 4, True)),
        (Mode.TEXT, False, True, (12, 3, False)),
        (Mode.VIDEO, True, False, (12, 4, True)),
        (Mode.VIDEO, False, False, (12, 3, False)),
    ],
)
def test_frames_and_latents_of_a_chunk(mode, reset, has_vace_arrays, length):
    spec = PipelineSpec.from_parameters("longlive", LONGLIVE)
    assert spec is not None
    assert spec.chunk_length(mode, reset=reset, has_vace_arrays=has_vace_arrays) == length


def test_a_frame_processor_has_no_latents():
    spec = PipelineSpec("gray", (Mode.VIDEO,), 12, 12)
    assert spec.chunk_length(Mode.VIDEO, reset=True, has_vace_arrays=False) == (12, 0, False)
