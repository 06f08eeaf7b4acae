"""Chunks through the engines, with their caches, are what networks and lists make of the whole generation."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.contract import Interpolation, Mode, Prompt, Transition
from filmstrip.errors import InvalidField, ModelError
from filmstrip.runtime.longlive import graph_names
from filmstrip.runtime.sequences import Chunk, ChunkCancelled
from tests.models.export.checkpoints import WHOLE
from tests.models.export.references import AveragingCache
from tests.models.runtime.longlive.pipeline import (
    HEIGHT,
    WIDTH,
    Tiny,
    again,
    all_outputs,
    chunk,
    engine_calls,
    run,
    still,
    video,
    video_chunk,
)
from tests.models.runtime.longlive.reference import Reference, assert_same, to_pixels

RED, BLUE = "a red circle", "a blue square moving left"


def told(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompts": (Prompt(prompt),), **more}


def moves(step: int) -> dict[str, Any]:
    return told(RED, transition=Transition((Prompt(BLUE),), 3, step, Interpolation.LINEAR))


def between(start: "torch.Tensor", end: "torch.Tensor", share: float) -> "torch.Tensor":
    """The linear way, which keeps the mean of the norms."""
    mixed = (1 - share) * start + share * end
    return mixed * ((1 - share) * start.norm() + share * end.norm()) / mixed.norm()


@pytest.mark.parametrize("which", ["tiny", "tiny_in_window"])
def test_text_mode_with_new_prompts_early_and_late(which: str, request):
    tiny: Tiny = request.getfixturevalue(which)
    prompts = [RED, RED, BLUE, BLUE, BLUE, RED, RED]  # at 6 latent frames all are made anew, at 15 the sink stays
    ours = tiny.frames([chunk(index, **told(prompt)) for index, prompt in enumerate(prompts)])
    slow = Reference(tiny)
    for before, prompt in pairwise([RED, *prompts]):
        slow.chunk(slow.embedding(prompt), recache=prompt != before)
    assert [len(frames) for frames in ours] == [9, *[12] * 6]
    assert_same(ours, slow.frames())


def test_a_transition_is_recached_at_each_step(tiny: Tiny):
    """At the first one too, where the text is still the same: its frames then have seen each other."""
    steps = [chunk(2 + step, **moves(step)) for step in range(3)]
    ours = tiny.frames([chunk(0), chunk(1), *steps, chunk(5, **told(BLUE))])
    slow = Reference(tiny)
    red, blue = slow.embedding(RED), slow.embedding(BLUE)
    for embedding in (red, red):
        slow.chunk(embedding)
    for embedding in (red, between(red, blue, 0.5), blue):
        slow.chunk(embedding, recache=True)
    slow.chunk(blue)
    assert_same(ours, slow.frames())


def test_a_reset_starts_the_video_afresh_but_not_the_noise(tiny: Tiny):
    chunks = [chunk(0), chunk(1), chunk(2, reset=True, **told(BLUE)), chunk(3, **told(BLUE))]
    ours = tiny.frames(chunks)
    slow = Reference(tiny)
    for prompt in (RED, RED):
        slow.chunk(slow.embedding(prompt))
    assert_same(ours[:2], slow.frames())
    slow.reset()
    for prompt in (BLUE, BLUE):
        slow.chunk(slow.embedding(prompt))
    assert [len(frames) for frames in ours] == [9, 12, 9, 12]
    assert_same(ours[2:], slow.frames())


def test_video_mode_keeps_each_frame_in_its_place_and_a_new_prompt_is_recached(tiny: Tiny):
    """The frontend resets on a plain change of prompt; without `manage_cache` and in transitions it does not."""
    frames, prompts = video(36), [RED, RED, BLUE]
    ours = tiny.frames(
        [video_chunk(index, frames, noise_scale=0.6, **told(prompt)) for index, prompt in enumerate(prompts)]
    )
    slow = Reference(tiny)
    source = slow.encode(to_pixels(np.concatenate([frames[:1], frames])))
    for part, prompt in zip(source.split([4, 3, 3], dim=2), prompts, strict=True):
        same = {"num_latents": part.shape[2], "noise_scale": 0.6, "steps": (600, 500, 250)}
        slow.chunk(slow.embedding(prompt), source=part, recache=prompt == BLUE, **same)
    assert_same(ours, slow.frames()[1:])


def test_a_transition_is_recached_in_video_mode_too(tiny: Tiny):
    frames = video(60)
    moving = [video_chunk(2 + step, frames, noise_scale=0.6, **moves(step)) for step in range(3)]
    ours = tiny.frames([*(video_chunk(index, frames, noise_scale=0.6) for index in range(2)), *moving])
    slow = Reference(tiny)
    red, blue = slow.embedding(RED), slow.embedding(BLUE)
    texts = [red, red, red, between(red, blue, 0.5), blue]
    source = slow.encode(to_pixels(np.concatenate([frames[:1], frames])))
    for index, (part, text) in enumerate(zip(source.split([4, 3, 3, 3, 3], dim=2), texts, strict=True)):
        same = {"num_latents": part.shape[2], "noise_scale": 0.6, "steps": (600, 500, 250)}
        slow.chunk(text, source=part, recache=index > 1, **same)
    assert_same(ours, slow.frames()[1:])


def test_a_sink_that_is_an_average(tmp_path: Path):
    """Reward-Forcing's window and sink, through the runtime; with a share that eight chunks can show."""
    decay = 0.6
    settings = {"local_attn_size": 9, "rope_positions": "window", "sink_decay": decay}
    averaging = Tiny(tmp_path, vace_layers=[], **settings)
    ours = averaging.frames([chunk(index) for index in range(7)])
    slow = Reference(averaging)
    slow.cache = AveragingCache(averaging.config, averaging.networks.transformer)
    slow.cache.DECAY = decay
    for _ in range(7):
        slow.chunk(slow.embedding(RED))
    assert_same(ours, slow.frames())


