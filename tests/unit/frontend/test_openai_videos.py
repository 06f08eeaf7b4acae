"""Requests of OpenAI's clients, in our own words."""

import json
from typing import Any

import pytest

from filmstrip.errors import Busy, FilmstripError, InternalError, InvalidField, QueueFull, Unauthorized
from frontend.openai_videos import InputReference, VideoRequest, openai_error
from frontend.schema import GenerateRequest, parse

BASE = {"model": "probe", "prompt": "x"}


def ours(reference: InputReference | None = None, **fields: Any) -> GenerateRequest:
    return parse(VideoRequest, json.dumps(BASE | fields).encode()).starting_with(reference or InputReference())


def test_openai_fields_have_our_names(subtests: pytest.Subtests) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"pipeline_id": "probe", "num_frames": 64, "height": None, "width": None}),
        ({"model": None, "pipeline_id": "gray"}, {"pipeline_id": "gray"}),
        ({"size": "96x64"}, {"width": 96, "height": 64}),
        ({"size": "96x64", "width": 96}, {"width": 96, "height": 64}),
        ({"seconds": "4"}, {"num_frames": 64}),
        ({"seconds": 0.01}, {"num_frames": 1}),
        ({"seconds": "2", "fps": "30000/1001"}, {"num_frames": 60}),
        ({"seconds": "4", "num_frames": 5}, {"num_frames": 5}),
        ({"seed": 7, "lora_scales": {"ink": 1}, "user": "me"}, {"seed": 7, "lora_scales": {"ink": 1}}),
    ]
    for fields, expected in cases:
        with subtests.test(str(fields)):
            request = ours(**fields)
            assert {name: getattr(request, name) for name in expected} == expected


def test_a_field_that_is_not_sent_counts_as_not_set() -> None:
    assert ours().model_fields_set == {"pipeline_id", "prompt"}
    assert ours(seconds="4", size="96x64").model_fields_set == {
        "pipeline_id",
        "prompt",
        "num_frames",
        "height",
        "width",
    }


def test_references(subtests: pytest.Subtests) -> None:
    image = InputReference(image="asset-1")
    with subtests.test("alone"):
        specs = ours(image).chunk_specs
        assert specs is not None
        assert [(spec.chunk, spec.first_frame_image) for spec in specs] == [(0, "asset-1")]
    with subtests.test("beside other specs"):
        specs = ours(image, chunk_specs=[{"chunk": 2, "text": "y"}]).chunk_specs
        assert specs is not None
        assert [(spec.chunk, spec.first_frame_image) for spec in specs] == [(2, None), (0, "asset-1")]
        specs = ours(image, chunk_specs=[{"chunk": 2, "text": "y"}, {"chunk": 0, "text": "z"}]).chunk_specs
        assert specs is not None
        assert [(spec.chunk, spec.text, spec.first_frame_image) for spec in specs] == [
            (2, "y", None),
            (0, "z", "asset-1"),
        ]
    with subtests.test("a video"):
        request = ours(InputReference(video="video-1", num_frames=9, fps=24))
        assert (request.input_path, request.num_frames) == ("video-1", 9)
        assert ours(InputReference(video="video-1", num_frames=9, fps=24), seconds=1).num_frames == 24


def test_contradictions_and_bad_values_are_refused(subtests: pytest.Subtests) -> None:
    image, video = InputReference(image="a"), InputReference(video="v")
    cases: list[tuple[dict[str, Any], InputReference | None, str]] = [
        ({"model": None}, None, "model"),
        ({"pipeline_id": "gray"}, None, "model"),
        ({"size": "96x64", "height": 65}, None, "size"),
        ({"size": "96*64"}, None, "size"),
        *(({"size": size}, None, "size") for size in ("1x1", "9000x64", "0x64")),
        *(
            ({"size": size}, None, "size")
            for size in ("1280x720p", "96x64x3", "abc96x64", " 96x64 ", "96x64\n", "96x6\u0664")
        ),
        ({"seconds": "0"}, None, "seconds"),
        ({"seconds": "four"}, None, "seconds"),
        *(({"seconds": value}, None, "seconds") for value in (10**5, True, "4e0", " 4 ", "1_0")),
        *(({"fps": value}, None, "fps") for value in (True, "30/0", "1_0", " 8", 0)),
        ({"guidance_scale": 5}, None, "guidance_scale"),
        ({"negative_prompt": "x"}, None, "negative_prompt"),
        ({"input_reference": {"file_id": "x"}}, None, "input_reference"),
        ({"chunk_specs": [{"chunk": 0, "first_frame_image": "b"}]}, image, "input_reference"),
        ({"input_path": "w"}, video, "input_reference"),
    ]
    for fields, reference, field in cases:
        with subtests.test(str(fields)), pytest.raises(InvalidField) as caught:
            ours(reference, **fields)
        assert caught.value.field == field


def test_errors_name_the_field_that_the_client_sent() -> None:
    request = parse(VideoRequest, json.dumps(BASE | {"size": "96x64", "seconds": "1"}).encode())
    image, video = InputReference(image="a"), InputReference(video="v")
    for field, reference, name in (
        ("pipeline_id", image, "model"),
        ("height", image, "size"),
        ("num_frames", image, "seconds"),
        ("chunk_specs[0].first_frame_image", image, "input_reference"),
        ("chunk_specs[3].first_frame_image", image, "chunk_specs[3].first_frame_image"),
        ("chunk_specs[0].first_frame_image", video, "chunk_specs[0].first_frame_image"),
        ("input_path", video, "input_reference"),
        ("seed", image, "seed"),
    ):
        assert request.openai_name(field, reference) == name


def test_errors_have_openais_form() -> None:
    def kind(error: FilmstripError) -> str:
        return str(openai_error(error)["error"]["type"])

    assert openai_error(InvalidField("seed: no", "seed")) == {
        "error": {"message": "seed: no", "type": "invalid_request_error", "param": "seed", "code": "invalid_field"}
    }
    assert kind(Busy("x")) == "invalid_request_error"
    assert kind(QueueFull("x")) == "rate_limit_error"
    assert kind(Unauthorized("x")) == "authentication_error"
    assert kind(InternalError("x")) == "server_error"
