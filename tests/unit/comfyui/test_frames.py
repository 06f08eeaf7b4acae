"""Pictures to bytes and back, and into the blob."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyui import frames
from comfyui.chunk_specs import Blob, ChunkSpec, add_to_blob, merge, split_batch, with_batches
from comfyui.errors import FilmstripError

ALL_BYTES = np.arange(256, dtype=np.uint8)


def test_every_byte_comes_back():
    floats = np.empty(256, np.float32)
    frames.to_floats(ALL_BYTES, out=floats)
    exact = np.array([np.float32(value / 255) for value in range(256)])  # double first, so rounded once more
    assert np.array_equal(floats, exact)
    assert np.array_equal(frames.to_bytes(floats), ALL_BYTES)


@given(st.floats(-4, 4, width=32))
def test_bytes_are_the_nearest_ones(value: float):
    (got,) = frames.to_bytes(np.array([value], np.float32))
    assert abs(int(got) - min(max(value * 255, 0), 255)) <= 0.5001


def test_infinity_is_clipped_and_nan_refused():
    assert list(frames.to_bytes(np.array([np.inf, -np.inf, 1.5, -1], np.float32))) == [255, 0, 255, 0]
    with pytest.raises(FilmstripError, match="NaN"):
        frames.to_bytes(np.array([0, np.nan], np.float32))


def test_vace_frames_are_channels_first_in_minus_one_to_one():
    images = np.zeros((2, 4, 6, 3), np.float32)
    images[1, :, :, 2] = 1
    raw = b"".join(frames.vace_frames(images))
    array = np.frombuffer(raw, "<f4").reshape(1, 3, 2, 4, 6)
    assert (array[0, 2, 1] == 1).all()
    assert (array[0, :2] == -1).all()
    assert (array[0, 2, 0] == -1).all()


def test_masks_are_sent_from_where_they_lie():
    masks = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    pieces = list(frames.vace_masks(masks))
    assert b"".join(pieces) == masks.tobytes()
    assert all(np.shares_memory(np.frombuffer(piece, np.float32), masks) for piece in pieces)


def test_a_png_is_the_image():
    image = ALL_BYTES.reshape(16, 16, 1) / np.float32(255)
    decoded = np.asarray(Image.open(io.BytesIO(frames.to_png(image))))
    assert np.array_equal(decoded, np.repeat(ALL_BYTES.reshape(16, 16, 1), 3, axis=2))


def test_an_image_may_lack_its_batch_axis(subtests: pytest.Subtests):
    cases = [
        ((4, 5, 3), (1, 4, 5, 3)),
        ((2, 4, 5, 4), (2, 4, 5, 4)),
        ((4, 5, 1), (1, 4, 5, 1)),
        ((1, 2, 4, 5, 3), (2, 4, 5, 3)),
    ]
    for shape, wanted in cases:
        with subtests.test(shape=shape):
            image = np.random.default_rng(1).random(shape)
            got = frames.as_images("images", image)
            assert got.shape == wanted
            assert np.array_equal(got.ravel(), image.ravel())


def test_invalid_images_are_refused(subtests: pytest.Subtests):
    cases = [(4, 4), (0, 4, 4, 3), (1, 4, 4, 2), (2, 4, 5), (2, 1, 4, 4, 3), (1, 3, 8, 8)]
    for shape in cases:
        with subtests.test(shape=shape):
            with pytest.raises(FilmstripError, match=r"images: must be images \[F, H, W, C\]") as raised:
                frames.as_images("images", np.zeros(shape))
            assert str(list(shape)) in str(raised.value)


def test_masks_come_in_many_forms(subtests: pytest.Subtests):
    cases = [
        ((4, 5), (1, 4, 5)),
        ((2, 4, 5), (2, 4, 5)),
        ((2, 4, 5, 1), (2, 4, 5)),
        ((2, 1, 4, 5), (2, 4, 5)),
        ((1, 1, 4, 5), (1, 4, 5)),
        ((1, 2, 4, 5), (2, 4, 5)),
        ((1, 4, 5, 1), (1, 4, 5)),
        ((1, 1, 2, 4, 5), (2, 4, 5)),
    ]
    for shape, wanted in cases:
        with subtests.test(shape=shape):
            mask = np.random.default_rng(1).random(shape)
            got = frames.as_masks("vace_masks", mask)
            assert got.shape == wanted
            assert np.array_equal(got.ravel(), mask.ravel())


def test_invalid_masks_are_refused(subtests: pytest.Subtests):
    cases = [
        ((4,), "got an array"),
        ((2, 2, 4, 5), "got an array"),
        ((0, 4, 4), "got an array"),
        ((2, 4, 4, 3), "Convert Image"),
    ]
    for shape, said in cases:
        with subtests.test(shape=shape), pytest.raises(FilmstripError, match=f"vace_masks: must be masks .*{said}"):
            frames.as_masks("vace_masks", np.zeros(shape))


def test_a_transparent_image_is_shown_over_black():
    image = np.array([[[1, 0.5, 0, 1], [1, 1, 1, 0], [0.5, 1, 0, 0.5]]], np.float32)
    assert frames.rgb(image).tolist() == [[[1, 0.5, 0], [0, 0, 0], [0.25, 0.5, 0]]]


# -- The blob -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["video", "mask"]), st.integers(1, 5), st.integers(1, 7)), max_size=6))
def test_offsets_lead_to_the_arrays(kinds: list[tuple[str, int, int]]):
    blob, expected = Blob(), []
    for at, (kind, num_frames, side) in enumerate(kinds):
        if kind == "video":
            array = np.full((num_frames, side, side, 3), at / 255, np.float32)
            placed = add_to_blob(blob, {"input_video": array})
            expected.append((placed["input_video_offset"], np.rint(array * 255).astype(np.uint8).tobytes()))
        else:
            array = np.full((num_frames, side, side), at, np.float32)
            placed = add_to_blob(blob, {"vace_masks": array})
            assert placed["vace_masks_shape"] == [1, 1, num_frames, side, side]
            assert placed["vace_masks_offset"] % 4 == 0
            expected.append((placed["vace_masks_offset"], array.tobytes()))
    raw = b"".join(blob)
    assert len(raw) == blob.num_bytes
    assert raw == b"".join(blob), "it can be sent again"
    for offset, array in expected:
        assert raw[offset : offset + len(array)] == array


def test_the_same_array_is_sent_once_and_others_are_not_mistaken_for_it():
    batch = np.arange(2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4)
    blob = Blob()
    first = add_to_blob(blob, {"vace_masks": batch[:1]})
    again = add_to_blob(blob, {"vace_masks": batch[:1]})
    second = add_to_blob(blob, {"vace_masks": batch[1:]})
    turned = add_to_blob(blob, {"vace_masks": batch[:1].transpose(0, 2, 1)})
    offsets = [placed["vace_masks_offset"] for placed in (first, again, second, turned)]
    assert offsets == [0, 0, 64, 128]
    assert blob.num_bytes == 192


def test_pieces_are_not_joined():
    images = np.zeros((50, 32, 32, 3), np.float32)
    blob = Blob()
    add_to_blob(blob, {"vace_frames": images, "input_video": images})
    assert max(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in blob) == 32 * 32 * 4


# -- Chunks -------------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(1, 15), st.integers(1, 60))
def test_chunks_tile_the_batch(batch: int, chunk_size: int, num_frames: int):
    parts = list(split_batch(batch, chunk_size, num_frames))
    assert [index for index, _ in parts] == list(range(len(parts)))
    covered = [frame for _, part in parts for frame in range(batch)[part]]
    assert covered == list(range(min(batch, -(-num_frames // chunk_size) * chunk_size)))
    assert all(part.start == index * chunk_size for index, part in parts)


def test_one_frame_holds_for_every_chunk():
    assert list(split_batch(1, 12, 30)) == [(0, slice(0, 1)), (1, slice(0, 1)), (2, slice(0, 1))]


def test_a_shorter_batch_does_not_change_the_other_chunks():
    assert list(split_batch(13, 12, 48)) == [(0, slice(0, 12)), (1, slice(12, 13))]


def test_later_specs_win_value_by_value():
    one, two = np.zeros((1, 4, 4, 3), np.float32), np.ones((1, 4, 4, 3), np.float32)
    merged = merge(
        [
            ChunkSpec(1, {"text": "a cat", "seed": 1}, {"input_video": one, "vace_frames": one}),
            ChunkSpec(0, {"text": "a fish"}),
            ChunkSpec(1, {"seed": 2, "prompts": [{"text": "a dog", "weight": 100}]}, {"vace_frames": two}),
        ]
    )
    assert merged[0].fields == {"text": "a fish"}
    assert merged[1].fields == {"seed": 2, "prompts": [{"text": "a dog", "weight": 100}]}
    assert merged[1].arrays["input_video"] is one
    assert merged[1].arrays["vace_frames"] is two


def test_batches_do_not_touch_the_arrays_of_a_chunk():
    own = np.ones((3, 4, 4), np.float32)
    specs = with_batches(
        {1: ChunkSpec(1, {}, {"vace_masks": own})}, {"vace_masks": np.zeros((24, 4, 4), np.float32)}, 12, 24
    )
    assert specs[1].arrays["vace_masks"] is own
    assert len(specs[0].arrays["vace_masks"]) == 12
