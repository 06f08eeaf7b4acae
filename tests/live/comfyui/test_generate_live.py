"""The Generate node against the real server: every widget reaches the model, and the frames come back as they are."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest

from comfyui.errors import FilmstripError
from tests.support.comfyui.host import Comfy, array_of, ramp
from tests.support.comfyui.nodes import chunk_spec, generate, pipeline, schedule
from tests.support.server import Frontend


def received_since(server: Frontend, before: int) -> list[dict[str, Any]]:
    """What the probe was told since."""
    return server.probe_entries()[before:]


def digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_images_come_back_to_the_byte(server: Frontend, comfy: Comfy):
    sent = ramp(30)
    images, count, report = generate(pipeline(server, "passthrough"), images=comfy.tensor(sent), num_frames=0)
    got = array_of(images)
    assert got.dtype == np.float32
    assert np.array_equal(got, sent)
    assert count == 30
    assert report["status"] == "complete"
    assert report["video_shape"] == [30, 64, 96, 3]
    assert [chunk["frames"] for chunk in report["chunks"]] == [12, 12, 6]


def test_text_makes_the_probes_pattern(server: Frontend, comfy: Comfy):
    images, count, report = generate(pipeline(server), num_frames=33, seed=5)
    assert count == 33
    assert np.array_equal(array_of(images)[[0, 9], 0, 0] * np.float32(255), [[5, 90, 175], [36, 121, 206]])
    assert report["request"]["seed"] == 5
    assert {(value, total) for value, total, _ in comfy.bar} == {(1, 3), (2, 3), (3, 3)}
    kind, picture, _ = comfy.bar[-1][2]
    assert kind == "JPEG"
    assert np.array_equal(np.asarray(picture), np.rint(array_of(images)[-1] * 255))
    assert any("chunk 3 of 3" in text for text in comfy.texts)
    assert comfy.texts[-1].startswith("33 frames in 3 chunks, ")


def test_every_field_of_the_generation_reaches_the_model(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    generate(
        pipeline(server),
        num_frames=12,
        images=comfy.tensor(ramp(12, 80, 112)),
        weighted_prompts="30: a cat\n70: a dog",
        prompt_interpolation_method="slerp",
        seed=2**53 + 1,
        width=112,
        height=80,
        noise_scale=0.25,
        noise_controller="on",
        manage_cache=False,
        kv_cache_attention_bias=0.5,
        vace_context_scale=1.5,
        denoising_steps="900, 400",
        lora_scales="ink: 0.5\nneon: -1",
    )
    (received,) = (entry["parameters"] for entry in received_since(server, before))
    assert received["prompts"] == [["a cat", 30], ["a dog", 70]]
    assert received["prompt_interpolation_method"] == "slerp"
    assert (received["seed"], received["width"], received["height"]) == (2**53 + 1, 112, 80)
    assert (received["noise_scale"], received["noise_controller"]) == (0.25, True)
    assert (received["kv_cache_attention_bias"], received["vace_context_scale"]) == (0.5, 1.5)
    assert received["denoising_steps"] == [900, 400]
    assert received["lora_scales"] == {"ink": 0.5, "neon": -1}
    assert received["mode"] == "video"


def test_manage_cache_reaches_the_plan(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    images = comfy.tensor(ramp(24))
    for manage_cache in (True, False):
        generate(
            pipeline(server), num_frames=24, images=images, manage_cache=manage_cache, chunk_specs=schedule("1: a dog")
        )
    assert [received["parameters"]["reset"] for received in received_since(server, before)] == [True, True, True, False]


def test_what_a_chunk_says_wins_over_the_generation(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    images = comfy.tensor(ramp(36))
    specs = chunk_spec(1, text="a dog", manage_cache="off", chunk_specs=chunk_spec(2, vace_use_input_video="on"))
    generate(pipeline(server), num_frames=36, images=images, chunk_specs=specs)
    received = [entry["parameters"] for entry in received_since(server, before)]
    assert [entry["reset"] for entry in received] == [True, False, True]
    assert [entry["mode"] for entry in received] == ["video", "video", "text"]


def test_the_input_video_as_control(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    generate(pipeline(server), num_frames=12, images=comfy.tensor(ramp(12)), vace_use_input_video="on")
    (received,) = received_since(server, before)
    assert received["parameters"]["vace_use_input_video"] is True
    assert received["parameters"]["mode"] == "text"


def test_every_field_of_a_chunk_reaches_the_model(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    specs = chunk_spec(
        0,
        text="a fish",
        transition_target_prompts="40: a bird\na horse",
        transition_num_steps=3,
        transition_method="slerp",
        prompt_interpolation_method="slerp",
        chunk_seed=9,
        noise_scale=0,
        noise_controller="off",
        kv_cache_attention_bias=0.25,
        denoising_steps="800",
        lora_scales="ink: 2",
        vace_context_scale=0,
        vace_temporally_locked=False,
    )
    specs = chunk_spec(2, chunk_specs=specs, prompts="1: x\n2: y", reset_cache=True)
    generate(pipeline(server), num_frames=27, noise_controller="on", chunk_specs=specs)
    first, second, third = (entry["parameters"] for entry in received_since(server, before))
    assert first["prompts"] == [["a fish", 100]]
    assert (first["prompt_interpolation_method"], second["prompt_interpolation_method"]) == ("slerp", "linear")
    assert first["transition"]["target"] == [["a bird", 40], ["a horse", 100]]
    assert first["transition"]["method"] == "slerp"
    assert first["transition"]["num_steps"] == 3
    assert (first["seed"], first["noise_scale"], first["noise_controller"]) == (9, 0, False)
    assert (first["kv_cache_attention_bias"], first["vace_context_scale"]) == (0.25, 0)
    assert (first["denoising_steps"], first["lora_scales"]) == ([800], {"ink": 2})
    assert first["vace_temporally_locked"] is False
    assert (second["seed"], second["noise_controller"], second["lora_scales"]) == (42, True, {})
    assert third["reset"] is True
    assert third["prompts"] == [["x", 1], ["y", 2]]


def test_pictures_of_a_chunk_reach_the_model_to_the_byte(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    images, masks = ramp(5), np.linspace(0, 1, 12 * 64 * 96, dtype=np.float32).reshape(12, 64, 96)
    specs = chunk_spec(
        1,
        first_frame_image=comfy.tensor(images[:1]),
        last_frame_image=comfy.tensor(images[1:2]),
        vace_ref_images=comfy.tensor(images[2:4]),
        vace_frames=comfy.tensor(ramp(12)),
        vace_masks=comfy.tensor(masks),
        input_video=comfy.tensor(ramp(12)[::-1].copy()),
    )
    generate(pipeline(server), num_frames=24, images=comfy.tensor(ramp(24)), chunk_specs=specs)
    plain, received = (entry["tensors"] for entry in received_since(server, before))
    assert set(plain) == {"chunk", "input_video"} & set(plain)
    pixels = np.rint(images * 255).astype(np.uint8)
    assert received["first_frame_image"]["sha256"] == digest(pixels[0])
    assert received["last_frame_image"]["sha256"] == digest(pixels[1])
    assert received["vace_ref_images"]["sha256"] == digest(pixels[2:4])
    control = (ramp(12) * np.float32(2) - np.float32(1)).transpose(3, 0, 1, 2)[None]
    assert received["vace_frames"] == {"shape": [1, 3, 12, 64, 96], "sha256": digest(control)}
    assert received["vace_masks"] == {"shape": [1, 1, 12, 64, 96], "sha256": digest(masks)}
    assert received["input_video"]["sha256"] == digest(np.rint(ramp(12)[::-1] * 255).astype(np.uint8))


def test_batches_are_cut_by_the_servers_chunk_size(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    control, mask = ramp(30), np.ones((1, 64, 96), np.float32)
    _, count, report = generate(
        pipeline(server), num_frames=0, vace_frames=comfy.tensor(control), vace_masks=comfy.tensor(mask)
    )
    assert count == 30
    received = received_since(server, before)
    assert [entry["parameters"]["num_frames"] for entry in received] == [12, 12, 12]
    for index, entry in enumerate(received):
        part = control[12 * index : 12 * index + 12]
        expected = (part * np.float32(2) - np.float32(1)).transpose(3, 0, 1, 2)[None]
        assert entry["tensors"]["vace_frames"]["sha256"] == digest(expected)
        assert entry["tensors"]["vace_masks"]["sha256"] == digest(np.ones((1, 1, 1, 64, 96), np.float32))
    offsets = {spec["vace_masks_offset"] for spec in report["request"]["chunk_specs"]}
    assert len(offsets) == 1, "the one mask is sent once"


def test_a_chunks_own_control_wins_over_the_batch(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    specs = chunk_spec(1, vace_frames=comfy.tensor(np.ones((12, 64, 96, 3), np.float32)))
    generate(
        pipeline(server),
        num_frames=24,
        vace_frames=comfy.tensor(np.zeros((24, 64, 96, 3), np.float32)),
        chunk_specs=specs,
    )
    first, second = (entry["tensors"]["vace_frames"]["sha256"] for entry in received_since(server, before))
    assert first == digest(np.full((1, 3, 12, 64, 96), -1, np.float32))
    assert second == digest(np.ones((1, 3, 12, 64, 96), np.float32))


def test_a_schedule_sets_each_prompt_where_it_begins(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    specs = chunk_spec(2, chunk_seed=7, chunk_specs=schedule("0: a cat\n\n# later\n2: a dog: brown"))
    generate(pipeline(server), num_frames=48, chunk_specs=specs)
    received = [entry["parameters"] for entry in received_since(server, before)]
    assert [entry["prompts"][0][0] for entry in received] == ["a cat", "a cat", *["a dog: brown"] * (len(received) - 2)]
    assert [entry["seed"] for entry in received[1:4]] == [42, 7, 42]


def test_processors_before_and_after(server: Frontend, comfy: Comfy):
    images, _, report = generate(
        pipeline(server),
        num_frames=0,
        images=comfy.tensor(ramp(12)),
        pre_processor=pipeline(server, "gray"),
        post_processor=pipeline(server, "gray"),
    )
    got = array_of(images)
    assert np.array_equal(got[..., 0], got[..., 2])
    assert (report["request"]["pre_processor_id"], report["request"]["post_processor_id"]) == ("gray", "gray")


def test_a_seed_is_kept_from_a_pipeline_that_has_none(server: Frontend, comfy: Comfy):
    _, count, report = generate(pipeline(server, "gray"), seed=123, images=comfy.tensor(ramp(12)), num_frames=0)
    assert count == 12
    assert "seed" not in report["request"]


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images_become_rgb(server: Frontend, comfy: Comfy, channels: int):
    sent = ramp(3, channels=channels)
    images, _, _ = generate(pipeline(server, "passthrough"), images=comfy.tensor(sent), num_frames=0)
    expected = np.repeat(sent, 3, axis=3) if channels == 1 else sent[..., :3] * sent[..., 3:]
    assert np.array_equal(array_of(images), np.rint(expected * np.float32(255)) / np.float32(255))


def test_processors_of_another_server_are_refused(server: Frontend, comfy: Comfy):
    ours = pipeline(server, "gray")
    theirs = type(ours)(type(ours.server)("http://elsewhere"), "gray")
    with pytest.raises(FilmstripError, match="pre-processor: is on http://elsewhere"):
        generate(ours, images=comfy.tensor(ramp(2)), pre_processor=theirs)


def test_other_types_and_forms_of_images_and_masks_are_what_they_show(server: Frontend, comfy: Comfy):
    pixels = np.rint(ramp(1) * 255).astype(np.uint8)
    mask = (ramp(1)[0, :, :, 0] > 0.5).astype(np.float32)
    seeds = itertools.count()

    def received(images: object, masks: object) -> tuple[str, str]:
        before = len(server.probe_entries())
        specs = chunk_spec(0, vace_ref_images=images, vace_masks=masks)
        generate(pipeline(server), num_frames=9, seed=next(seeds), chunk_specs=specs)
        tensors = received_since(server, before)[0]["tensors"]
        return tensors["vace_ref_images"]["sha256"], tensors["vace_masks"]["sha256"]

    plain = received(comfy.tensor(ramp(1)), comfy.tensor(mask[None]))
    assert received(comfy.tensor(pixels[0]), comfy.tensor(mask)) == plain
    assert received(ramp(1), comfy.tensor(mask.astype(np.uint8)[None, :, :, None])) == plain
    assert received(comfy.tensor(ramp(1).astype(np.float64)), comfy.tensor(mask[None, None] > 0)) == plain
    assert received(comfy.tensor(pixels), comfy.tensor(mask.astype(np.float16)[None])) == plain
    assert received(comfy.tensor(pixels), comfy.tensor(mask.astype(np.uint8) * 255)) == plain
