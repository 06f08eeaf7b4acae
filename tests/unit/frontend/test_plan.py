"""Plans: how chunks tile a video, where they start afresh, and which bytes of the uploads each is made from."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.contract import Interpolation, Mode, PipelineSpec
from filmstrip.wire import VIDEO_HEADER_BYTES, VideoShape
from frontend.array_plan import InputSizes, TensorPlan, UploadField
from frontend.plan import Chain, ChunkPlan, Plan
from tests.unit.frontend.plans import LONGLIVE, NOTHING, PROCESSOR, plan_request

TINY = replace(LONGLIVE, granularity=1, height=2, width=2)  # so small that arrays can be compared byte by byte

INPUT = InputSizes(input_shape=VideoShape(48, 320, 576, 3))
BLOB = np.random.default_rng(0).integers(0, 256, 8192, np.uint8)
VIDEO = np.random.default_rng(1).integers(0, 256, (40, 2, 2, 3), np.uint8)


def make(
    num_frames: int = 48,
    chunk_specs: Sequence[dict[str, Any]] = (),
    pipeline: PipelineSpec = LONGLIVE,
    uploads: InputSizes = NOTHING,
    pre_processor: PipelineSpec | None = None,
    **fields: Any,
) -> Plan:
    return plan_request(chunk_specs, uploads, Chain(pipeline, pre_processor), num_frames=num_frames, **fields)


def lengths(plan: Plan) -> list[int]:
    return [chunk.parameters.num_frames for chunk in plan.chunks]


def resets(plan: Plan) -> list[int]:
    return [chunk.parameters.index for chunk in plan.chunks if chunk.parameters.reset]


def own_video(frames: int = 12, height: int = 320, width: int = 576) -> dict[str, Any]:
    return {"input_video_shape": [frames, height, width, 3], "input_video_offset": 0}


def vace(name: str = "vace_frames", channels: int = 3) -> dict[str, Any]:
    return {f"{name}_shape": [1, channels, 12, 320, 576], f"{name}_offset": 0}


# -- Any valid request --------------------------------------------------------------------------------------


def offsets(shape: Sequence[int], itemsize: int) -> st.SearchStrategy[int]:
    return st.integers(0, BLOB.size - math.prod(shape) * itemsize)


@st.composite
def specs_of(draw: st.DrawFn, chunk: int, *, processor: bool, video: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"chunk": chunk}
    if video or draw(st.booleans()):
        size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if processor else (2, 2)
        spec["input_video_shape"] = [draw(st.integers(1, 30)), *size, 3]
        spec["input_video_offset"] = draw(offsets(spec["input_video_shape"], 1))
    if processor:
        return spec
    for name, channels in (("vace_frames", (1, 3)), ("vace_masks", (1,))):
        if draw(st.integers(0, 3)) == 0:
            shape = [1, draw(st.sampled_from(channels)), draw(st.integers(1, 30)), 2, 2]
            spec |= {f"{name}_shape": shape, f"{name}_offset": draw(offsets(shape, 4))}
    rare: dict[str, st.SearchStrategy[Any]] = {
        "text": st.sampled_from(["a cat", "a dog"]),
        "reset_cache": st.booleans(),
        "manage_cache": st.booleans(),
        "noise_scale": st.sampled_from([0.0, 0.7, 1.0]),
        "denoising_steps": st.just([900, 100]),
        "vace_temporally_locked": st.booleans(),
        "transition_target_prompts": st.just([{"text": "a fish"}]),
        "vace_ref_images": st.just(["ref"]),
        "first_frame_image": st.just("ref"),
        "lora_scales": st.just({"ink": 0.5}),
    }
    return spec | draw(st.fixed_dictionaries({}, optional=rare))


@st.composite
def cases(draw: st.DrawFn) -> tuple[PipelineSpec, int, int, dict[str, Any]]:
    """The pipeline, frames of the whole input (0: there is none), num_frames, request fields."""
    processor = draw(st.booleans())
    num_frames = draw(st.integers(1, 100))
    num_input = draw(st.integers(0, len(VIDEO)))
    certain = range(-(-num_frames // 12))  # resets may add more
    every = processor and not num_input
    chosen = certain if every else draw(st.lists(st.sampled_from(certain), unique=True, max_size=5))
    specs = [draw(specs_of(chunk, processor=processor, video=every)) for chunk in chosen]
    fields: dict[str, Any] = {"chunk_specs": draw(st.permutations(specs))}
    if num_input and not processor:
        fields["vace_use_input_video"] = draw(st.sampled_from([None, False, True]))
    return PROCESSOR if processor else TINY, num_input, num_frames, fields


def uploads_of(num_input: int) -> InputSizes:
    return InputSizes(VideoShape(num_input, 2, 2, 3) if num_input else None, BLOB.size, {"ref": (5, 7, 3)})


def read(tensor: TensorPlan, num_input: int) -> bytes:
    files = {
        UploadField.INPUT: b"h" * VIDEO_HEADER_BYTES + VIDEO[:num_input].tobytes(),
        UploadField.BLOB: BLOB.tobytes(),
    }
    parts = []
    for extent in tensor.extents:
        file = files[extent.upload]
        assert extent.num_bytes > 0
        assert 0 <= extent.offset <= extent.offset + extent.num_bytes <= len(file)
        assert extent.upload is UploadField.BLOB or extent.offset >= VIDEO_HEADER_BYTES
        parts.append(file[extent.offset : extent.offset + extent.num_bytes])
    return b"".join(parts)


def expected_arrays(
    chunk: ChunkPlan, spec: dict[str, Any], num_input: int, num_frames: int
) -> dict[str, npt.NDArray[np.uint8]]:
    """The contract's words on lists of frames; floats as their four bytes."""
    count = chunk.parameters.num_frames
    arrays: dict[str, npt.NDArray[np.uint8]] = {}

    def from_blob(name: str, itemsize: int) -> npt.NDArray[np.uint8]:
        shape = spec[f"{name}_shape"]
        flat = BLOB[spec[f"{name}_offset"] :][: math.prod(shape) * itemsize]
        return flat.reshape(*shape[:-1], shape[-1] * itemsize)

    frames: list[npt.NDArray[np.uint8]] = []
    if "input_video_shape" in spec:
        frames = list(from_blob("input_video", 1).reshape(spec["input_video_shape"]))
    elif num_input:
        played = [VIDEO[frame % num_input] for frame in range(max(num_input, num_frames))]
        frames = played[12 * chunk.parameters.index :]
    if frames:
        arrays["input_video"] = np.stack((frames + frames[-1:] * count)[:count])
    for name in ("vace_frames", "vace_masks"):
        if f"{name}_shape" in spec:
            whole = from_blob(name, 4)
            arrays[name] = whole[:, :, :count] if spec.get("vace_temporally_locked", True) else whole
    return arrays


