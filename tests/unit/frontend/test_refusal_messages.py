"""What every message of a refused request has in common, whoever made it: schema, features, plan, prompts or arrays."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from filmstrip.contract import Features, Mode, PipelineSpec
from filmstrip.errors import FilmstripError
from filmstrip.wire import VideoShape
from frontend.array_plan import InputSizes
from frontend.pipeline_loads import check_defaults, request_defaults
from frontend.plan import Chain, make_plan
from frontend.schema import ChunkSpec, GenerateRequest, LoadRequest, parse

EVERYTHING = Features(
    seed=True, prompts=True, noise=True, cache=True, denoising_steps=True, vace=True, loras=("ink", "neon")
)
PROBE = PipelineSpec(
    "probe",
    (Mode.TEXT, Mode.VIDEO),
    12,
    9,
    granularity=16,
    height=64,
    width=96,
    sizes=((64, 96), (128, 160)),
    max_references=1,
    latent_frames=3,
    features=EVERYTHING,
)
GRAY = PipelineSpec("gray", (Mode.VIDEO,), 12, 12, features=Features(frame_processor=True))
TEXT_ONLY = PipelineSpec("words", (Mode.TEXT,), 1, 1, granularity=16, height=64, width=96)

STRANGE: list[Any] = [
    *(None, "", "x", "it's", 'say "no"', "\n", "'", "x" * 300, [], ["x"], [None], [[]], {}, {"x": 1}, True, False),
    *(0, 1, -1, -2, 1.5, 1e300, 2**53 + 1.0, float("nan"), float("inf"), 2**64, 10**30),
]
WITH_TEXT = [
    {"text": "a", "weight": 0},
    {"text": 5},
    {"weight": 1},
    {"text": "a", "wieght": 1},
    {"text": "a", "weight": 101},
]
BLOB = InputSizes(blob_bytes=1, image_shapes={"a": (8, 8, 3)})
PLANS: list[tuple[PipelineSpec, InputSizes, dict[str, Any], dict[str, Any] | None]] = [
    # pipeline, uploads, fields of the request, the spec of chunk 0
    (PROBE, BLOB, {"height": 65}, None),
    (PROBE, BLOB, {"width": 65}, None),
    (PROBE, BLOB, {"height": 128}, None),
    (PROBE, BLOB, {"lora_scales": {"it's": 1}}, None),
    (PROBE, BLOB, {"lora_scales": {"": 1}}, None),
    (PROBE, BLOB, {"vace_use_input_video": True}, None),
    (PROBE, InputSizes(VideoShape(1, 64, 96, 1)), {}, None),
    (PROBE, BLOB, {}, {"lora_scales": {"ink": 1, "x/ink.pt": 1}}),
    (PROBE, BLOB, {}, {"text": "a", "prompts": [{"text": "b"}]}),
    (PROBE, BLOB, {}, {"vace_ref_images": ["a", "a"]}),
    (PROBE, BLOB, {}, {"vace_frames_offset": 0}),
    (PROBE, BLOB, {}, {"vace_frames_shape": [1, 1, 1, 64, 96]}),
    (PROBE, BLOB, {}, {"vace_frames_shape": [1, 1, 1, 64, 96], "vace_frames_offset": 0}),
    (PROBE, InputSizes(), {}, {"vace_frames_shape": [1, 1, 1, 64, 96], "vace_frames_offset": 0}),
    (PROBE, InputSizes(blob_bytes=10**9), {}, {"vace_frames_shape": [2, 1, 1, 64, 96], "vace_frames_offset": 0}),
    (PROBE, InputSizes(blob_bytes=10**9), {}, {"vace_frames_shape": [1, 2, 1, 64, 96], "vace_frames_offset": 0}),
    (PROBE, InputSizes(blob_bytes=10**9), {}, {"vace_masks_shape": [1, 2, 1, 64, 96], "vace_masks_offset": 0}),
    (PROBE, InputSizes(blob_bytes=10**9), {}, {"vace_frames_shape": [1, 1, 1, 64, 64], "vace_frames_offset": 0}),
    (PROBE, InputSizes(blob_bytes=10**9), {}, {"input_video_shape": [1, 64, 96, 1], "input_video_offset": 0}),
    (PROBE, InputSizes(blob_bytes=10**9), {}, {"input_video_shape": [1, 64, 64, 3], "input_video_offset": 0}),
    (PROBE, BLOB, {"num_frames": 1}, {"chunk": 1}),
    (PROBE, BLOB, {"num_frames": 10}, {"chunk": 2}),
    (PROBE, BLOB, {"chunk_specs": [{"chunk": 0}, {"chunk": 0}]}, None),
    (TEXT_ONLY, BLOB, {"num_frames": 1}, {"chunk": 1}),
    (TEXT_ONLY, InputSizes(VideoShape(1, 64, 96, 3)), {}, None),
    (TEXT_ONLY, InputSizes(blob_bytes=10**9), {}, {"input_video_shape": [1, 64, 96, 3], "input_video_offset": 0}),
    (GRAY, InputSizes(), {}, None),
    (GRAY, InputSizes(), {"height": 64, "width": 64}, None),
    (GRAY, InputSizes(VideoShape(1, 8, 8, 3)), {"lora_scales": {"ink": 1}}, None),
    (GRAY, InputSizes(VideoShape(1, 8, 8, 3)), {}, {"reset_cache": True}),
    (GRAY, InputSizes(VideoShape(1, 8, 8, 3)), {}, {"transition_target_prompts": [{"text": "a"}]}),
]
LOADS: list[tuple[PipelineSpec, dict[str, Any]]] = [
    (PROBE, {"height": 65}),
    (PROBE, {"height": 128}),
    (PROBE, {"loras": [{"path": "it's"}]}),
    (GRAY, {"vace_context_scale": 0.5}),
    (GRAY, {"loras": [{"path": "ink"}]}),
]


def refusals() -> Iterator[FilmstripError]:
    """The errors of many requests that cannot be served."""
    for name in (*GenerateRequest.model_fields, "unknown"):
        for value in STRANGE:
            yield from refusal_of(GenerateRequest, {"pipeline_id": "p", "prompt": "x", name: value})
    for name in (*ChunkSpec.model_fields, "unknown"):
        for value in [*STRANGE, WITH_TEXT]:
            spec = {"chunk": 4, name: value}
            yield from refusal_of(GenerateRequest, {"pipeline_id": "p", "prompt": "x", "chunk_specs": [spec]})
    for prompt in WITH_TEXT:
        yield from refusal_of(GenerateRequest, {"pipeline_id": "p", "prompt": [prompt]})
        specs = [{"chunk": 1}, {"chunk": 2, "prompts": [prompt]}]
        yield from refusal_of(GenerateRequest, {"pipeline_id": "p", "prompt": "x", "chunk_specs": specs})
    for name in (*LoadRequest.model_fields, "unknown"):
        for value in STRANGE:
            yield from refusal_of(LoadRequest, {"pipeline_ids": ["p"], name: value})
    for name in ("height", "seed", "vace_context_scale", "loras"):
        for value in [*STRANGE, [{"path": value} for value in STRANGE], [{"path": "it's"}] * 2]:
            pipelines = [{"pipeline_id": "p", "load_params": {name: value}}]
            yield from refusal_of(LoadRequest, {"pipelines": pipelines})
    for body in ({}, [], {"pipelines": [{"pipeline_id": "p"}, {"pipeline_id": "p", "load_params": {"x": 1}}]}):
        yield from refusal_of(LoadRequest, body)


def refusal_of(model: type[GenerateRequest | LoadRequest], body: Any) -> Iterator[FilmstripError]:
    try:
        parse(model, json.dumps(body).encode())
    except FilmstripError as error:
        yield error


def refused_plan(
    pipeline: PipelineSpec, uploads: InputSizes, fields: dict[str, Any], spec: dict[str, Any] | None
) -> FilmstripError:
    body = {"pipeline_id": pipeline.id, "prompt": "x", "num_frames": 9, **fields}
    if spec is not None:
        body["chunk_specs"] = [{"chunk": 0, **spec}]
    with pytest.raises(FilmstripError) as caught:
        make_plan(GenerateRequest.model_validate(body), Chain(pipeline), uploads, 2**30)
    return caught.value


def assert_reads_well(error: FilmstripError) -> None:
    message, field = error.message, error.field
    reason = message
    if field is not None:
        prefix, found, reason = message.partition(": ")
        assert found, message
        # Once, at the beginning: clients that put the field in front where it is missing do not double it.
        assert re.fullmatch(rf"{re.escape(field)}( \(chunk \d+\))?", prefix), message
        assert not reason.startswith((f"{field}:", "chunk ", f"{field.rpartition('.')[2]}:")), message
    assert reason, message
    assert "\n" not in message
    assert not message.endswith((".", " ", ":", ","))
    assert message.count(", got ") <= 1, message
    assert len(message) < 500
    plural = re.search(r"(?<![\d.])1 (chunks|frames|channels|bytes|images|entries|items|characters)\b", message)
    assert plural is None, message
    # The only values here that hold a quotation mark themselves are `it's`, `say "no"` and `'`.
    quotations = re.findall(r"""(?:got |: )("'.*'"|'".*"')""", message)
    assert not quotations, message
    for word in ("None", "True", "False", "ctx", "pydantic", "Value error", "wanted", "no such"):
        assert word not in reason, message


def test_every_message_of_the_schema_reads_well() -> None:
    found = list(refusals())
    assert len(found) > 500
    for error in found:
        assert_reads_well(error)


@pytest.mark.parametrize(("pipeline", "uploads", "fields", "spec"), PLANS)
def test_every_message_of_a_plan_reads_well(
    pipeline: PipelineSpec, uploads: InputSizes, fields: dict[str, Any], spec: dict[str, Any] | None
) -> None:
    assert_reads_well(refused_plan(pipeline, uploads, fields, spec))


@pytest.mark.parametrize(("pipeline", "load_params"), LOADS)
def test_every_message_of_a_load_reads_well(pipeline: PipelineSpec, load_params: dict[str, Any]) -> None:
    with pytest.raises(FilmstripError) as caught:
        check_defaults(request_defaults(load_params), pipeline, "load_params")
    assert_reads_well(caught.value)