def test_the_cache_may_be_written_at_another_timestep(tmp_path: Path):
    noisy = Tiny(tmp_path, vace_layers=[], context_noise=200)
    pipeline = noisy.pipeline()
    run(pipeline.start(), [chunk(0), chunk(1, **told(BLUE))])
    steps = [1000, 937.5, 833.33, 625]
    timesteps = [float(given["timesteps"][0, 0]) for given in engine_calls(pipeline, "transformer")]
    assert timesteps == pytest.approx([*steps, 200, 200, *steps, 200])


def test_a_first_chunk_may_have_more_steps(tmp_path: Path):
    few = Tiny(tmp_path, vace_layers=[], text_steps=[1000, 625], first_text_steps=[1000, 937.5, 833.33, 625])
    ours = few.frames([chunk(0), chunk(1), chunk(2, reset=True), chunk(3, denoising_steps=(1000, 500))])
    slow = Reference(few)
    red = slow.embedding(RED)
    slow.chunk(red)
    slow.chunk(red, steps=(1000, 625))
    assert_same(ours[:2], slow.frames())
    slow.reset()
    slow.chunk(red)
    slow.chunk(red, steps=(1000, 500))
    assert_same(ours[2:], slow.frames())


def test_without_noise_the_source_comes_back_through_the_autoencoder(tiny: Tiny):
    frames = video(36)
    pipeline = tiny.pipeline()
    ours = run(pipeline.start(), [video_chunk(index, frames, noise_scale=0) for index in range(3)])
    slow = Reference(tiny)
    slow.latents = [slow.encode(to_pixels(np.concatenate([frames[:1], frames])))]
    assert_same(ours, slow.frames()[1:])
    passes = engine_calls(pipeline, "transformer")
    assert [tuple(given["latents"].shape[2:3]) for given in passes] == [(4,), (3,), (3,)]
    assert not any(given["timesteps"].any() for given in passes)  # they write the cache alone


def test_an_input_video_of_another_size_is_resized(tiny: Tiny):
    large = video(12, size=(70, 90))
    right = np.stack([cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for frame in large])
    (ours,), (theirs,) = (tiny.frames([video_chunk(0, frames)]) for frames in (large, right))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("frames", "noise_scale"),
    [(still(12), 0.9 * 0.8 + 0.1 * 0.5), (np.concatenate([still(11), 255 - still(1)]), 0.9 * 0.6 + 0.1 * 0.5)],
    ids=["still", "moving"],
)
def test_the_noise_controller_gives_the_noise_scale(tiny: Tiny, frames: np.ndarray, noise_scale: float):
    (ours,) = tiny.frames([video_chunk(0, frames, noise_scale=0.5, noise_controller=True)])
    (theirs,) = tiny.frames([video_chunk(0, frames, noise_scale=noise_scale)])
    np.testing.assert_array_equal(ours, theirs)


