"""What a plan refuses, before any stream starts: the error names the field, the chunk and the value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from filmstrip.contract import Mode
from filmstrip.errors import InvalidField
from filmstrip.wire import VideoShape
from frontend.array_plan import InputSizes
from frontend.plan import Chain, Plan
from tests.unit.frontend.plans import LONGLIVE, NOTHING, PROCESSOR, plan_request

TEXT_ONLY = replace(LONGLIVE, modes=(Mode.TEXT,))

VIDEO = [12, 320, 576, 3]
FRAMES = [1, 3, 12, 320, 576]
MASKS = [1, 1, 12, 320, 576]
FRAMES_BYTES = 3 * 12 * 320 * 576 * 4
SIZE_OF = {"input_video": 12 * 320 * 576 * 3, "vace_frames": FRAMES_BYTES, "vace_masks": FRAMES_BYTES // 3}
SHAPE_OF = {"input_video": VIDEO, "vace_frames": FRAMES, "vace_masks": MASKS}
BLOB = InputSizes(blob_bytes=FRAMES_BYTES)


def make(chunk_specs: Sequence[Mapping[str, Any]] = (), uploads: InputSizes = BLOB, *args: Any, **fields: Any) -> Plan:
    return plan_request(chunk_specs, uploads, *args, **fields)


def refusal(*args: Any, **fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        make(*args, **fields)
    assert caught.value.status == 422
    return caught.value


def array(name: str, offset: int = 0, shape: list[int] | None = None) -> dict[str, Any]:
    return {f"{name}_shape": shape or SHAPE_OF[name], f"{name}_offset": offset}


# -- A chunk's fields ---------------------------------------------------------------------------------------

REFUSED = [
    # what the spec of chunk 2 says, the field refused, words of the message
    ({"vace_frames_offset": 0}, "vace_frames_shape", ["missing", "vace_frames_offset"]),
    ({"vace_frames_shape": FRAMES}, "vace_frames_offset", ["missing", "vace_frames_shape"]),
    ({"vace_masks_offset": 0}, "vace_masks_shape", ["missing", "vace_masks_offset"]),
    ({"vace_masks_shape": MASKS}, "vace_masks_offset", ["missing", "vace_masks_shape"]),
    ({"input_video_offset": 0}, "input_video_shape", ["missing", "input_video_offset"]),
    ({"input_video_shape": VIDEO}, "input_video_offset", ["missing", "input_video_shape"]),
    (array("vace_frames", shape=[1, 3, 12, 576, 320]), "vace_frames_shape", ["320x576", "576x320"]),
    (array("vace_frames", shape=[1, 3, 12, 320, 560]), "vace_frames_shape", ["560x320", "576x320"]),
    (array("vace_masks", shape=[1, 1, 12, 304, 576]), "vace_masks_shape", ["576x304", "576x320"]),
    (array("input_video", shape=[12, 320, 288, 3]), "input_video_shape", ["288x320", "576x320"]),
    (array("input_video", shape=[12, 160, 576, 3]), "input_video_shape", ["576x160", "576x320"]),
    (array("vace_frames", shape=[1, 2, 12, 320, 576]), "vace_frames_shape", ["2 channels", "1 or 3"]),
    (array("vace_frames", shape=[1, 4, 9, 320, 576]), "vace_frames_shape", ["4 channels", "1 or 3"]),
    (array("vace_masks", shape=[1, 3, 12, 320, 576]), "vace_masks_shape", ["3 channels", "must be 1"]),
    (array("vace_masks", shape=[1, 2, 12, 320, 576]), "vace_masks_shape", ["2 channels", "must be 1"]),
    (array("input_video", shape=[12, 320, 576, 1]), "input_video_shape", ["1 channel,", "3"]),
    (array("input_video", shape=[12, 320, 576, 4]), "input_video_shape", ["4 channels", "3"]),
    (array("vace_frames", shape=[2, 3, 6, 320, 576]), "vace_frames_shape", ["batch of 2"]),
    (array("vace_masks", shape=[2, 1, 6, 320, 576]), "vace_masks_shape", ["batch of 2"]),
    ({"text": "a", "prompts": [{"text": "b"}]}, "prompts", ["text"]),
    ({"text": "", "prompts": [{"text": "b"}]}, "prompts", ["text"]),
]


def test_a_bad_chunk_is_named_with_its_field_and_value(subtests: pytest.Subtests) -> None:
    for spec, field, words in REFUSED:
        with subtests.test(field, spec=spec):
            error = refusal([{"chunk": 4}, {"chunk": 2, **spec}])
            assert error.field == f"chunk_specs[1].{field}"
            assert error.message.startswith(f"{error.field} (chunk 2): ")
            for word in words:
                assert word in error.message


def test_an_array_may_end_at_the_end_of_the_blob_but_not_one_byte_later(subtests: pytest.Subtests) -> None:
    for name in list(SIZE_OF):
        for offset in (0, 1, 17):
            with subtests.test(name=name, offset=offset):
                end = offset + SIZE_OF[name]
                plan = make([{"chunk": 2, **array(name, offset)}], InputSizes(blob_bytes=end))
                assert (
                    plan.chunks[2].tensors[0].extents[-1].offset + plan.chunks[2].tensors[0].extents[-1].num_bytes
                    == end
                )
                error = refusal([{"chunk": 2, **array(name, offset)}], InputSizes(blob_bytes=end - 1))
                assert error.field == f"chunk_specs[0].{name}_offset"
                for word in ("chunk 2", f"at {offset} ends at {end}", f"{end - 1} bytes"):
                    assert word in error.message


@pytest.mark.parametrize("name", list(SIZE_OF))
def test_bytes_that_the_chunk_does_not_use_must_lie_in_the_blob_too(name: str) -> None:
    shape = [13 if side == 12 else side for side in SHAPE_OF[name]]
    error = refusal([{"chunk": 2, **array(name, 0, shape)}], InputSizes(blob_bytes=SIZE_OF[name]))
    assert error.field == f"chunk_specs[0].{name}_offset"


@pytest.mark.parametrize("name", list(SIZE_OF))
@pytest.mark.parametrize("shape", [[1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1], None])
def test_dimensions_whose_product_is_huge_do_not_wrap_around(name: str, shape: list[int] | None) -> None:
    shape = (shape or [1, 1, 2**31, 2**31, 4])[-len(SHAPE_OF[name]) :]
    assert refusal([{"chunk": 2, **array(name, 0, shape)}]).field == f"chunk_specs[0].{name}_offset"
    assert refusal([{"chunk": 2, **array(name, 2**63 - 1)}]).field == f"chunk_specs[0].{name}_offset"


@pytest.mark.parametrize("name", list(SIZE_OF))
def test_an_array_needs_a_blob(name: str) -> None:
    error = refusal([{"chunk": 2, **array(name)}], NOTHING)
    assert error.field == f"chunk_specs[0].{name}_offset"
    assert "chunk 2" in error.message
    assert "data_blob_path" in error.message


@pytest.mark.parametrize("channels", [1, 3])
def test_vace_frames_have_one_or_three_channels(channels: int) -> None:
    plan = make([{"chunk": 2, **array("vace_frames", shape=[1, channels, 12, 320, 576])}])
    assert plan.chunks[2].tensors[0].shape == (1, channels, 12, 320, 576)


def test_a_spec_beyond_the_last_chunk_is_refused() -> None:
    assert len(make([{"chunk": 4, "text": "a"}]).chunks) == 5
    for chunk in (5, 9999):
        error = refusal([{"chunk": 0}, {"chunk": chunk}])
        assert error.field == "chunk_specs[1].chunk"
        words = f"no chunk {chunk}; the generation has 5 chunks (48 frames of longlive), numbered from 0"
        assert error.message == f"chunk_specs[1].chunk: {words}"
    assert (
        "the generation has 1 chunk (9 frames of longlive), numbered from 0"
        in refusal([{"chunk": 1}], num_frames=9).message
    )


def test_chunks_that_resets_add_may_have_specs() -> None:
    resets = [{"chunk": chunk, "reset_cache": True} for chunk in (1, 2, 3, 4)]
    assert len(make([*resets, {"chunk": 5}]).chunks) == 6
    assert "6 chunks" in refusal([*resets, {"chunk": 6}]).message


def test_two_specs_of_one_chunk_are_refused() -> None:
    error = refusal([{"chunk": 0}, {"chunk": 3, "seed": 1}, {"chunk": 3, "text": "a"}])
    assert error.field == "chunk_specs[2].chunk"
    assert "chunk 3" in error.message
    assert "chunk_specs[1]" in error.message


# -- LoRAs --------------------------------------------------------------------------------------------------


LORA_PATHS = [
    ("ink", "ink"),
    ("ink.safetensors", "ink"),
    ("path/to/ink.safetensors", "ink"),
    ("/abs/ink.pt", "ink"),
    ("C:\\loras\\ink.safetensors", "ink"),
    ("../ink", "ink"),
    ("ink/", "ink"),
    ("neon.v2", "neon.v2"),
    ("neon.v2.safetensors", "neon.v2"),
    ("some/neon.v2", "neon.v2"),
]


def test_a_lora_is_known_by_name_file_or_stem(subtests: pytest.Subtests) -> None:
    for path, name in LORA_PATHS:
        with subtests.test(path):
            assert make(lora_scales={path: 0.5}).chunks[0].parameters.lora_scales == {name: 0.5}
            chunk = make([{"chunk": 1, "lora_scales": {path: 0.0}}]).chunks[1]
            assert chunk.parameters.lora_scales == {name: 0.0}


def test_an_unknown_lora_is_refused_with_a_list_of_the_known_ones(subtests: pytest.Subtests) -> None:
    for path in ("", "/", "inky", "INK", "ink.safetensors/x", "neon", "neon.safetensors", "*"):
        with subtests.test(path):
            for error, field in (
                (refusal(lora_scales={path: 1}), "lora_scales"),
                (refusal([{"chunk": 1, "lora_scales": {"ink": 1, path: 1}}]), "chunk_specs[0].lora_scales"),
            ):
                assert error.field == field
                assert repr(path) in error.message
                assert "longlive has: ink, neon.v2" in error.message


def test_a_lora_named_twice_is_refused() -> None:
    error = refusal([{"chunk": 0}, {"chunk": 1, "lora_scales": {"ink": 1, "loras/ink.safetensors": 2}}])
    assert error.field == "chunk_specs[1].lora_scales"
    assert "twice" in error.message


def test_an_unknown_lora_of_the_request_is_refused_though_every_chunk_has_its_own() -> None:
    error = refusal([{"chunk": 0, "lora_scales": {"ink": 1}}], num_frames=9, lora_scales={"unknown": 1})
    assert error.field == "lora_scales"


def test_an_unknown_lora_of_a_chunk_names_the_chunk() -> None:
    assert "chunk 1" in refusal([{"chunk": 1, "lora_scales": {"unknown": 1}}]).message


# -- Sizes --------------------------------------------------------------------------------------------------


def test_a_refused_side_names_the_nearest_multiples_of_the_granularity(
    subtests: pytest.Subtests,
) -> None:
    for side in ("height", "width"):
        for value, nearest in ((100, "96 or 112"), (65, "64 or 80"), (2047, "2032 or 2048"), (321, "320 or 336")):
            with subtests.test(side=side, value=value, nearest=nearest):
                error = refusal(**{side: value})
                assert error.field == side
                for word in (side, str(value), "16", nearest):
                    assert word in error.message


def test_sides_that_are_multiples_of_the_granularity_are_accepted(subtests: pytest.Subtests) -> None:
    for value in (64, 80, 2048):
        with subtests.test(value=value):
            assert make(height=value, width=value, num_frames=1).output == (1, value, value, 3)


@pytest.mark.parametrize(
    ("given", "field"), [({"height": 64}, "height"), ({"width": 64}, "width"), ({"height": 64, "width": 64}, "height")]
)
def test_a_size_that_a_pipeline_was_not_exported_for_is_refused(given: dict[str, int], field: str) -> None:
    chain = Chain(replace(LONGLIVE, sizes=((320, 576), (480, 832))))
    error = refusal(chain=chain, **given)
    assert error.field == field
    assert "exported sizes: 576x320, 832x480" in error.message
    assert make(chain=chain, height=480, width=832, num_frames=1).output == (1, 480, 832, 3)


def test_more_references_than_a_pipeline_takes_are_refused() -> None:
    chain = Chain(replace(LONGLIVE, max_references=1))
    uploads = InputSizes(image_shapes={"a": (8, 6, 3)})
    error = refusal([{"chunk": 1, "vace_ref_images": ["a", "a"]}], uploads, chain)
    assert error.field == "chunk_specs[0].vace_ref_images"
    assert "chunk 1" in error.message
    assert make([{"chunk": 1, "vace_ref_images": ["a"]}], uploads, chain).chunks


def test_the_inputs_size_must_fit_a_pipeline_without_a_size_of_its_own() -> None:
    sizeless = replace(LONGLIVE, height=None, width=None)
    uploads = InputSizes(VideoShape(3, 320, 100, 3))
    error = refusal(uploads=uploads, chain=Chain(sizeless))
    assert error.field == "input_path"
    assert "96 or 112" in error.message
    assert make(uploads=uploads, chain=Chain(sizeless), width=112).output == (48, 320, 112, 3)


def test_a_chunk_takes_no_more_bytes_than_allowed() -> None:
    spec = {"chunk": 2, **array("vace_frames"), "first_frame_image": "a"}
    uploads = InputSizes(VideoShape(1, 10, 10, 3), FRAMES_BYTES, {"a": (8, 6, 3)})
    chain = Chain(LONGLIVE, PROCESSOR, PROCESSOR)
    needed = 12 * 300 + FRAMES_BYTES + 144 + 3 * (12 * 320 * 576 * 3)
    assert len(make([spec], uploads, chain, needed).chunks) == 4
    error = refusal([spec], uploads, chain, needed - 1)
    for word in ("chunk 2", str(needed), str(needed - 1)):
        assert word in error.message


def test_an_array_too_large_for_a_chunk_is_named() -> None:
    shape = [1, 3, 120, 320, 576]
    spec = {"chunk": 2, **array("vace_frames", shape=shape), "vace_temporally_locked": False}
    error = refusal([spec], InputSizes(blob_bytes=10 * FRAMES_BYTES), max_chunk_bytes=10 * FRAMES_BYTES)
    assert error.field == "chunk_specs[0].vace_frames_shape"
    assert str(10 * FRAMES_BYTES) in error.message
    assert refusal(max_chunk_bytes=1).field == "height"


# -- Pipelines and their input ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pre_processor", "post_processor"])
def test_only_frame_processors_stand_before_and_after_a_pipeline(name: str) -> None:
    uploads = InputSizes(VideoShape(1, 320, 576, 3))
    error = refusal(uploads=uploads, chain=replace(Chain(LONGLIVE), **{name: LONGLIVE}))
    assert error.field == f"{name}_id"
    assert "longlive" in error.message
    assert len(make(uploads=uploads, chain=replace(Chain(LONGLIVE), **{name: PROCESSOR})).chunks) == 4


def test_models_take_three_channels(subtests: pytest.Subtests) -> None:
    for channels in (1, 4):
        for chain in (Chain(LONGLIVE), Chain(PROCESSOR), Chain(LONGLIVE, PROCESSOR)):
            with subtests.test(channels=channels, chain=chain):
                error = refusal(uploads=InputSizes(VideoShape(1, 64, 64, channels)), chain=chain)
                assert error.field == "input_path"
                assert re.search(rf"\b{channels} channels?\b", error.message)


OWN = {"chunk": 0, "input_video_shape": [12, 320, 576, 3], "input_video_offset": 0}
NO_INPUT = [
    # chain, specs, request fields, words of the message
    (Chain(PROCESSOR), [], {}, ["gray needs an input video"]),
    (Chain(PROCESSOR), [], {"height": 64}, ["gray needs an input video"]),
    (Chain(PROCESSOR), [], {"height": 64, "width": 64}, ["gray needs an input video", "chunk 0"]),
    (Chain(PROCESSOR), [OWN], {}, ["gray needs an input video", "chunk 1"]),
    (Chain(LONGLIVE, PROCESSOR), [], {}, ["pre-processor", "chunk 0"]),
    (Chain(LONGLIVE, PROCESSOR), [OWN], {}, ["pre-processor", "chunk 1"]),
    (Chain(LONGLIVE), [], {"vace_use_input_video": True}, ["vace_use_input_video", "chunk 0"]),
    (Chain(LONGLIVE), [{"chunk": 3, "vace_use_input_video": True}], {}, ["vace_use_input_video", "chunk 3"]),
    (Chain(LONGLIVE), [OWN], {"vace_use_input_video": True}, ["vace_use_input_video", "chunk 1"]),
]


def test_a_missing_input_video_is_refused_where_it_is_needed(subtests: pytest.Subtests) -> None:
    for chain, specs, fields, words in NO_INPUT:
        with subtests.test(specs=specs, fields=fields):
            error = refusal(specs, chain=chain, **fields)
            assert error.field == "input_path"
            for word in words:
                assert word in error.message


def test_an_input_video_that_the_pipeline_cannot_use_is_refused() -> None:
    error = refusal(uploads=InputSizes(VideoShape(1, 320, 576, 3)), chain=Chain(TEXT_ONLY))
    assert error.field == "input_path"
    assert "longlive takes no input video" in error.message


def test_a_chunks_video_that_the_pipeline_cannot_use_is_refused_by_its_name() -> None:
    error = refusal([{**OWN, "chunk": 2}], chain=Chain(TEXT_ONLY))
    assert error.field == "chunk_specs[0].input_video_shape"
    assert "chunk 2" in error.message
