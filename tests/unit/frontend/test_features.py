"""What a pipeline does not support is refused and never ignored; what asks for nothing is taken."""

from dataclasses import replace
from typing import Any

import pytest

from filmstrip.contract import Features, Mode, PipelineSpec
from filmstrip.errors import InvalidField
from frontend.features import FEATURE_OF_FIELD, check_features, unused_fields
from frontend.schema import ChunkSpec, GenerateRequest

PROMPTS = [{"text": "a"}]
BARE = PipelineSpec("bare", (Mode.TEXT,), 12, 12, features=Features(frame_processor=True))
ALL = Features(
    frame_processor=False,
    seed=True,
    prompts=True,
    noise=True,
    cache=True,
    denoising_steps=True,
    vace=True,
    loras=("ink",),
)
WITHOUT = {"loras": ()}  # what a feature is where it is missing; False for the others

REQUEST_FIELDS = [
    # field, values that ask for something, values that ask for nothing
    ("seed", [0, 41, 43], [42]),
    ("noise_scale", [0, 0.0, 0.69, 1], [0.7]),
    ("noise_controller", [True], [False, None]),
    ("manage_cache", [False], [True]),
    ("kv_cache_attention_bias", [0.5, 1.0], [None]),
    ("denoising_steps", [[1000], [1000, 750, 500, 250]], [None]),
    ("lora_scales", [{"ink": 0.5}, {"ink": 0}], [None, {}]),
    ("vace_context_scale", [0, 0.5, 2], [1, 1.0]),
    ("vace_use_input_video", [True], [False, None]),
]
CHUNK_FIELDS = [
    *REQUEST_FIELDS[:3],
    *REQUEST_FIELDS[4:],
    ("manage_cache", [], [True, None]),
    ("reset_cache", [True], [False]),
    ("vace_temporally_locked", [False], [True]),
    ("vace_frames_shape", [[1, 3, 12, 64, 64]], [None]),
    ("vace_frames_offset", [0, 1], [None]),
    ("vace_masks_shape", [[1, 1, 12, 64, 64]], [None]),
    ("vace_masks_offset", [0, 1], [None]),
    ("vace_ref_images", [["asset"]], [None, []]),
    ("first_frame_image", ["asset"], [None]),
    ("last_frame_image", ["asset"], [None]),
    ("transition_target_prompts", [PROMPTS], [None]),
    ("transition_num_steps", [0, 4], [None]),
    ("transition_method", ["linear", "slerp"], [None]),
]
FREE = {  # any pipeline takes these; files, images and ids are checked elsewhere
    *("pipeline_id", "prompt", "num_frames", "height", "width", "prompt_interpolation_method"),
    *("input_path", "data_blob_path", "pre_processor_id", "post_processor_id", "chunk_specs"),
    *("chunk", "text", "prompts", "input_video_shape", "input_video_offset"),
}


GENERIC = {"seed", "noise_scale", "noise_controller", "manage_cache", "denoising_steps"}
OF_TRANSITION = {"transition_num_steps", "transition_method"}


def flat(rows: list[tuple[str, list[Any], list[Any]]], column: int) -> list[tuple[str, Any]]:
    return [(row[0], value) for row in rows for value in row[column]]


def request(chunk_specs: list[dict[str, Any]] | None = None, **fields: Any) -> GenerateRequest:
    body = {"pipeline_id": "bare", "prompt": "a", "chunk_specs": chunk_specs, **fields}
    return GenerateRequest.model_validate(body)


def test_the_tables_cover_every_field() -> None:
    assert {row[0] for row in (*REQUEST_FIELDS, *CHUNK_FIELDS)} == set(FEATURE_OF_FIELD)
    assert GenerateRequest.model_fields.keys() - FREE <= {row[0] for row in REQUEST_FIELDS}
    assert ChunkSpec.model_fields.keys() - FREE <= {row[0] for row in CHUNK_FIELDS}


def test_a_field_without_its_feature_is_refused(subtests: pytest.Subtests) -> None:
    for name, value in [case for case in flat(REQUEST_FIELDS, 1) if case[0] not in GENERIC]:
        with subtests.test(name=name, value=value):
            feature = FEATURE_OF_FIELD[name]
            pipeline = replace(BARE, features=replace(ALL, **{feature: WITHOUT.get(feature, False)}))
            with pytest.raises(InvalidField) as caught:
                check_features(request(**{name: value}), pipeline)
            assert caught.value.field == name
            assert caught.value.message.startswith(f"{name}: bare does not support {feature}; its features: ")
            shown = caught.value.message.partition("its features: ")[2].split(", ")
            assert shown == [each for each in ALL.to_dict() if each not in (feature, "frame_processor")]
            only = replace(Features(), **{feature: getattr(ALL, feature)})
            check_features(request(**{name: value}), replace(BARE, features=only))


