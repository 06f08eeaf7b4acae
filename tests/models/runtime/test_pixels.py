"""Arrays to pixels and back, 12 frames to 13 and back, images to frames."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

torch = pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from filmstrip.errors import ModelError
from filmstrip.runtime.pixels import (
    letterbox,
    pad_first_frame,
    resample,
    resize_cover,
    split_images,
    strip_pad,
    to_frames,
    to_pixels,
)
from filmstrip.runtime.processors import resize

sides = st.integers(1, 40)
videos = st.tuples(st.integers(1, 3), sides, sides).flatmap(lambda shape: arrays(np.uint8, (*shape, 3)))
images = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.uint8, (*shape, 3)))


def ramp(height: int, width: int) -> np.ndarray:
    """A picture that is smooth and differs in each direction and colour."""
    y, x = np.mgrid[:height, :width]
    shades = (200 * x / width, 200 * y / height, 50 + 100 * (x + y) / (height + width))
    return np.stack(shades, axis=-1).astype(np.uint8)


# -- Frames ---------------------------------------------------------------------------------------------------


def test_every_level_has_its_place_and_comes_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = to_pixels(levels)
    assert pixels.dtype == torch.float32
    expected = np.linspace(-1, 1, 256).reshape(16, 16)
    np.testing.assert_allclose(pixels[0, 1, 0].numpy(), expected, atol=1e-7)
    np.testing.assert_array_equal(to_frames(pixels), levels)


@given(videos)
def test_axes_go_there_and_back(frames: np.ndarray):
    pixels = to_pixels(frames)
    assert pixels.shape == (1, 3, *frames.shape[:3])
    np.testing.assert_array_equal(to_frames(pixels), frames)


def test_levels_are_rounded_and_cut_off():
    levels = torch.tensor([-3.0, -1.0, 99.4, 99.6, 255.4, 255.6, 900.0])
    pixels = (levels / 127.5 - 1).reshape(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1)
    assert to_frames(pixels)[0, 0, :, 0].tolist() == [0, 0, 99, 100, 255, 255, 255]


def test_pixels_in_16_bit_are_rounded_in_32():
    pixels = to_pixels(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)).bfloat16()
    np.testing.assert_array_equal(to_frames(pixels), to_frames(pixels.float()))


def test_frames_that_cannot_be_written_to_are_copied():
    memory = bytearray(range(48))
    frames = np.frombuffer(memoryview(memory).toreadonly(), np.uint8).reshape(1, 4, 4, 3)
    pixels = to_pixels(frames)
    before = pixels.clone()
    memory[:] = bytes(48)
    assert torch.equal(pixels, before)


def test_a_resized_video_is_bilinear():
    """`frame_processors.resize`, which models take their input through, against torch."""
    frames = np.stack([ramp(30, 50), ramp(30, 50)[::-1]])
    for size in ((64, 96), (20, 40)):
        theirs = torch.nn.functional.interpolate(to_pixels(frames)[0].transpose(0, 1), size, mode="bilinear")
        ours = to_pixels(resize(frames, *size))[0].transpose(0, 1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 127.5)


# -- 12 frames and 13 -----------------------------------------------------------------------------------------


def numbered(count: int) -> "torch.Tensor":
    return torch.arange(float(count)).reshape(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)


def numbers(pixels: "torch.Tensor") -> list[int]:
    return pixels[0, 0, :, 0, 0].int().tolist()


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (12, 13, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (12, 12, list(range(12))),
        (24, 12, list(range(0, 24, 2))),
        (6, 12, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (5, 3, [0, 1, 3]),
        (1, 4, [0, 0, 0, 0]),
        (12, 1, [0]),
    ],
)
def test_resampled_frames(count: int, wanted: int, expected: list[int]):
    assert numbers(resample(numbered(count), wanted)) == expected


@given(st.integers(1, 60))
def test_the_doubled_frame_is_the_first_and_goes_again(count: int):
    doubled = pad_first_frame(numbered(count))
    assert numbers(doubled) == [0, *range(count)]
    assert numbers(strip_pad(doubled)) == list(range(count))


# -- Images ---------------------------------------------------------------------------------------------------


@given(st.lists(images, min_size=1, max_size=4))
def test_joined_images_are_split(some: list[np.ndarray]):
    joined = np.concatenate([image.ravel() for image in some])
    for image, wanted in zip(split_images(joined, [image.shape for image in some]), some, strict=True):
        np.testing.assert_array_equal(image, wanted)


def test_images_that_do_not_fit_their_shapes_are_refused():
    with pytest.raises(ModelError, match="to 24 bytes, vace_ref_images has 23"):
        split_images(np.zeros(23, np.uint8), [(2, 2, 3), (1, 4, 3)])


@given(images, sides, sides, st.integers(0, 255))
def test_an_image_of_one_colour_fills_a_frame_of_any_size(image: np.ndarray, height: int, width: int, level: int):
    filled = resize_cover(np.full_like(image, level), height, width)
    np.testing.assert_array_equal(filled, np.full((height, width, 3), level))


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (4, 4), (8, 24)])
def test_the_middle_of_an_image_fills_the_frame(shape: tuple[int, int]):
    """The middle square is bright, the rest dark."""
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    image = np.zeros((*shape, 3), np.uint8)
    image[top : top + side, left : left + side] = 200
    for size in (2, 4, 7, 16):
        assert (resize_cover(image, size, size) == 200).all()


def test_an_image_of_the_frames_size_is_left_as_it_is():
    image = ramp(16, 24)
    np.testing.assert_array_equal(resize_cover(image, 16, 24), image)
    np.testing.assert_array_equal(letterbox(image, 16, 24), image)


def test_a_shrunk_image_is_the_mean_of_its_pixels():
    """Bilinear would look at two of eight pixels, and see none of the lines."""
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::8] = 240
    for made in (resize_cover(lines, 8, 8), letterbox(lines, 8, 8)):
        np.testing.assert_array_equal(made, np.full((8, 8, 3), 30))


@pytest.mark.parametrize("shape", [(1, 4096), (4096, 1)])
def test_a_long_thin_image_fills_a_large_frame(shape: tuple[int, int]):
    """Scaled as a whole it would be 48 GiB."""
    assert resize_cover(np.full((*shape, 3), 9, np.uint8), 2048, 2048).shape == (2048, 2048, 3)


@given(images, sides, sides)
def test_an_image_fits_whole_on_white(image: np.ndarray, height: int, width: int):
    fitted = letterbox(np.zeros_like(image), height, width)
    dark = (fitted == 0).all(axis=2)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert (fitted[~dark] == 255).all()
    assert dark.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert len(rows) == height or len(columns) == width
    for before, after in ((rows[0], height - 1 - rows[-1]), (columns[0], width - 1 - columns[-1])):
        assert after - before in (0, 1)


@pytest.mark.parametrize(("shape", "size"), [((24, 32), (64, 64)), ((32, 24), (48, 80)), ((24, 32), (96, 128))])
def test_an_image_fits_as_it_does_in_diffusers(shape: tuple[int, int], size: tuple[int, int]):
    """In their VACE pipeline, whose way of enlarging is ours."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: see docs/export.md")
    parts = SimpleNamespace(video_processor=diffusers.video_processor.VideoProcessor())
    image = ramp(*shape)
    _, _, ((theirs,),) = diffusers.WanVACEPipeline.preprocess_conditions(
        parts, None, None, Image.fromarray(image), 1, *size, 1, torch.float32, "cpu"
    )
    ours = to_pixels(letterbox(image, *size)[None])[0, :, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 127.5)