def test_the_motion_into_a_short_chunk_counts(tmp_path):
    """With a latent frame for each pixel frame, the chunk's three are all looked at, from the frame before on."""
    tiny = Tiny(tmp_path, vae={**WHOLE["vae"], "temporal_downsample": [False, False, False]})
    shots = [still(3), 255 - still(3)]

    def second(**told: Any) -> np.ndarray:
        same = {"num_frames": 3, "mode": Mode.VIDEO, "noise_scale": 0.5}
        first, last = (chunk(index, {"input_video": shot}, **same) for index, shot in enumerate(shots))
        return tiny.frames([first, again(last, **told)])[1]

    np.testing.assert_array_equal(second(noise_controller=True), second(noise_scale=0.9 * 0.6 + 0.1 * 0.5))
    afresh = {"reset": True}
    np.testing.assert_array_equal(
        second(noise_controller=True, **afresh), second(noise_scale=0.9 * 0.8 + 0.1 * 0.5, **afresh)
    )


def test_the_bias_weakens_cached_tokens_outside_the_sink(tiny: Tiny):
    ours = tiny.frames([chunk(index, kv_cache_attention_bias=0.3) for index in range(4)])
    slow = Reference(tiny)
    for _ in range(4):
        slow.chunk(slow.embedding(RED), factor=0.3)
    assert_same(ours, slow.frames())


def test_scales_of_loras_change_from_chunk_to_chunk(tiny_with_loras: Tiny):
    given = [{}, {"ink": 0.5}, {"oil": 1.5, "ink": 0.5}, {}]
    pipeline = tiny_with_loras.pipeline()
    ours = run(pipeline.start(), [chunk(index, lora_scales=scales) for index, scales in enumerate(given)])
    slow = Reference(tiny_with_loras)
    for scales in given:
        tensor = torch.tensor([scales.get("ink", 0.0), scales.get("oil", 0.0)])
        slow.chunk(slow.embedding(RED), scales=tensor)
    assert_same(ours, slow.frames())


def test_loras_of_scale_0_are_none(tiny: Tiny, tiny_with_loras: Tiny):
    with_loras, without = (one.frames([chunk(0), chunk(1)]) for one in (tiny_with_loras, tiny))
    np.testing.assert_array_equal(np.concatenate(with_loras), np.concatenate(without))


def test_without_a_vace_branch(tiny_without_vace: Tiny):
    ours = tiny_without_vace.frames([chunk(0), chunk(1)])
    slow = Reference(tiny_without_vace)
    for _ in range(2):
        slow.chunk(slow.embedding(RED))
    assert_same(ours, slow.frames())


# -- Whatever ran before ------------------------------------------------------------------------------------


