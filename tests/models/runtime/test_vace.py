"""A chunk's conditioning: from its arrays, by hand with an encoder that picks pixels, and against diffusers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from torch import Tensor

from filmstrip.contract import ChunkParameters, Mode
from filmstrip.errors import InvalidField, ModelError
from filmstrip.runtime.sequences import Chunk
from filmstrip.runtime.vace import (
    Conditioning,
    VaceEncoders,
    fold_mask,
    read_conditioning,
    read_references,
    vace_context,
)

# -- From the contract's arrays ------------------------------------------------------------------------------

IMAGE_HEIGHT, IMAGE_WIDTH = 16, 24
WHITE, BLACK = 1.0, -1.0


def chunk(tensors: dict[str, np.ndarray], num_frames: int = 12, **fields: Any) -> Chunk:
    fields = {"index": 1, "height": IMAGE_HEIGHT, "width": IMAGE_WIDTH, "mode": Mode.TEXT, **fields}
    return Chunk(ChunkParameters(num_frames=num_frames, **fields), tensors, lambda: False)


def video(*levels: int, size: tuple[int, int] = (IMAGE_HEIGHT, IMAGE_WIDTH)) -> np.ndarray:
    return np.array(levels, np.uint8).reshape(-1, 1, 1, 1).repeat(size[0], 1).repeat(size[1], 2).repeat(3, 3)


def image(level: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def floats(*values: float, channels: int = 3) -> np.ndarray:
    frames = np.array(values, np.float32).reshape(1, 1, -1, 1, 1)
    return np.ascontiguousarray(np.broadcast_to(frames, (1, channels, len(values), IMAGE_HEIGHT, IMAGE_WIDTH)))


def told_levels(array: "torch.Tensor") -> list[float]:
    """The value of each frame, all even."""
    values = array[0, 0, :, 0, 0]
    assert torch.equal(array, values.reshape(1, 1, -1, 1, 1).expand(1, array.shape[1], -1, IMAGE_HEIGHT, IMAGE_WIDTH))
    return values.tolist()


CASES = {
    "frames and masks": (
        chunk({"vace_frames": floats(*range(12)), "vace_masks": floats(*[0, 1] * 6, channels=1)}),
        *(list(range(12)), [0, 1] * 6),
    ),
    "frames of one channel, short": (
        chunk({"vace_frames": floats(0.25, 0.5, channels=1)}),
        *([0.25] + [0.5] * 11, [1] * 12),
    ),
    "frames to be resampled": (
        chunk({"vace_frames": floats(0.25, 0.5)}, vace_temporally_locked=False),
        *([0.25] * 6 + [0.5] * 6, [1] * 12),
    ),
    "a first chunk with frames": (
        chunk({"vace_frames": floats(*range(12))}, reset=True, pad_first_frame=True),
        *([0, *range(12)], [1] * 13),
    ),
    "the input video as frames": (
        chunk({"input_video": video(*[255] * 11, 0, size=(40, 70))}, vace_use_input_video=True),
        *([WHITE] * 11 + [BLACK], [1] * 12),
    ),
    "the input video as a first chunk's frames": (
        chunk({"input_video": video(0, *[255] * 11)}, vace_use_input_video=True, reset=True, pad_first_frame=True),
        *([BLACK] * 2 + [WHITE] * 11, [1] * 13),
    ),
    "own frames before the input video": (
        chunk({"vace_frames": floats(0.5), "input_video": video(*[255] * 12)}, vace_use_input_video=True),
        *([0.5] * 12, [1] * 12),
    ),
    "an input video that is the source": (chunk({"input_video": video(*[255] * 12)}, mode=Mode.VIDEO), None, None),
    "key images in a first chunk from text": (
        chunk({"first_frame_image": image(255, 30, 90), "last_frame_image": image(0, 90, 30)}, 9, reset=True),
        *([WHITE] * 4 + [0] + [BLACK] * 4, [0] * 4 + [1] + [0] * 4),
    ),
    "a key image in a first chunk of video": (
        chunk(
            {"first_frame_image": image(255, 5, 5), "input_video": video(*[0] * 12)},
            mode=Mode.VIDEO,
            reset=True,
            pad_first_frame=True,
        ),
        *([WHITE] * 5 + [0] * 8, [0] * 5 + [1] * 8),
    ),
    "references alone": (chunk({"vace_ref_images": image(0, 2, 2).ravel()}, ref_image_shapes=((2, 2, 3),)), None, None),
    "nothing": (chunk({}), None, None),
}


@pytest.mark.parametrize(("given", "frames", "masks"), CASES.values(), ids=CASES)
def test_a_chunks_arrays_become_its_conditioning(given: Chunk, frames: list[float] | None, masks: list[float] | None):
    made = read_conditioning(given)
    if frames is None:
        assert made is None
    else:
        assert made is not None
        assert told_levels(made.frames) == frames
        assert told_levels(made.masks) == masks


def test_an_input_video_that_is_missing_is_named():
    with pytest.raises(InvalidField, match="chunk 1: input_video is missing"):
        read_conditioning(chunk({}, vace_use_input_video=True))


def test_references_are_whole_on_white():
    wide, square = image(0, 4, 24), image(0, 8, 8)
    joined = np.concatenate([wide.ravel(), square.ravel()])
    made = read_references(chunk({"vace_ref_images": joined}, ref_image_shapes=(wide.shape, square.shape)))
    assert [reference.shape for reference in made] == [(1, 3, 1, IMAGE_HEIGHT, IMAGE_WIDTH)] * 2
    rows = [(reference[0, 0, 0] == BLACK).sum(1).tolist() for reference in made]
    assert rows == [[0] * 6 + [24] * 4 + [0] * 6, [16] * 16]
    assert set(made[0].unique().tolist()) == {BLACK, WHITE}


def test_no_references():
    assert read_references(chunk({})) == []


def test_references_that_do_not_fit_their_shapes_are_refused():
    with pytest.raises(ModelError, match="vace_ref_images has 12"):
        read_references(chunk({"vace_ref_images": image(0, 2, 2).ravel()}, ref_image_shapes=((2, 3, 3),)))


def test_arrays_are_moved_to_the_device():
    given = chunk({"vace_frames": floats(0.5)})
    made = read_conditioning(given, "meta")
    assert made is not None
    assert made.frames.device.type == made.masks.device.type == "meta"


HEIGHT, WIDTH = 4, 6
SIDE = 2  # pixels of a latent pixel's side in these tests


def levels(*values: float, channels: int = 3) -> Tensor:
    """One even frame for each value."""
    return torch.tensor(values).float().reshape(1, 1, -1, 1, 1).repeat(1, channels, 1, HEIGHT, WIDTH)


def masks(*values: float) -> Tensor:
    return levels(*values, channels=1)


def told(array: Tensor) -> list[float]:
    """The value of each frame, all even."""
    values = array[0, 0, :, 0, 0]
    assert torch.equal(array, values.reshape(1, 1, -1, 1, 1).expand_as(array))
    return values.tolist()


class Encoder:
    """A VAE's shapes without its weights: the upper left pixel, in the last frame, of what is one latent pixel."""

    def __init__(self, side: int = SIDE, factor: float = 1.0) -> None:
        self.side = side
        self.factor = factor
        self.given: list[Tensor] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.given.append(pixels)
        last_first = (pixels.shape[2] - 1) % 4  # 0 where the first frame is a latent frame of its own, else 3
        return self.factor * pixels[:, :, last_first::4, :: self.side, :: self.side]