@given(cases())
def test_chunks_tile_the_video_and_cover_the_frames_that_they_need(
    case: tuple[PipelineSpec, int, int, dict[str, Any]],
) -> None:
    pipeline, num_input, num_frames, fields = case
    plan = make(num_frames, pipeline=pipeline, uploads=uploads_of(num_input), **fields)
    by_chunk = {spec["chunk"]: spec for spec in fields["chunk_specs"]}

    assert plan.output.frames == sum(chunk.num_kept for chunk in plan.chunks) == num_frames
    kept = accumulate(chunk.num_kept for chunk in plan.chunks)
    assert [chunk.first_frame for chunk in plan.chunks] == [0, *kept][:-1]
    assert [chunk.num_kept for chunk in plan.chunks[:-1]] == lengths(plan)[:-1]
    assert 1 <= plan.chunks[-1].num_kept <= lengths(plan)[-1]
    for index, chunk in enumerate(plan.chunks):
        parameters, spec = chunk.parameters, by_chunk.get(index, {})
        arrays = expected_arrays(chunk, spec, num_input, num_frames)
        assert parameters.index == index
        assert parameters.mode is (
            Mode.VIDEO if "input_video" in arrays and not parameters.vace_use_input_video else Mode.TEXT
        )
        noise_alone = parameters.mode is Mode.TEXT and not {"vace_frames", "vace_masks"} & arrays.keys()
        short = pipeline is TINY and parameters.reset and noise_alone and not parameters.vace_use_input_video
        assert parameters.num_frames == (9 if short else 12)
        assert parameters.reset or index > 0
        assert [tensor.spec.name for tensor in chunk.tensors] == list(arrays)
        for tensor in chunk.tensors:
            array = arrays[tensor.spec.name]
            assert tensor.spec.accepts(tensor.shape)
            assert tensor.shape == (*array.shape[:-1], array.shape[-1] // tensor.spec.itemsize)
            assert tensor.num_bytes == array.size
            assert read(tensor, num_input) == array.tobytes()


@given(cases())
def test_the_same_request_has_the_same_plan(case: tuple[PipelineSpec, int, int, dict[str, Any]]) -> None:
    pipeline, num_input, num_frames, fields = case
    plan = make(num_frames, pipeline=pipeline, uploads=uploads_of(num_input), **fields)
    assert make(num_frames, pipeline=pipeline, uploads=uploads_of(num_input), **fields) == plan
    fields["chunk_specs"] = fields["chunk_specs"][::-1]
    assert make(num_frames, pipeline=pipeline, uploads=uploads_of(num_input), **fields) == plan


# -- Where chunks start afresh ------------------------------------------------------------------------------

PROMPT = {"text": "a dog"}
STEPS = {"denoising_steps": [1000, 500]}
NOISE = {"noise_scale": 0.5}
TARGET = {"transition_target_prompts": [{"text": "a dog"}]}
REF = {"vace_ref_images": ["ref"]}
UNMANAGED = {"manage_cache": False}

RESETS = [
    # uploads, request fields, what chunk 2 is given (0 where that is named), chunks that start afresh, their lengths
    ("text", {}, {}, [0], [9, 12, 12, 12, 12]),
    ("video", {}, {}, [0], [12, 12, 12, 12]),
    ("text", {}, {"reset_cache": True}, [0, 2], [9, 12, 9, 12, 12]),
    ("text", {}, {"reset_cache": True, "chunk": 0}, [0], [9, 12, 12, 12, 12]),
    ("text", UNMANAGED, {"reset_cache": True}, [0, 2], [9, 12, 9, 12, 12]),
    ("video", {}, {"reset_cache": True}, [0, 2], [12, 12, 12, 12]),
    # A change between text and video mode, there and back.
    ("text", {}, own_video(), [0, 2, 3], [9, 12, 12, 9, 12]),
    ("text", UNMANAGED, own_video(), [0, 2, 3], [9, 12, 12, 9, 12]),
    ("text", {}, own_video() | {"chunk": 0}, [0, 1], [12, 9, 12, 12, 12]),
    ("video", {}, {"vace_use_input_video": True}, [0, 2, 3], [12, 12, 12, 12]),
    ("video", {"vace_use_input_video": True}, {}, [0], [12, 12, 12, 12]),
    ("video", {"vace_use_input_video": True}, {"vace_use_input_video": False}, [0, 2, 3], [12, 12, 12, 12]),
    # Prompts.
    ("text", {}, PROMPT, [0], [9, 12, 12, 12, 12]),
    ("video", {}, PROMPT, [0, 2], [12, 12, 12, 12]),
    ("video", {}, {"text": "a cat"}, [0], [12, 12, 12, 12]),
    ("video", {}, {"prompts": [{"text": "a cat", "weight": 50}]}, [0, 2], [12, 12, 12, 12]),
    ("video", UNMANAGED, PROMPT, [0], [12, 12, 12, 12]),
    ("video", {}, PROMPT | UNMANAGED, [0], [12, 12, 12, 12]),
    ("video", {}, TARGET, [0], [12, 12, 12, 12]),
    ("video", {}, TARGET | {"transition_num_steps": 1}, [0], [12, 12, 12, 12]),
    ("video", {}, TARGET | {"transition_num_steps": 0}, [0, 2], [12, 12, 12, 12]),
    ("text", {}, REF | PROMPT, [0], [9, 12, 12, 12, 12]),
    ("text", {}, {"last_frame_image": "ref"} | PROMPT, [0], [9, 12, 12, 12, 12]),
    ("text", {}, vace() | PROMPT, [0, 2], [9, 12, 12, 12, 12]),
    ("video", {"vace_use_input_video": True}, PROMPT, [0, 2], [12, 12, 12, 12]),
    # Denoising steps, for one chunk and back.
    ("text", {}, STEPS, [0, 2, 3], [9, 12, 9, 9, 12]),
    ("text", STEPS, STEPS, [0], [9, 12, 12, 12, 12]),
    ("text", UNMANAGED, STEPS, [0], [9, 12, 12, 12, 12]),
    ("video", {}, STEPS | UNMANAGED, [0, 3], [12, 12, 12, 12]),
    # Noise is no cause.
    ("video", {}, NOISE, [0], [12, 12, 12, 12]),
    ("video", {}, {"noise_controller": True}, [0], [12, 12, 12, 12]),
    ("video", {"noise_controller": True}, NOISE | {"noise_controller": False}, [0], [12, 12, 12, 12]),
    ("text", {}, NOISE, [0], [9, 12, 12, 12, 12]),
    # What conditions a first chunk.
    ("text", {}, vace() | {"chunk": 0}, [0], [12, 12, 12, 12]),
    ("text", {}, vace("vace_masks", 1) | {"chunk": 0}, [0], [12, 12, 12, 12]),
    ("text", {}, vace() | {"reset_cache": True}, [0, 2], [9, 12, 12, 12, 12]),
    ("text", {}, REF | {"chunk": 0}, [0], [9, 12, 12, 12, 12]),
    ("text", {}, {"first_frame_image": "ref", "chunk": 0}, [0], [9, 12, 12, 12, 12]),
    ("text", {}, {"last_frame_image": "ref", "chunk": 0}, [0], [9, 12, 12, 12, 12]),
    ("text", {}, {"lora_scales": {"ink": 1}, "seed": 1, "kv_cache_attention_bias": 0.5}, [0], [9, 12, 12, 12, 12]),
]


@pytest.mark.parametrize(("source", "fields", "spec", "starts", "frames"), RESETS)
def test_chunks_that_start_afresh(
    source: str, fields: dict[str, Any], spec: dict[str, Any], starts: list[int], frames: list[int]
) -> None:
    shape = INPUT.input_shape if source == "video" else None
    uploads = InputSizes(shape, blob_bytes=10**8, image_shapes={"ref": (8, 8, 3)})
    plan = make(48, [{"chunk": 2} | spec], uploads=uploads, **fields)
    assert resets(plan) == starts
    assert lengths(plan) == frames


def test_resets_count_in_the_number_of_chunks() -> None:
    plan = make(27, [{"chunk": chunk, "reset_cache": True} for chunk in (1, 2)])
    assert lengths(plan) == [9, 9, 9]
    assert len(make(27).chunks) == 3
    assert len(make(28, [{"chunk": chunk, "reset_cache": True} for chunk in (1, 2)]).chunks) == 4


@pytest.mark.parametrize(
    ("uploads", "fields", "num_chunks", "starts"),
    [
        (NOTHING, {}, 835, [0, 341, 682]),
        (NOTHING, UNMANAGED, 835, [0, 341, 682]),
        (NOTHING, {"chunk_specs": [{"chunk": 300, "reset_cache": True}]}, 835, [0, 300, 641]),
        (INPUT, {}, 834, [0, 340, 680]),
        (INPUT, {"vace_use_input_video": True}, 834, [0, 340, 680]),
    ],
)
def test_a_video_of_ten_thousand_frames_starts_afresh_before_the_frame_index_ends(
    uploads: InputSizes, fields: dict[str, Any], num_chunks: int, starts: list[int]
) -> None:
    plan = make(10_000, uploads=uploads, **fields)
    assert len(plan.chunks) == num_chunks
    assert resets(plan) == starts
    assert sum(chunk.num_kept for chunk in plan.chunks) == 10_000


def test_a_frame_processor_starts_once_however_long_the_video() -> None:
    plan = make(10_000, pipeline=PROCESSOR, uploads=InputSizes(VideoShape(1, 4, 6, 3)))
    assert len(plan.chunks) == 834
    assert resets(plan) == [0]
    assert plan.chunks[-1].num_kept == 10_000 - 833 * 12


# -- Parameters of a chunk ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "of_request", "of_chunk"),
    [
        ("seed", 7, 0),
        ("noise_scale", 0.5, 0.0),
        ("noise_controller", True, False),
        ("kv_cache_attention_bias", 0.5, 0.25),
        ("prompt_interpolation_method", "slerp", "linear"),
        ("denoising_steps", (1000, 500), (900, 100)),
        ("lora_scales", {"ink": 0.5}, {}),
        ("lora_scales", {"ink": 0.5}, {"neon.v2": -1.0}),
        ("vace_context_scale", 0.5, 0.0),
        ("vace_use_input_video", True, False),
    ],
)
def test_a_chunk_overrides_the_request_for_itself_only(name: str, of_request: Any, of_chunk: Any) -> None:
    plan = make(36, [{"chunk": 1, name: of_chunk}], uploads=INPUT, **{name: of_request})
    assert [getattr(chunk.parameters, name) for chunk in plan.chunks] == [of_request, of_chunk, of_request]