def test_a_field_of_a_chunk_without_its_feature_is_refused(subtests: pytest.Subtests) -> None:
    for name, value in [case for case in flat(CHUNK_FIELDS, 1) if case[0] not in GENERIC | OF_TRANSITION]:
        with subtests.test(name=name, value=value):
            feature = FEATURE_OF_FIELD[name]
            pipeline = replace(BARE, features=replace(ALL, **{feature: WITHOUT.get(feature, False)}))
            generation = request([{"chunk": 0}, {"chunk": 7, name: value}])
            with pytest.raises(InvalidField) as caught:
                check_features(generation, pipeline)
            assert caught.value.field == f"chunk_specs[1].{name}"
            where = f"chunk_specs[1].{name} (chunk 7)"
            assert caught.value.message.startswith(f"{where}: bare does not support {feature}; its features: ")
            only = replace(Features(), **{feature: getattr(ALL, feature)})
            check_features(generation, replace(BARE, features=only))


def test_of_several_missing_features_the_same_is_always_named() -> None:
    given = {name: values[0] for name, values, _ in CHUNK_FIELDS if values and name not in GENERIC}
    named = []
    while given:
        with pytest.raises(InvalidField) as caught:
            check_features(request([{"chunk": 0, **given}]), replace(BARE, features=Features()))
        name = str(caught.value.field).removeprefix("chunk_specs[0].")
        named.append(FEATURE_OF_FIELD[name])
        given = {other: value for other, value in given.items() if FEATURE_OF_FIELD[other] != named[-1]}
    assert named == ["cache", "loras", "vace", "prompts"]


def test_every_pipeline_accepts_a_default(subtests: pytest.Subtests) -> None:
    for name, value in flat(REQUEST_FIELDS, 2):
        with subtests.test(name=name, value=value):
            fields = {name: value}
            check_features(request(**fields), BARE)


def test_every_pipeline_accepts_a_default_of_a_chunk(subtests: pytest.Subtests) -> None:
    for name, value in flat(CHUNK_FIELDS, 2):
        with subtests.test(name=name, value=value):
            check_features(request([{"chunk": 0, name: value}]), BARE)


# -- What generic clients always send -----------------------------------------------------------------------

GENERIC_VALUES = {  # each of these fields, asking for something and equal to its default
    "seed": (7, 42),
    "noise_scale": (0.1, 0.7),
    "noise_controller": (True, False),
    "manage_cache": (False, True),
    "denoising_steps": ([1000, 500], [1]),
}
GENERIC_CASES = [(name, value) for name, values in GENERIC_VALUES.items() for value in values]


def test_every_pipeline_accepts_a_generic_field_and_names_it_if_unused(subtests: pytest.Subtests) -> None:
    for name, value in GENERIC_CASES:
        with subtests.test(name=name, value=value):
            with_it = replace(BARE, features=replace(Features(), **{FEATURE_OF_FIELD[name]: True}))
            for given in (request(**{name: value}), request([{"chunk": 0}, {"chunk": 7, name: value}])):
                check_features(given, BARE)
                assert unused_fields(given, BARE) == (name,)
                assert unused_fields(given, with_it) == ()


def test_unset_fields_are_not_reported_as_unused() -> None:
    unset = dict(zip(GENERIC_VALUES, (None, "", [], None, []), strict=True))
    for given in (request(), request(**unset), request([{"chunk": 0, **unset}], prompt=PROMPTS)):
        assert unused_fields(given, BARE) == ()


def test_unused_fields_are_sorted_and_named_once() -> None:
    given = request([{"chunk": 0, "seed": 1}, {"chunk": 1, "manage_cache": True}], seed=1, noise_scale=0.7)
    assert unused_fields(given, BARE) == ("manage_cache", "noise_scale", "seed")


@pytest.mark.parametrize("pipeline", [BARE, replace(BARE, features=ALL)])
def test_a_transition_without_a_target_is_unused_by_any_pipeline(pipeline: PipelineSpec) -> None:
    given = request([{"chunk": 0, "transition_num_steps": 0, "transition_method": "linear"}])
    check_features(given, pipeline)
    assert unused_fields(given, pipeline) == ("transition_method", "transition_num_steps")


def test_a_transition_with_a_target_is_used_or_refused() -> None:
    spec = {"chunk": 0, "transition_num_steps": 1, "transition_target_prompts": PROMPTS}
    assert unused_fields(request([spec]), replace(BARE, features=ALL)) == ()
    with pytest.raises(InvalidField, match="transition_target_prompts"):
        check_features(request([spec]), BARE)


def test_a_generator_does_not_name_fields_of_another_mode() -> None:
    text_only = replace(BARE, modes=(Mode.TEXT,), features=ALL)
    assert unused_fields(request(noise_scale=0.3, noise_controller=True), text_only) == ()


def test_every_pipeline_accepts_prompts() -> None:
    specs = [{"chunk": 0, "text": "b"}, {"chunk": 1, "prompts": PROMPTS, "prompt_interpolation_method": "slerp"}]
    check_features(request(specs, prompt=PROMPTS, prompt_interpolation_method="slerp"), BARE)


def test_a_pipeline_without_features_says_so() -> None:
    with pytest.raises(InvalidField, match=r"its features: none$"):
        check_features(request(vace_context_scale=0.5), replace(BARE, features=Features()))