def encoders(side: int = SIDE) -> VaceEncoders:
    return VaceEncoders(Encoder(side), Encoder(side, 10), Encoder(side, 100))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- Masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "num_latent_frames", "expected"),
    [(13, 4, [1, 4, 8, 11]), (12, 3, [2, 6, 10]), (9, 3, [1, 4, 7]), (1, 1, [0]), (81, 21, None), (4, 4, [0, 1, 2, 3])],
)
def test_the_frames_of_a_folded_mask(num_frames: int, num_latent_frames: int, expected: list[int] | None):
    folded = fold_mask(masks(*range(num_frames)), num_latent_frames, SIDE)
    assert folded.shape == (1, 4, num_latent_frames, HEIGHT // SIDE, WIDTH // SIDE)
    if expected is None:
        expected = torch.nn.functional.interpolate(
            torch.arange(81.0).reshape(1, 1, -1), num_latent_frames, mode="nearest-exact"
        )[0, 0].tolist()
    assert told(folded) == expected


@given(st.integers(1, 60), st.integers(1, 20))
def test_frames_are_chosen_as_nearest_exact_does(num_frames: int, num_latent_frames: int):
    numbers = torch.arange(float(num_frames)).reshape(1, 1, -1)
    expected = torch.nn.functional.interpolate(numbers, num_latent_frames, mode="nearest-exact")
    # torch's choice is made in float32; where the middle lies on a frame's edge it may be the one before.
    made = fold_mask(numbers.reshape(1, 1, -1, 1, 1), num_latent_frames, 1)[0, 0, :, 0, 0]
    for index, (ours, theirs) in enumerate(zip(made.tolist(), expected[0, 0].tolist(), strict=True)):
        on_edge = (2 * index + 1) * num_frames % (2 * num_latent_frames) == 0
        assert ours - theirs in ((0, 1) if on_edge else (0,))


def test_the_channels_of_a_folded_mask():
    mask = torch.arange(24.0).reshape(1, 1, 1, 4, 6)
    assert fold_mask(mask, 1, SIDE)[0, :, 0].tolist() == [
        [[0, 2, 4], [12, 14, 16]],
        [[1, 3, 5], [13, 15, 17]],
        [[6, 8, 10], [18, 20, 22]],
        [[7, 9, 11], [19, 21, 23]],
    ]


# -- In pixels ------------------------------------------------------------------------------------------------

FRAMES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
IMAGE, OTHER = levels(-0.5), levels(-0.7)


@pytest.mark.parametrize(
    ("num_frames", "given", "expected_frames", "expected_masks"),
    [
        (9, {"frames": levels(*FRAMES)}, FRAMES, [1] * 9),
        (9, {"frames": levels(*FRAMES, channels=1)}, FRAMES, [1] * 9),
        (3, {"masks": masks(0, 1, 0)}, [0] * 3, [0, 1, 0]),
        (5, {"frames": levels(1, 2, 3, 4, 5), "masks": masks(0, 0.5, 0.51, 1, 0.2)}, [1, 2, 3, 4, 5], [0, 0, 1, 1, 0]),
        # Key images fill a group of four and are kept, the rest is made.
        (9, {"first_image": IMAGE}, [-0.5] * 4 + [0] * 5, [0] * 4 + [1] * 5),
        (12, {"last_image": IMAGE}, [0] * 8 + [-0.5] * 4, [1] * 8 + [0] * 4),
        (
            *(12, {"first_image": IMAGE, "last_image": OTHER}),
            *([-0.5] * 4 + [0] * 4 + [-0.7] * 4, [0] * 4 + [1] * 4 + [0] * 4),
        ),
        # Beside arrays, the rest is theirs.
        (9, {"frames": levels(*FRAMES), "first_image": IMAGE}, [-0.5] * 4 + FRAMES[4:], [0] * 4 + [1] * 5),
        (
            *(9, {"frames": levels(*FRAMES), "masks": masks(1, 1, 1, 0, 1, 0, 1, 1, 1), "last_image": IMAGE}),
            *(FRAMES[:5] + [-0.5] * 4, [1, 1, 1, 0, 1, 0, 0, 0, 0]),
        ),
        # Arrays of other lengths.
        (3, {"frames": levels(1, 2, 3, 4), "masks": masks(1, 0, 0, 1)}, [1, 2, 3], [1, 0, 0]),
        (5, {"frames": levels(1, 2), "masks": masks(1, 1, 0)}, [1, 2, 2, 2, 2], [1, 1, 0, 0, 0]),
        (2, {"frames": levels(1, 2, 3, 4), "masks": masks(1, 0, 0, 1), "locked": False}, [1, 3], [1, 0]),
        (4, {"frames": levels(1, 2), "masks": masks(0, 1), "locked": False}, [1, 1, 2, 2], [0, 0, 1, 1]),
    ],
)
def test_conditioning(num_frames: int, given: dict[str, Any], expected_frames: list[float], expected_masks: list[int]):
    made = Conditioning.combine(num_frames, **given)
    assert made is not None
    assert made.frames.shape == (1, 3, num_frames, HEIGHT, WIDTH)
    assert made.masks.shape == (1, 1, num_frames, HEIGHT, WIDTH)
    assert told(made.frames) == pytest.approx(expected_frames)
    assert told(made.masks) == expected_masks


def test_without_inputs_there_is_nothing_to_condition_on():
    assert Conditioning.combine(12) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_inputs_are_not_changed(channels: int):
    frames, image = levels(*FRAMES, channels=channels), IMAGE.clone()
    Conditioning.combine(9, frames=frames, first_image=image)
    assert torch.equal(frames, levels(*FRAMES, channels=channels))
    assert torch.equal(image, IMAGE)


def test_a_first_chunk_has_its_first_frame_twice():
    made = Conditioning.combine(12, frames=levels(*range(12)), masks=masks(0, *[1] * 11))
    assert made is not None
    assert told(made.padded().frames) == [0, *range(12)]
    assert told(made.padded().masks) == [0, 0, *[1] * 11]


# -- In latents -----------------------------------------------------------------------------------------------


def test_inactive_and_reactive_pixels_are_encoded_separately():
    frames = noise(1, 3, 12, HEIGHT, WIDTH)
    mask = (noise(1, 1, 12, HEIGHT, WIDTH, seed=1) > 0).float()
    ways = encoders()
    context = vace_context(Conditioning(frames, mask), [], ways, 3, SIDE)
    assert context.num_references == 0
    assert context.latents.shape == (1, 3 + 3 + 4, 3, 2, 3)
    inactive, reactive, reference = (way.given for way in (ways.inactive, ways.reactive, ways.reference))
    assert torch.equal(inactive[0], torch.where(mask == 1, 0.0, frames))
    assert torch.equal(reactive[0], torch.where(mask == 1, frames, 0.0))
    assert (len(inactive), len(reactive), len(reference)) == (1, 1, 0)
    corner = (slice(None), slice(None), slice(3, None, 4), slice(None, None, 2), slice(None, None, 2))
    assert torch.equal(context.latents[:, :3], (frames * (1 - mask))[corner])
    assert torch.equal(context.latents[:, 3:6], 10 * (frames * mask)[corner])
    for channel, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)], start=6):
        assert torch.equal(context.latents[:, channel], mask[:, 0, [2, 6, 10], row::2, column::2])


