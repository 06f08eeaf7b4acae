"""Conditioned chunks through the engines are what the networks make of contexts that are put together by hand."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from filmstrip.contract import Prompt
from filmstrip.errors import InvalidField
from filmstrip.runtime.sequences import Chunk
from tests.models.runtime.longlive.pipeline import HEIGHT, WIDTH, Tiny, chunk, engine_calls, run, video, video_chunk
from tests.models.runtime.longlive.reference import Reference, assert_same, to_pixels

RED = "a red circle"
FIRST, LAST, SOMEONE, SOMETHING = (video(1, seed=seed) for seed in range(10, 14))
FRAMES = video(24, seed=1)
MASKS = (video(24, seed=2)[..., 0] > 100).astype(np.float32)  # [F, H, W]
MIDDLES = {4: (1, 4, 8, 11), 3: (2, 6, 10)}
"""Of 13 and of 12 frames, those whose mask a latent frame takes."""


def arrays(frames: np.ndarray, masks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """VACE frames and masks as a chunk's tensors."""
    tensors = {"vace_frames": to_pixels(frames).numpy()}
    return tensors if masks is None else {**tensors, "vace_masks": masks[None, None]}


def references(*images: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """References as a chunk's tensor, and as its parameters."""
    joined = np.concatenate([image.ravel() for image in images])
    return {"vace_ref_images": joined}, {"ref_image_shapes": tuple(image.shape[1:] for image in images)}


def doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor[:, :, :1], tensor], dim=2)


class Contexts:
    """Parts of contexts, by whole videos of 1 + 4 k frames."""

    def __init__(self, slow: Reference) -> None:
        self.slow = slow

    def latents(self, pixels: Tensor, made: Tensor) -> Tensor:
        """What is kept and what is made, [1, 4 + 4, T, 4, 6]."""
        return torch.cat([self.slow.encode(pixels * (1 - made)), self.slow.encode(pixels * made)], dim=1)

    def reference(self, image: np.ndarray) -> Tensor:
        return torch.cat([self.slow.encode(to_pixels(image)), torch.zeros(1, 4 + 64, 1, 4, 6)], dim=1)


def with_mask(latents: Tensor, made: Tensor) -> Tensor:
    """The context of a chunk: its latents and, in 64 channels, the masks of the frames that its latent frames take."""
    taken = made[0].transpose(0, 1)[list(MIDDLES[latents.shape[2]])]  # [T, 1, H, W]
    return torch.cat([latents, pixel_unshuffle(taken, 8).transpose(0, 1)[None]], dim=1)


def key_images(num_frames: int) -> tuple[Tensor, Tensor]:
    """Grey frames between the key images, which are to be kept."""
    pixels, made = torch.zeros(1, 3, num_frames, HEIGHT, WIDTH), torch.ones(1, 1, num_frames, HEIGHT, WIDTH)
    pixels[:, :, :4], pixels[:, :, -4:] = to_pixels(FIRST), to_pixels(LAST)
    made[:, :, :4] = made[:, :, -4:] = 0
    return pixels, made


KEY_IMAGES = {"first_frame_image": FIRST[0], "last_frame_image": LAST[0]}


def test_frames_masks_references_and_key_images(tiny: Tiny):
    two, their_shapes = references(SOMEONE, SOMETHING)
    one, its_shape = references(SOMEONE)
    ours = tiny.frames(
        [
            chunk(0, arrays(FRAMES[:12], MASKS[:12]), vace_context_scale=0.7),
            chunk(1, {**arrays(FRAMES[12:], MASKS[12:]), **two}, **their_shapes),
            chunk(2),
            chunk(3, KEY_IMAGES),
            chunk(4, one, **its_shape),
        ]
    )
    slow = Reference(tiny)
    contexts, red = Contexts(slow), slow.embedding(RED)
    # 1. Two chunks of frames are coded as one video; references stand before the chunk.
    pixels, made = doubled(to_pixels(FRAMES)), doubled(torch.from_numpy(MASKS)[None, None])
    first, second = contexts.latents(pixels, made).split([4, 3], dim=2)
    slow.chunk(red, num_latents=4, hints=slow.hints(red, with_mask(first, made[:, :, :13]), scale=0.7))
    before = [contexts.reference(SOMEONE), contexts.reference(SOMETHING)]
    slow.chunk(red, hints=slow.hints(red, torch.cat([*before, with_mask(second, made[:, :, 13:])], dim=2)))
    # 2. Nothing.
    slow.chunk(red)
    # 3. Key images begin a video anew, with their first frame twice; the latent frame of that one is left out.
    pixels, made = key_images(12)
    latents = contexts.latents(doubled(pixels), doubled(made))[:, :, 1:]
    slow.chunk(red, hints=slow.hints(red, with_mask(latents, made)))
    # 4. A reference alone stands before grey frames, all of which are to be made; they go on after the key images'.
    grey, all_made = torch.zeros(1, 3, 12, HEIGHT, WIDTH), torch.ones(1, 1, 12, HEIGHT, WIDTH)
    both = [torch.cat([*pair], dim=2) for pair in ((doubled(pixels), grey), (doubled(made), all_made))]
    latents = contexts.latents(*both)[:, :, 4:]
    context = torch.cat([contexts.reference(SOMEONE), with_mask(latents, all_made)], dim=2)
    slow.chunk(red, hints=slow.hints(red, context))
    assert [len(frames) for frames in ours] == [12] * 5
    assert_same(ours, slow.frames()[1:])


