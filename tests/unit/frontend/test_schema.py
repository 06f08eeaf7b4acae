"""JSON requests: defaults, both bounds of every field, and errors that name the field and stay small."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from filmstrip.errors import BadJson, FilmstripError, InvalidField
from frontend.schema import ChunkOptions, ChunkSpec, GenerateRequest, LoadEntry, LoadRequest, options_for, parse

LONG = "x" * 100_000
SIZES = [1, 1, 1, 1, 1]

DEFAULTS = {
    "num_frames": 64,
    "height": None,
    "width": None,
    "seed": 42,
    "noise_scale": 0.7,
    "manage_cache": True,
    "noise_controller": None,
    "kv_cache_attention_bias": None,
    "prompt_interpolation_method": "linear",
    "vace_context_scale": 1.0,
    "vace_use_input_video": None,
    "denoising_steps": None,
    "lora_scales": None,
    "input_path": None,
    "data_blob_path": None,
    "pre_processor_id": None,
    "post_processor_id": None,
    "chunk_specs": None,
}
NOT_NONE = {"reset_cache": False, "vace_temporally_locked": True}

SHARED_FIELDS = [
    # field of a request and of a chunk, accepted values, refused values
    ("noise_scale", [0, 0.0, 1, 1.0], [-0.001, 1.001, -1e308]),
    ("noise_controller", [True, False, None], [0, 1, "x"]),
    ("manage_cache", [True, False], [0, 1, "x"]),
    ("kv_cache_attention_bias", [1e-9, 1, 1.0, None], [0, 0.0, -0.5, 1.001]),
    ("prompt_interpolation_method", ["linear", "slerp"], ["cubic", "LINEAR", 1]),
    ("vace_context_scale", [0, 1.5, 2], [-0.001, 2.001]),
    ("vace_use_input_video", [True, False, None], [0, 1]),
    ("denoising_steps", [[1000], [1], [1000, 1], [3, 2, 1], None], [[1001], [0], [2, 2], [1, 2], [1.5], 1000]),
    (
        "lora_scales",
        [{}, {"a": -1.5}, {"x" * 4096: 0, "b": 2}, None],
        [{"x" * 4097: 1}, {"a": None}, {"a": "1"}, {"a": []}],
    ),
]
REQUEST_FIELDS = [
    *SHARED_FIELDS,
    ("seed", [-1, 0, 42, 42.0, 2**53 + 1, 2**63, 2**64 - 1], [-2, 2**64, 1.5, 1e19]),
    ("num_frames", [1, 10_000], [0, -1, 10_001, 1.5]),
    ("height", [64, 2048, None], [63, 2049, 0, -64]),
    ("width", [64, 2048, None], [63, 2049, 0, 64.5]),
    (
        "prompt",
        ["", "x", LONG, [{"text": "a"}], [{"text": "a", "weight": 0}, {"text": "b", "weight": 0.001}]],
        [LONG + "x", [], [{"text": "a", "weight": 0}], [{"text": LONG + "x"}], {"text": "a"}, [[]], ["a"], 1],
    ),
    ("input_path", ["video-1", None], [1, "x" * 257]),
    ("data_blob_path", ["blob-1", None], [1, "x" * 257]),
    ("pre_processor_id", ["gray", None], [1]),
    ("post_processor_id", ["gray", None], [1]),
    ("pipeline_id", ["x"], ["", None, 1, "x" * 257]),
    ("chunk_specs", [[], None, [{"chunk": 0}, {"chunk": 9999}]], [{}, [{"chunk": 0}] * 10_001, [None]]),
]
CHUNK_FIELDS = [
    *SHARED_FIELDS,
    ("seed", [0, 42, 2**53 + 1, 2**64 - 1], [-1, 2**64, 1.5, 1e19]),
    ("chunk", [0, 9999], [-1, 0.5, 10**4]),
    ("text", ["", "x", LONG, None], [LONG + "x", 1, ["a"]]),
    ("prompts", [[{"text": "a", "weight": 100}], None], [[{"text": "a", "weight": 0}], "a", [{"weight": 1}]]),
    ("transition_target_prompts", [[{"text": "a"}], None], [[{"text": "a", "weight": -1}], "a"]),
    ("transition_num_steps", [0, 4, 10_000, None], [-1, 1.5, 10_001]),
    ("transition_method", ["linear", "slerp", None], ["cubic"]),
    ("first_frame_image", ["a", None], [1]),
    ("last_frame_image", ["a", None], [1]),
    ("vace_ref_images", [[], ["a"] * 16, None], ["a", [""], [1], ["a"] * 17]),
    ("reset_cache", [True, False], [0]),
    ("vace_temporally_locked", [True, False], [1]),
    ("input_video_shape", [SIZES[1:], [2**32 - 1] * 4, None],
     [SIZES, [0, 1, 1, 1], [1, 1, 1, -1], [2**32, 1, 1, 1]]),
    *((f"{name}_shape", [SIZES, [2**32 - 1] * 5, None],
       [SIZES[1:], [*SIZES, 1], [1, 1, 1, 1, 0], [1.5, *SIZES[1:]]])
      for name in ("vace_frames", "vace_masks")),
    *((f"{name}_offset", [0, 3, 2**63 - 1, None], [-1, 0.5, 2**63])
      for name in ("vace_frames", "vace_masks", "input_video")),
]  # fmt: skip


def body(**fields: Any) -> bytes:
    return json.dumps({"pipeline_id": "p", "prompt": "x"} | fields).encode()


def chunk_body(**fields: Any) -> bytes:
    return body(chunk_specs=[{"chunk": 1}, {"chunk": 2} | fields])


def refusal(payload: bytes, model: type[BaseModel] = GenerateRequest) -> FilmstripError:
    with pytest.raises((InvalidField, BadJson)) as caught:
        parse(model, payload)
    assert len(json.dumps(caught.value.body())) < 1000
    return caught.value


def accepted_values(rows: list[Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, accepted, _ in rows for value in accepted]


def refused_values(rows: list[Any]) -> list[tuple[str, Any]]:
    """The refused values of each field, and values of all JSON types that none of its accepted values has."""
    cases = [(name, value) for name, _, refused in rows for value in refused]
    for name, accepted, _ in rows:
        types = {type(value) for value in accepted}
        cases += [(name, value) for value in (float("nan"), float("inf"), 10**400)]
        cases += [(name, value) for value in (True, "3", "true") if type(value) not in types]
        cases += [(name, value) for value in ({"a": "b"}, [["a"]])]
    return cases


def label(name: str, value: object) -> str:
    """Of a subtest."""
    return f"{name} = {value!r:.40}" if value != 10**400 else f"{name} = 10**400"


# -- Fields -------------------------------------------------------------------------------------------------


def test_defaults_of_a_request() -> None:
    request = parse(GenerateRequest, body())
    assert request.model_dump() == {"pipeline_id": "p", "prompt": "x"} | DEFAULTS


def test_defaults_of_a_chunk() -> None:
    spec = (parse(GenerateRequest, body(chunk_specs=[{"chunk": 3}])).chunk_specs or [])[0]
    assert spec.model_dump() == {name: NOT_NONE.get(name) for name in ChunkSpec.model_fields} | {"chunk": 3}


OPTIONS: dict[str, tuple[Any, Any]] = {  # of the request, of a chunk
    "seed": (3, 42),
    "noise_scale": (0.5, 0.0),
    "manage_cache": (False, True),
    "noise_controller": (True, False),
    "kv_cache_attention_bias": (0.5, 1.0),
    "prompt_interpolation_method": ("slerp", "linear"),
    "vace_context_scale": (2.0, 0.0),
    "vace_use_input_video": (True, False),
    "denoising_steps": ([1000, 500], [750]),
    "lora_scales": ({"ink": 1.0}, {}),
}


def test_a_chunk_option_overrides_that_option_of_the_request_only() -> None:
    assert OPTIONS.keys() == ChunkOptions.model_fields.keys()
    whole = {name: value for name, (value, _) in OPTIONS.items()}
    for name, (_, own) in OPTIONS.items():
        request = parse(GenerateRequest, body(**whole, chunk_specs=[{"chunk": 0}, {"chunk": 1, name: own}]))
        inherits, overrides = request.chunk_specs or ()
        assert options_for(request, inherits).model_dump() == whole
        assert options_for(request, overrides).model_dump() == whole | {name: own}


def test_the_tables_cover_every_field() -> None:
    assert {row[0] for row in REQUEST_FIELDS} == set(GenerateRequest.model_fields)
    assert {row[0] for row in CHUNK_FIELDS} == set(ChunkSpec.model_fields)


def unset_values(model: type[GenerateRequest | ChunkSpec]) -> list[tuple[str, Any]]:
    """Each optional field with each value that means unset."""
    return [
        (name, value)
        for name, field in model.model_fields.items()
        for value in (None, "", [])
        if not field.is_required() and (name, value) != ("text", "")
    ]


def test_null_and_empty_values_leave_a_field_of_a_request_unset(subtests: pytest.Subtests) -> None:
    for name, value in unset_values(GenerateRequest):
        with subtests.test(label(name, value)):
            request = parse(GenerateRequest, body(**{name: value}))
            assert request == parse(GenerateRequest, body())
            assert name not in request.model_fields_set


def test_null_and_empty_values_leave_a_field_of_a_chunk_unset(subtests: pytest.Subtests) -> None:
    for name, value in unset_values(ChunkSpec):
        with subtests.test(label(name, value)):
            spec = (parse(GenerateRequest, chunk_body(**{name: value})).chunk_specs or [])[1]
            assert spec == ChunkSpec(chunk=2)
            assert name not in spec.model_fields_set


def test_an_empty_prompt_text_is_a_prompt() -> None:
    prompts = [{"text": "", "weight": ""}]
    request = parse(GenerateRequest, body(prompt="", chunk_specs=[{"chunk": 0, "text": ""}]))
    assert (request.prompt, (request.chunk_specs or [])[0].text) == ("", "")
    request = parse(GenerateRequest, body(prompt=prompts, chunk_specs=[{"chunk": 0, "prompts": prompts}]))
    assert request.model_dump()["prompt"] == [{"text": "", "weight": 100.0}]
    assert (request.chunk_specs or [])[0].model_dump()["prompts"] == [{"text": "", "weight": 100.0}]


def test_an_empty_map_of_loras_is_set() -> None:
    spec = (parse(GenerateRequest, chunk_body(lora_scales={})).chunk_specs or [])[1]
    assert spec.lora_scales == {}
    assert "lora_scales" in spec.model_fields_set


@pytest.mark.parametrize("value", [None, "", [], {}, 0])
def test_an_unknown_key_is_accepted_only_with_null(value: Any) -> None:
    for payload in (body(x=value), chunk_body(x=value), body(prompt=[{"text": "a", "x": value}])):
        if value is None:
            parse(GenerateRequest, payload)
        else:
            error = refusal(payload)
            assert str(error.field).endswith("x")
            assert error.message.endswith(": unknown field")


def test_a_required_field_is_never_unset(subtests: pytest.Subtests) -> None:
    for value in (None, "", []):
        for name in ("pipeline_id", "prompt", "chunk"):
            if name == "prompt" and value == "":
                continue  # an empty prompt
            with subtests.test(label(name, value)):
                payload = body(chunk_specs=[{name: value}]) if name == "chunk" else body(**{name: value})
                assert str(refusal(payload).field).endswith(name)


def test_a_request_accepts_the_bounds_of_each_field(subtests: pytest.Subtests) -> None:
    for name, value in accepted_values(REQUEST_FIELDS):
        with subtests.test(label(name, value)):
            request = parse(GenerateRequest, body(**{name: value}))
            assert request.model_dump(mode="json")[name] == value or name in ("prompt", "chunk_specs")


def test_prompts_have_weights() -> None:
    prompts = [{"text": "a", "weight": 0}, {"text": "b"}]
    parsed = [{"text": "a", "weight": 0.0}, {"text": "b", "weight": 100.0}]
    assert parse(GenerateRequest, body(prompt=prompts)).model_dump()["prompt"] == parsed
    spec = (parse(GenerateRequest, chunk_body(prompts=prompts, transition_target_prompts=prompts)).chunk_specs or [])[1]
    assert spec.model_dump()["prompts"] == spec.model_dump()["transition_target_prompts"] == parsed


def test_a_chunk_accepts_the_bounds_of_each_field(subtests: pytest.Subtests) -> None:
    for name, value in accepted_values(CHUNK_FIELDS):
        with subtests.test(label(name, value)):
            specs = parse(GenerateRequest, chunk_body(**{name: value})).chunk_specs
            assert specs is not None
            assert specs[1].model_dump(mode="json")[name] == value or "prompts" in name or not value


def test_a_request_refuses_values_out_of_bounds(subtests: pytest.Subtests) -> None:
    for name, value in refused_values(REQUEST_FIELDS):
        with subtests.test(label(name, value)):
            error = refusal(body(**{name: value}))
            if isinstance(error, InvalidField):
                assert error.field is not None
                assert error.field.startswith(name)
                assert error.message.startswith(f"{error.field}: ")
            else:  # the parser refuses numbers of so many digits
                assert value == 10**400


def test_a_chunk_refuses_values_out_of_bounds(subtests: pytest.Subtests) -> None:
    for name, value in refused_values(CHUNK_FIELDS):
        with subtests.test(label(name, value)):
            error = refusal(chunk_body(**{name: value}))
            if isinstance(error, InvalidField):
                assert error.field is not None
                assert error.field.startswith(f"chunk_specs[1].{name}")
                assert error.message.startswith(f"{error.field}: " if name == "chunk" else f"{error.field} (chunk 2): ")
            else:
                assert value == 10**400


MESSAGES: list[tuple[bytes, str | None, str]] = [
    (body(num_frames=0), "num_frames", "greater than or equal to 1, got 0"),
    (body(num_frames="48"), "num_frames", "must be a number, got '48'"),
    (body(noise_controller=1), "noise_controller", "must be true or false, got 1"),
    (body(seed=1.5), "seed", "must be a whole number, written with digits alone, got 1.5"),
    (body(seed=-2), "seed", "greater than or equal to -1, got -2"),
    (body(seed=2**64), "seed", "less than or equal to 18446744073709551615, got 18446744073709551616"),
    (body(pipeline_id=""), "pipeline_id", "must not be empty"),
    (body(noise_scale=float("nan")), "noise_scale", "finite number, got NaN"),
    (body(denoising_steps=[500, 750]), "denoising_steps", "fall strictly"),
    (body(denoising_steps=[500, True]), "denoising_steps[1]", "must be a number, got true"),
    (body(prompt=[{"text": "a", "weight": 101}]), "prompt[0].weight", "100, got 101"),
    (body(prompt=[{"text": "a"}, {"weight": 1}]), "prompt[1].text", "required"),
    (body(prompt=[{"text": "a", "weight": 0}]), "prompt", "above 0"),
    (body(prompt=None), "prompt", "got null"),
    (body(lora_scales={"a": "x"}), "lora_scales.a", "must be a number, got 'x'"),
    (chunk_body(prompts=[{"text": 5}]), "chunk_specs[1].prompts[0].text", "got 5"),
    (chunk_body(vace_frames_shape=[1, 3, 0, 64, 64]), "chunk_specs[1].vace_frames_shape[2]", "got 0"),
    (body(chunk_specs=[{"seed": 1}]), "chunk_specs[0].chunk", "required"),
    (body(chunk_specs=[{"noise_scale": 5}]), "chunk_specs[0].chunk", "required"),
    (chunk_body(text=5, seed=-3), "chunk_specs[1].text", "got 5"),
    (b"{}", "pipeline_id", "required"),
    (b"[]", None, "body: Input should be an object"),
    (b"null", None, "body: Input should be an object"),
]


def test_messages_name_the_field_and_the_value(subtests: pytest.Subtests) -> None:
    for payload, field, message in MESSAGES:
        with subtests.test(payload=payload):
            error = refusal(payload)
            assert isinstance(error, InvalidField)
            assert error.field == field
            assert message in error.message


UNKNOWN_KEYS = [
    (body(numframes=1), "numframes", ""),
    (body(**{"a[b": 1}), "a[b", ""),
    (body(str=1), "str", ""),
    (body(Prompt="x"), "Prompt", ""),
    (body(**{"": 1}), "''", ""),
    (body(prompt=[{"text": "a", "wieght": 1}]), "prompt[0].wieght", ""),
    (chunk_body(frames=1), "chunk_specs[1].frames", " (chunk 2)"),
    (chunk_body(prompts=[{"text": "a", "wieght": 1}]), "chunk_specs[1].prompts[0].wieght", " (chunk 2)"),
]


def test_an_unknown_key_is_named(subtests: pytest.Subtests) -> None:
    for payload, field, chunk in UNKNOWN_KEYS:
        with subtests.test(field):
            error = refusal(payload)
            assert isinstance(error, InvalidField)
            assert (error.field, error.message) == (field, f"{field}{chunk}: unknown field")


@pytest.mark.parametrize("path", ["str", "ink[1].safetensors"])
def test_a_lora_is_named_even_if_its_name_looks_like_a_union_or_an_index(path: str) -> None:
    assert refusal(body(lora_scales={path: "x"})).field == f"lora_scales.{path}"


# -- Bodies -------------------------------------------------------------------------------------------------


NOT_JSON = [
    *(b"", b" ", b"{", b"x", b"\xff", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf", body() + b"x", body()[:-1]),
    *(b'{"prompt": "\xc3"}', b'{"prompt": "\\ud800"}', b"{'prompt': 'x'}", b'{"prompt": "\n"}'),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b"1" * 100_000),
]


def test_a_body_that_is_not_json_is_a_bad_request(subtests: pytest.Subtests) -> None:
    for payload in NOT_JSON:
        with subtests.test(payload=payload[:30]):
            assert isinstance(refusal(payload), BadJson)


@pytest.mark.parametrize("depth", [10, 100, 190])
def test_deep_nesting_is_refused(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    refusal(b'{"pipeline_id": "p", "prompt": ' + deep + b"}")
    refusal(b'{"pipeline_id": "p", "prompt": "x", "surprise": ' + deep + b"}")


LARGE_BODIES = [
    body(**{LONG: 1}),
    body(seed=LONG),
    body(prompt=[{"text": LONG, "weight": 101}]),
    body(prompt=LONG * 2),
    body(lora_scales={LONG: 1}),
    body(lora_scales={LONG[:4000]: "x"}),
    body(seed=10**4000),
    body(chunk_specs=[{LONG: 1}]),
    body(prompt_interpolation_method=LONG),
    body(pipeline_id=LONG),
    body(denoising_steps=[LONG]),
    body(denoising_steps=[1] * 100_000),
    body(**{f"key{number}": number for number in range(10_000)}),
    chunk_body(input_video_shape=[LONG] * 4),
]


def test_large_bodies_have_small_errors(subtests: pytest.Subtests) -> None:
    for payload in LARGE_BODIES:
        with subtests.test(payload=payload[:60]):
            assert isinstance(refusal(payload), InvalidField)


# -- Loading ------------------------------------------------------------------------------------------------


def test_fields_that_other_clients_send_with_a_load_are_accepted() -> None:
    fields: dict[str, Any] = {"connection_id": None, "connection_info": {"a": [1]}, "user_id": 5, "pipeline_ids": None}
    fields["pipelines"] = [
        {"node_id": "1", "pipeline_id": "a", "load_params": {"height": 64, "seed": 2**64 - 1}},
        {"node_id": None, "pipeline_id": "b"},
        {"pipeline_id": "c", "load_params": []},
    ]
    request = parse(LoadRequest, json.dumps(fields | {"load_params": {"width": 80}}).encode())
    assert request.entries == [
        LoadEntry("a", {"height": 64, "seed": 2**64 - 1}, "pipelines[0].pipeline_id", "pipelines[0].load_params"),
        LoadEntry("b", {"width": 80}, "pipelines[1].pipeline_id", "load_params"),
        LoadEntry("c", {"width": 80}, "pipelines[2].pipeline_id", "load_params"),
    ]
    request = parse(LoadRequest, b'{"pipeline_ids": ["a", "b", "a"], "pipelines": [], "load_params": {"width": 80}}')
    assert [(entry.pipeline_id, entry.load_params) for entry in request.entries] == [
        ("a", {"width": 80}), ("b", {"width": 80}), ("a", {"width": 80})
    ]  # fmt: skip


def test_load_params_may_be_any_json_object() -> None:
    params = {"height": 320, "loras": [{"path": "x", "scale": 0.5}], "deep": {"a": None}}
    request = parse(LoadRequest, json.dumps({"pipeline_ids": ["a", "b"], "load_params": params}).encode())
    assert (request.pipeline_ids, request.load_params) == (["a", "b"], params)
    assert parse(LoadRequest, b'{"pipeline_ids": ["a"]}').load_params is None


BAD_LOADS = [
    (b"{}", "pipeline_ids"),
    (b'{"pipeline_ids": []}', "pipeline_ids"),
    (b'{"pipeline_ids": "a"}', "pipeline_ids"),
    (b'{"pipeline_ids": [""]}', "pipeline_ids[0]"),
    (b'{"pipeline_ids": ["a"], "load_params": [1]}', "load_params"),
    (b'{"pipeline_ids": null, "pipelines": []}', "pipeline_ids"),
    (b'{"pipeline_ids": ["a"], "pipelines": [{"pipeline_id": "a"}]}', "pipelines"),
    (b'{"pipelines": [{"pipeline_id": "a", "params": {}}]}', "pipelines[0].params"),
    (b'{"pipelines": [{"node_id": "a"}]}', "pipelines[0].pipeline_id"),
    (b'{"pipelines": [{"pipeline_id": "a", "load_params": {"seed": -2}}]}', "pipelines[0].load_params.seed"),
    (b'{"pipelines": [{"pipeline_id": "a"}, {"pipeline_id": "a", "load_params": {"x": 1}}]}', "pipelines"),
    (b'{"pipeline_ids": ["a"], "load_params": {"height": 63}}', "load_params.height"),
    (b'{"pipeline_ids": ["a"], "load_params": {"height": "64"}}', "load_params.height"),
    (b'{"pipeline_ids": ["a"], "load_params": {"seed": 18446744073709551616}}', "load_params.seed"),
    (b'{"pipeline_ids": ["a"], "load_params": {"vace_context_scale": 3}}', "load_params.vace_context_scale"),
    (b'{"pipeline_ids": ["a"], "load_params": {"loras": ["x"]}}', "load_params.loras[0]"),
    (b'{"pipeline_ids": ["a"], "load_params": {"loras": [{"scale": 1}]}}', "load_params.loras[0].path"),
    (b'{"pipeline_ids": ["a"], "load_params": {"loras": [{"path": ""}]}}', "load_params.loras[0].path"),
    (b'{"pipeline_ids": ["a"], "load_params": {"loras": [{"path": "x"}, {"path": "x"}]}}', "load_params.loras"),
    (
        b'{"pipeline_ids": ["a"], "load_params": {"loras": [{"path": "x", "scale": 101}]}}',
        "load_params.loras[0].scale",
    ),
    (b'{"pipeline_ids": ["a"], "load_params": {"x": NaN}}', "load_params"),
    (b'{"pipeline_ids": ["a"], "params": {}}', "params"),
]


def test_the_bad_field_of_a_load_request_is_named(subtests: pytest.Subtests) -> None:
    for payload, field in BAD_LOADS:
        with subtests.test(payload=payload):
            assert refusal(payload, LoadRequest).field == field


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({str(index): 1 for index in range(300)}, "body"),
        ({"lora_scales": {str(index): "x" for index in range(300)}}, "lora_scales"),
        ({"chunk_specs": [{"chunk": 0} | {str(index): 1 for index in range(300)}]}, "chunk_specs[0]"),
    ],
)
def test_objects_with_too_many_keys_are_refused_before_their_keys_are_checked(
    fields: dict[str, Any], name: str
) -> None:
    error = refusal(json.dumps({"pipeline_id": "p", "prompt": "x"} | fields).encode())
    assert error.message == f"{name}: more than 256 entries"