def test_a_first_frame_image_by_hand():
    """A first chunk of 12 frames as 13: the image is all of the doubled frame's latents and of the first four's."""
    conditioning = Conditioning.combine(12, first_image=IMAGE)
    assert conditioning is not None
    context = vace_context(conditioning.padded(), [], encoders(), 4, SIDE)
    assert told(context.latents[:, :3]) == [-0.5, -0.5, 0, 0]
    assert told(context.latents[:, 3:6]) == [0, 0, 0, 0]
    assert told(context.latents[:, 6:]) == [0, 0, 1, 1]


def test_references_stand_before_frames():
    ways = encoders()
    conditioning = Conditioning.combine(12, frames=levels(*range(12)), masks=masks(*[1] * 6, *[0] * 6))
    context = vace_context(conditioning, [levels(0.3), levels(0.4)], ways, 3, SIDE)
    assert context.num_references == 2
    assert told(context.latents[:, :3]) == pytest.approx([30, 40, 0, 7, 11])
    assert told(context.latents[:, 3:6]) == [0, 0, 30, 0, 0]
    assert told(context.latents[:, 6:]) == [0, 0, 1, 0, 0]
    assert [image.shape[2] for image in ways.reference.given] == [1, 1]


@pytest.mark.parametrize(
    ("num_images", "expected", "num_references"),
    [
        (1, [10, 0, 0], 0),
        (2, [10, 20, 0], 0),
        (3, [10, 20, 30], 0),
        (4, [10, 20, 30, 40, 0, 0, 0], 4),
    ],
)
def test_references_without_frames(num_images: int, expected: list[float], num_references: int):
    ways = encoders()
    images = [levels(0.1 * (index + 1)) for index in range(num_images)]
    context = vace_context(None, images, ways, 3, SIDE)
    assert context.num_references == num_references
    assert told(context.latents[:, :3]) == pytest.approx(expected)
    assert context.latents.shape[1:3] == (10, len(expected))
    assert not context.latents[:, 3:].any()
    assert not ways.inactive.given
    assert not ways.reactive.given