def test_defaults_reach_every_chunk() -> None:
    for chunk in make(48).chunks:
        parameters = chunk.parameters
        assert (
            parameters.seed,
            parameters.noise_scale,
            parameters.noise_controller,
            parameters.vace_context_scale,
        ) == (42, 0.7, False, 1.0)
        assert (parameters.kv_cache_attention_bias, parameters.denoising_steps, parameters.lora_scales) == (
            None,
            None,
            {},
        )
        assert (parameters.vace_use_input_video, parameters.vace_temporally_locked) == (False, True)
        assert parameters.prompt_interpolation_method is Interpolation.LINEAR
        assert (parameters.prompts, parameters.transition, parameters.ref_image_shapes) == (
            (("a cat", 100.0),),
            None,
            (),
        )


def test_arrays_are_locked_in_time_unless_the_chunk_says_otherwise() -> None:
    plan = make(33, [{"chunk": 1, "vace_temporally_locked": False}])
    assert [chunk.parameters.vace_temporally_locked for chunk in plan.chunks] == [True, False, True]


def test_images_go_with_their_chunk() -> None:
    shapes = {"a": (8, 6, 3), "b": (5, 7, 3)}
    spec = {"chunk": 1, "first_frame_image": "a", "last_frame_image": "b", "vace_ref_images": ["b", "a", "b"]}
    plan = make(36, [spec, {"chunk": 2, "vace_ref_images": []}], uploads=InputSizes(image_shapes=shapes))
    images = [(image.spec.name, image.names, image.shape, image.num_bytes) for image in plan.chunks[1].images]
    assert images == [
        ("first_frame_image", ("a",), (8, 6, 3), 144),
        ("last_frame_image", ("b",), (5, 7, 3), 105),
        ("vace_ref_images", ("b", "a", "b"), (354,), 354),
    ]
    assert plan.chunks[1].parameters.ref_image_shapes == ((5, 7, 3), (8, 6, 3), (5, 7, 3))
    assert plan.chunks[0].images == plan.chunks[2].images == ()


