import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from filmstrip.wire import BlobBuilder

SIDE = st.integers(1, 4)
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "vace_frames": arrays.arrays(np.float32, st.tuples(st.just(1), st.just(3), SIDE, SIDE, SIDE)),
        "vace_masks": arrays.arrays(np.float32, st.tuples(st.just(1), st.just(1), SIDE, SIDE, SIDE)),
        "input_video": arrays.arrays(np.uint8, st.tuples(SIDE, SIDE, SIDE, st.just(3))),
    },
)
DTYPES = {"vace_frames": np.dtype("<f4"), "vace_masks": np.dtype("<f4"), "input_video": np.dtype("u1")}


def read(body: bytes, spec: dict, name: str) -> np.ndarray:
    shape = spec[f"{name}_shape"]
    return np.frombuffer(body, DTYPES[name], int(np.prod(shape)), spec[f"{name}_offset"]).reshape(shape)


@given(st.lists(CHUNK, max_size=4))
def test_arrays_are_read_back_where_the_specs_say(chunks):
    blob = BlobBuilder()
    for index, given_arrays in enumerate(chunks):
        blob.chunk(index, **given_arrays)
    body = b"".join(blob)

    assert len(body) == blob.size
    taken = []
    for spec, given_arrays in zip(blob.chunk_specs, chunks, strict=True):
        for name, array in given_arrays.items():
            found = read(body, spec, name)
            assert found.tobytes() == array.tobytes()
            assert spec[f"{name}_offset"] % found.itemsize == 0
            taken.append((spec[f"{name}_offset"], spec[f"{name}_offset"] + found.nbytes))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))


def test_floats_after_an_odd_number_of_bytes_are_aligned():
    blob = BlobBuilder()
    blob.chunk(0, input_video=np.full((1, 1, 1, 3), 7, np.uint8))
    spec = blob.chunk(1, vace_frames=np.full((3, 1, 1, 1), 0.5, np.float32))
    assert spec["vace_frames_offset"] == 4
    assert b"".join(blob) == b"\x07\x07\x07\x00" + np.full(3, 0.5, "<f4").tobytes()


def test_a_spec_has_only_the_fields_and_arrays_that_are_set():
    blob = BlobBuilder()
    blob.chunk(4, text="a dog", noise_scale=0.5)
    blob.chunk(1, reset_cache=True)
    assert blob.chunk_specs == [{"chunk": 1, "reset_cache": True}, {"chunk": 4, "text": "a dog", "noise_scale": 0.5}]
    assert blob.size == 0


def test_short_shapes_and_other_floats_become_those_of_the_contract():
    blob = BlobBuilder()
    frames = np.linspace(-1, 1, 3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    mask = np.arange(2 * 4 * 5).reshape(2, 4, 5) % 2 == 0
    spec = blob.chunk(0, vace_frames=frames, vace_masks=mask)
    body = b"".join(blob)
    assert spec["vace_frames_shape"] == [1, 3, 2, 4, 5]
    assert spec["vace_masks_shape"] == [1, 1, 2, 4, 5]
    np.testing.assert_array_equal(read(body, spec, "vace_frames")[0], frames.astype(np.float32))
    np.testing.assert_array_equal(read(body, spec, "vace_masks")[0, 0], mask)


def test_masks_come_in_many_forms(subtests: pytest.Subtests):
    cases = [
        ((4, 5), (1, 1, 1, 4, 5)),
        ((2, 4, 5), (1, 1, 2, 4, 5)),
        ((2, 4, 5, 1), (1, 1, 2, 4, 5)),
        ((2, 1, 4, 5), (1, 1, 2, 4, 5)),
        ((1, 2, 4, 5), (1, 1, 2, 4, 5)),
        ((1, 1, 4, 5), (1, 1, 1, 4, 5)),
        ((1, 4, 5, 1), (1, 1, 1, 4, 5)),
        ((1, 1, 2, 4, 5), (1, 1, 2, 4, 5)),
        ((1, 1, 2, 4, 1), (1, 1, 2, 4, 1)),
    ]
    for shape, packed in cases:
        with subtests.test(shape=shape):
            masks = np.random.default_rng(1).random(shape, np.float32)
            blob = BlobBuilder()
            spec = blob.chunk(0, vace_masks=masks, input_video=np.zeros((4, 5, 3), np.uint8))
            assert tuple(spec["vace_masks_shape"]) == packed
            assert spec["input_video_shape"] == [1, 4, 5, 3]
            np.testing.assert_array_equal(read(b"".join(blob), spec, "vace_masks").ravel(), masks.ravel())


def test_views_that_are_not_contiguous_are_packed_in_order():
    video = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)[:, ::2, ::-1]
    blob = BlobBuilder()
    spec = blob.chunk(0, input_video=video)
    np.testing.assert_array_equal(read(b"".join(blob), spec, "input_video"), video)


def test_large_arrays_come_in_pieces():
    blob = BlobBuilder()
    video = np.random.default_rng(0).integers(0, 256, (3, 1000, 1000, 3), np.uint8)
    blob.chunk(0, input_video=video)
    pieces = list(blob)
    assert max(map(len, pieces)) <= 2**20
    assert b"".join(pieces) == video.tobytes()


def test_other_arrays_are_refused_and_leave_nothing_behind(subtests: pytest.Subtests):
    cases = [
        ({"vace_frames": np.zeros((3, 2, 4, 4), np.uint8)}, "vace_frames must be floats"),
        ({"vace_frames": np.zeros((3, 2, 4, 4), bool)}, "vace_frames must be floats"),
        ({"vace_frames": np.zeros((2, 4, 4), np.float32)}, r"vace_frames must be \[1, C"),
        ({"vace_masks": np.zeros((2, 2, 4, 4), np.float32)}, r"\[H, W\], and not empty, got \[2, 2, 4, 4\]"),
        ({"vace_masks": np.zeros((0, 4, 4), np.float32)}, "not empty"),
        ({"input_video": np.zeros((2, 4, 4, 3), np.float32)}, "input_video must be uint8"),
        ({"input_video": np.zeros((4, 4, 5), np.uint8)}, "input_video must be uint8"),
        ({"vace_masks": np.zeros((1, 2, 3, 4, 4), np.float32)}, "vace_masks must be"),
        ({"vace_masks": np.zeros((4, 4), np.uint8)}, "floats or bools"),
    ]
    for inputs, named in cases:
        with subtests.test(inputs=inputs):
            blob = BlobBuilder()
            with pytest.raises(ValueError, match=named):
                blob.chunk(0, **inputs)
            assert (blob.size, blob.chunk_specs) == (0, [])


def test_a_chunk_has_one_spec():
    blob = BlobBuilder()
    blob.chunk(2, text="a")
    with pytest.raises(ValueError, match="chunk 2"):
        blob.chunk(2, text="b")