@pytest.mark.parametrize("pads", [False, True])
def test_references_before_grey_frames_that_are_to_be_made(pads: bool):
    ways = encoders()
    sizes = {"height": HEIGHT, "width": WIDTH}
    params = ChunkParameters(index=0, num_frames=12, mode=Mode.TEXT, reset=True, pad_first_frame=pads, **sizes)
    grey = Conditioning.grey(params, IMAGE)
    assert grey.frames.shape == (1, 3, 12 + pads, HEIGHT, WIDTH)
    context = vace_context(grey, [levels(0.1), levels(0.2)], ways, 3 + pads, SIDE)
    assert context.num_references == 2
    assert told(context.latents[:, :3]) == pytest.approx([10, 20] + [0] * (3 + pads))
    assert not context.latents[:, 3:6].any()
    assert told(context.latents[:, 6:]) == [0, 0] + [1] * (3 + pads)


@pytest.mark.parametrize("num_references", [0, 1, 3])
def test_wans_context_has_96_channels(num_references: int):
    encode = lambda pixels: noise(1, 16, (pixels.shape[2] + 3) // 4, 4, 6)  # noqa: E731
    conditioning = Conditioning(noise(1, 3, 13, 32, 48), torch.ones(1, 1, 13, 32, 48))
    images = [noise(1, 3, 1, 32, 48)] * num_references
    context = vace_context(conditioning, images, VaceEncoders(encode, encode, encode), 4)
    assert context.latents.shape == (1, 96, num_references + 4, 4, 6)


def test_latents_in_16_bit_make_a_context_in_16_bit():
    ways = VaceEncoders(*[lambda pixels: Encoder()(pixels).bfloat16()] * 3)
    context = vace_context(Conditioning.combine(12, frames=levels(*range(12))), [IMAGE], ways, 3, SIDE)
    assert context.latents.dtype == torch.bfloat16


# -- Beside diffusers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [9, 13])
@pytest.mark.parametrize("with_reference", [False, True])
def test_the_context_is_that_of_diffusers(num_frames: int, with_reference: bool):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
    frames, reference = noise(1, 3, num_frames, 32, 48), noise(1, 3, 1, 32, 48, seed=1)
    mask = noise(1, 1, num_frames, 32, 48, seed=2).sigmoid()
    encoder = Encoder(side=8)

    def encode(pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: encoder(pixels)))

    statistics = SimpleNamespace(z_dim=3, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
    parts = SimpleNamespace(
        vae=SimpleNamespace(encode=encode, dtype=torch.float32, config=statistics),
        transformer=SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2))),
        vae_scale_factor_spatial=8,
        vae_scale_factor_temporal=4,
    )
    images = [[reference[0, :, 0]] if with_reference else []]
    pipeline = diffusers.WanVACEPipeline
    latents = pipeline.prepare_video_latents(parts, frames, mask, images, None, "cpu")
    theirs = torch.cat([latents, pipeline.prepare_masks(parts, (mask > 0.5).float(), images)], dim=1)

    conditioning = Conditioning.combine(num_frames, frames=frames, masks=mask)
    num_latent_frames = (num_frames + 3) // 4
    references = [reference] if with_reference else []
    ours = vace_context(conditioning, references, VaceEncoders(encoder, encoder, encoder), num_latent_frames)
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=0)
    assert ours.num_references == len(references)