@pytest.mark.parametrize("num_references", [1, 4])
def test_references_alone_stand_before_grey_frames(tiny: Tiny, num_references: int):
    tensors, shapes = references(*[SOMEONE, SOMETHING, FIRST, LAST][:num_references])
    ours = tiny.frames([chunk(0, tensors, **shapes)])
    slow = Reference(tiny)
    contexts, red = Contexts(slow), slow.embedding(RED)
    grey, made = torch.zeros(1, 3, 9, HEIGHT, WIDTH), torch.ones(1, 1, 9, HEIGHT, WIDTH)
    before = [contexts.reference(image) for image in [SOMEONE, SOMETHING, FIRST, LAST][:num_references]]
    frames = torch.cat([contexts.latents(grey, made), torch.ones(1, 64, 3, 4, 6)], dim=1)
    slow.chunk(red, hints=slow.hints(red, torch.cat([*before, frames], dim=2)))
    assert_same(ours, slow.frames())


def test_a_first_chunk_with_only_key_images_is_short(tiny: Tiny):
    ours = tiny.frames([chunk(0, KEY_IMAGES), chunk(1, arrays(FRAMES[:12], MASKS[:12]))])
    slow = Reference(tiny)
    contexts, red = Contexts(slow), slow.embedding(RED)
    pixels, made = key_images(9)
    mask = pixel_unshuffle(made[0].transpose(0, 1)[[1, 4, 7]], 8).transpose(0, 1)[None]
    slow.chunk(red, hints=slow.hints(red, torch.cat([contexts.latents(pixels, made), mask], dim=1)))
    pixels, made = to_pixels(FRAMES[:12]), torch.from_numpy(MASKS[:12])[None, None]
    latents = contexts.latents(doubled(pixels), doubled(made))[:, :, 1:]
    slow.chunk(red, hints=slow.hints(red, with_mask(latents, made)))
    assert [len(frames) for frames in ours] == [9, 12]
    assert_same(ours, slow.frames())


def test_a_video_is_conditioned_too_and_hints_follow_text_and_loras(tiny_with_loras: Tiny):
    blue, scales = "a blue square", {"ink": 0.5, "oil": 1.5}
    one = video_chunk(0, FRAMES, noise_scale=0.8, prompts=(Prompt(blue),), lora_scales=scales)
    one = Chunk(one.parameters, {**one.tensors, **arrays(FRAMES[12:], MASKS[:12])}, one.is_cancelled)
    ours = tiny_with_loras.frames([one])
    slow = Reference(tiny_with_loras)
    tensor, embedding = torch.tensor([0.5, 1.5]), slow.embedding(blue)
    pixels, made = doubled(to_pixels(FRAMES[12:])), doubled(torch.from_numpy(MASKS[:12])[None, None])
    context = with_mask(Contexts(slow).latents(pixels, made), made)
    slow.chunk(
        embedding,
        num_latents=4,
        source=slow.encode(doubled(to_pixels(FRAMES[:12]))),
        noise_scale=0.8,
        steps=(800, 750, 500, 250),
        scales=tensor,
        hints=slow.hints(embedding, context, scales=tensor),
    )
    assert_same(ours, slow.frames()[1:])


def test_the_input_video_as_vace_frames_is_those_frames(tiny: Tiny):
    (ours,) = tiny.frames([chunk(0, {"input_video": FRAMES[:12]}, vace_use_input_video=True)])
    (theirs,) = tiny.frames([chunk(0, arrays(FRAMES[:12]))])
    np.testing.assert_array_equal(ours, theirs)


def test_hints_of_scale_0_are_none_and_passes_at_timestep_0_have_none(tiny: Tiny):
    pipeline = tiny.pipeline()
    run(pipeline.start(), [chunk(0, KEY_IMAGES), chunk(1, prompts=(Prompt("blue"),))])
    passes = engine_calls(pipeline, "transformer")
    assert [bool(given["hints"].any()) for given in passes] == [True] * 4 + [False] * (1 + 1 + 4 + 1)
    (ours,), (theirs,) = (tiny.frames([one]) for one in (chunk(0, KEY_IMAGES, vace_context_scale=0.0), chunk(0)))
    np.testing.assert_array_equal(ours, theirs)


# -- What is refused ----------------------------------------------------------------------------------------


def test_more_references_than_the_engines_take_are_refused(tiny: Tiny):
    for num, is_refused in ((4, False), (5, True)):
        tensors, told = references(*[SOMEONE] * num)
        one = chunk(0, {**tensors, **arrays(FRAMES[:12])}, **told)
        if is_refused:
            with pytest.raises(InvalidField, match="has 5 images, the pipeline takes at most 4"):
                tiny.frames([one])
        else:
            tiny.frames([one])


@pytest.mark.parametrize(
    "one",
    [
        chunk(0, KEY_IMAGES),
        chunk(0, arrays(FRAMES[:12])),
        chunk(0, {"input_video": FRAMES[:12]}, vace_use_input_video=True),
    ],
)
def test_a_pipeline_without_a_branch_takes_no_conditioning(tiny_without_vace: Tiny, one: Chunk):
    with pytest.raises(InvalidField, match="needs a VACE branch"):
        tiny_without_vace.frames([one])