@pytest.mark.parametrize(
    ("pipeline", "uploads", "fields", "size"),
    [
        (LONGLIVE, InputSizes(), {}, (320, 576)),
        (LONGLIVE, InputSizes(VideoShape(1, 33, 77, 3)), {}, (320, 576)),
        (LONGLIVE, INPUT, {"width": 64}, (320, 64)),
        (PROCESSOR, InputSizes(VideoShape(1, 33, 77, 3)), {}, (33, 77)),
        (PROCESSOR, InputSizes(VideoShape(1, 33, 77, 3)), {"height": 65}, (65, 77)),
        (PROCESSOR, InputSizes(VideoShape(1, 33, 77, 3)), {"height": 64, "width": 96}, (64, 96)),
    ],
)
def test_the_size_is_the_one_asked_for_or_the_pipelines_or_the_inputs(
    pipeline: PipelineSpec, uploads: InputSizes, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    plan = make(13, pipeline=pipeline, uploads=uploads, **fields)
    assert plan.output == (13, *size, 3)
    shapes = [chunk.frames_shape for chunk in plan.chunks]
    assert shapes == [(12 if index or uploads.input_shape else 9, *size, 3) for index in range(len(shapes))]


def test_the_first_chunk_with_a_video_of_its_own_gives_a_frame_processor_its_size() -> None:
    specs = [{"chunk": 1, **own_video(3, 20, 30)}, {"chunk": 0, **own_video(3, 10, 40)}]
    plan = make(24, specs, PROCESSOR, InputSizes(blob_bytes=10_000))
    assert plan.output == (24, 10, 40, 3)
    assert [chunk.tensors[0].shape for chunk in plan.chunks] == [(12, 10, 40, 3), (12, 20, 30, 3)]


def test_what_a_preprocessor_takes_may_have_any_size() -> None:
    uploads = InputSizes(VideoShape(5, 33, 77, 3), blob_bytes=10_000)
    plan = make(24, [{"chunk": 1, **own_video(2, 20, 30)}], uploads=uploads, pre_processor=PROCESSOR)
    assert plan.output == (24, 320, 576, 3)
    assert [chunk.tensors[0].shape for chunk in plan.chunks] == [(12, 33, 77, 3), (12, 20, 30, 3)]


def test_stages_stand_in_the_order_in_which_a_chunk_passes_them() -> None:
    last = replace(PROCESSOR, id="scribble")
    assert Chain(LONGLIVE, PROCESSOR, last).pipelines == (PROCESSOR, LONGLIVE, last)
    assert Chain(LONGLIVE, post_processor=last).pipelines == (LONGLIVE, last)