def test_a_request_gives_the_same_bytes_whatever_ran_before(tiny: Tiny):
    frames = video(24)
    request = [chunk(0), chunk(1, **told(BLUE)), video_chunk(0, frames, reset=True), chunk(3, reset=True)]
    others = [
        [video_chunk(0, frames, seed=7), video_chunk(1, frames)],
        [chunk(0, seed=3, height=16, width=16), chunk(1, reset=True, **told(BLUE))],
    ]
    pipeline = tiny.pipeline()
    first = run(pipeline.start(), request)
    for other in others:
        run(pipeline.start(), other)
        for ours, theirs in zip(run(pipeline.start(), request), first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", Mode)
def test_a_chunk_that_starts_afresh_knows_nothing_of_those_before(tiny: Tiny, mode: Mode):
    """It is cut out of the midst of a transition that cut another short; only its noise knows its place."""
    frames, masks = video(36), np.ones((1, 1, 12, HEIGHT, WIDTH), np.float32)

    def one(index: int, **more: Any) -> Chunk:
        tensors = {"input_video": frames[12 * index :][:12], "vace_masks": masks}
        return chunk(index, tensors, mode=mode, **more)

    green = (Prompt("a square"),)
    history = [one(0), one(1, **moves(0)), one(2, **moves(1))]
    there = [Transition(green, 3, step, Interpolation.LINEAR) for step in range(2)]
    history.append(again(one(2), index=3, transition=there[0]))
    afresh = again(one(1), index=4, transition=there[1], reset=True, pad_first_frame=True)
    *_, ours = tiny.frames([*history, afresh])
    (alone,) = tiny.frames([again(afresh, seed=42 + 4 + 3 * 3)])
    np.testing.assert_array_equal(ours, alone)


@pytest.mark.parametrize("asked", range(5))
def test_a_chunk_can_be_cancelled_between_two_steps(tiny: Tiny, asked: int):
    pipeline = tiny.pipeline()
    (wanted,) = run(pipeline.start(), [chunk(0)])
    answers = iter([*[False] * asked, True])
    sequence = pipeline.start()
    before = len(engine_calls(pipeline, "transformer"))
    with pytest.raises(ChunkCancelled):
        sequence.chunk(chunk(0, cancelled=lambda: next(answers)))
    assert len(engine_calls(pipeline, "transformer")) - before == asked
    for state in (pipeline.start(), sequence):
        (frames,) = run(state, [chunk(0)])
        np.testing.assert_array_equal(frames, wanted)


def test_a_size_may_change_where_a_chunk_starts_afresh(tiny: Tiny):
    (wanted,) = tiny.frames([chunk(0, height=16, width=16, seed=42 + 3)])
    _, frames = tiny.frames([chunk(0), chunk(1, height=16, width=16, reset=True)])
    np.testing.assert_array_equal(frames, wanted)


# -- What is computed, and when -----------------------------------------------------------------------------


def test_what_does_not_change_is_not_computed_again(tiny_with_loras: Tiny):
    pipeline = tiny_with_loras.pipeline()
    sequence = pipeline.start()
    counts = []
    for index, more in enumerate([{}, {}, {"lora_scales": {"ink": 1.0}}, told(BLUE), told(RED)]):
        run(sequence, [chunk(index, **more)])
        counts.append([len(engine_calls(pipeline, graph)) for graph in ("text_encoder", "text_kv")])
    assert counts == [[1, 1], [1, 1], [1, 2], [2, 3], [2, 4]]
    run(pipeline.start(), [chunk(0)])  # encodings of prompts are the model's, not the sequence's
    assert len(engine_calls(pipeline, "text_encoder")) == 2


def test_the_feature_caches_are_handed_on_and_not_copied(tiny: Tiny):
    pipeline = tiny.pipeline()
    run(pipeline.start(), [chunk(index) for index in range(3)])
    given = engine_calls(pipeline, "vae_decoder_next")
    made = [*all_outputs(pipeline, "vae_decoder_first"), *all_outputs(pipeline, "vae_decoder_next")]
    for before, after in zip(made, given, strict=False):
        caches = {name: tensor for name, tensor in after.items() if name != "latents"}
        assert caches.keys() == {name.removeprefix("new_") for name in before.keys() - {"pixels"}}
        assert all(tensor is before[f"new_{name}"] for name, tensor in caches.items())
    assert len(given) == 2


def test_the_kv_cache_never_moves(tiny: Tiny):
    pipeline = tiny.pipeline()
    run(pipeline.start(), [chunk(0), chunk(1, **told(BLUE)), chunk(2, reset=True)])
    for name in ("past_k", "past_v"):
        assert len({given[name].data_ptr() for given in engine_calls(pipeline, "transformer")}) == 1


def test_the_stages_are_timed(tiny: Tiny):
    first, second = chunk(0), chunk(1, **told(BLUE))
    tiny.frames([first, second])
    for one in (first, second):
        assert one.timings.seconds.keys() == {"text", "encode", "denoise", "denoise_step", "cache", "decode"}
        assert all(seconds > 0 for seconds in one.timings.seconds.values())


@pytest.mark.parametrize("which", ["tiny", "tiny_with_loras", "tiny_without_vace"])
def test_the_export_makes_the_graphs_that_the_runtime_asks_for(which: str, request):
    tiny: Tiny = request.getfixturevalue(which)
    assert sorted(graph_names(tiny.pipeline().config)) == sorted(spec.name for spec in tiny.specs)


# -- What is refused ----------------------------------------------------------------------------------------

SHORT = video_chunk(0, video(11), num_frames=12)
REFUSED = {
    "an unknown size": (chunk(0, height=64), "height", "does not support 48x64; exported sizes: 48x32, 16x16"),
    "an unknown LoRA": (chunk(0, lora_scales={"pen": 1.0}), "lora_scales", "'pen' is not a LoRA"),
    "no input video": (again(SHORT), "input_video", "has 11 frames, must have 12"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_chunk_that_cannot_be_generated_is_refused(tiny: Tiny, name: str):
    refused, field, message = REFUSED[name]
    with pytest.raises(InvalidField, match=message) as error:
        tiny.frames([refused])
    assert str(error.value.field).endswith(field)


def test_a_sequence_that_does_not_start_afresh_is_the_frontends_fault(tiny: Tiny):
    with pytest.raises(ModelError, match="must reset"):
        tiny.frames([chunk(1)])
    with pytest.raises(ModelError, match="must reset"):
        tiny.frames([chunk(0), chunk(1, height=16, width=16)])
