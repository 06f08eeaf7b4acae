import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.errors import ConnectionFailed, UnexpectedAnswer
from filmstrip.wire import FrameReader, VideoReader, VideoShape, pack_video_header, shape_of, video_body

VIDEO = np.random.default_rng(1).integers(0, 256, (5, 4, 6, 3), np.uint8)
SHAPE = VideoShape(5, 4, 6, 3)
DOWNLOAD = pack_video_header(SHAPE) + VIDEO.tobytes()


def cut(body: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(places), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(bounds)]


@given(st.lists(st.integers(0, len(DOWNLOAD))))
def test_a_download_is_read_whatever_pieces_it_comes_in(places):
    frames, video = FrameReader(), VideoReader()
    found = []
    for piece in cut(DOWNLOAD, places):
        found += frames.feed(piece)
        video.feed(piece)
    frames.finish()
    np.testing.assert_array_equal(np.stack(found), VIDEO)
    np.testing.assert_array_equal(video.finish(), VIDEO)


def test_a_frame_comes_as_soon_as_it_is_whole():
    reader = FrameReader()
    end = 20 + SHAPE.frame_bytes
    assert list(reader.feed(DOWNLOAD[: end - 1])) == []
    assert len(list(reader.feed(DOWNLOAD[end - 1 : end]))) == 1
    assert reader.shape == SHAPE


def test_a_download_that_ends_early_is_not_taken_for_whole(subtests: pytest.Subtests):
    cases = [0, 19, 20, 21, len(DOWNLOAD) - 1]
    for length in cases:
        with subtests.test(length=length):
            reader = VideoReader()
            reader.feed(DOWNLOAD[:length])
            with pytest.raises(ConnectionFailed, match="ended"):
                reader.finish()


def test_a_download_that_goes_on_is_refused():
    with pytest.raises(UnexpectedAnswer, match="continues after"):
        list(FrameReader().feed(DOWNLOAD + b"x"))


def test_another_file_is_refused():
    with pytest.raises(UnexpectedAnswer, match="not a video"):
        list(FrameReader().feed(b"<!doctype html>, and so on"))


def test_a_body_has_the_bytes_of_the_frames(subtests: pytest.Subtests):
    cases = [VIDEO, list(VIDEO), [VIDEO.tobytes()], [VIDEO.tobytes()[:7], VIDEO.tobytes()[7:]], iter(VIDEO[:, :, :])]
    for pieces in cases:
        with subtests.test(pieces=pieces):
            assert b"".join(video_body(pieces, SHAPE)) == VIDEO.tobytes()


def test_frames_that_are_not_contiguous_keep_their_order():
    assert b"".join(video_body(VIDEO[:, :, ::-1], SHAPE)) == VIDEO[:, :, ::-1].tobytes()


def test_a_body_that_differs_from_its_shape_is_refused(subtests: pytest.Subtests):
    cases = [
        (VIDEO[:4], "has 4 frames, its shape says 5"),
        ([VIDEO.tobytes()[:-1]], "its shape says 5"),
        ([*VIDEO, VIDEO[0]], "more frames than the 5"),
        (VIDEO[:, :2], r"uint8 \[4, 6, 3\]"),
        (VIDEO.astype(np.float32), "float32"),
    ]
    for pieces, message in cases:
        with subtests.test(pieces=pieces), pytest.raises(ValueError, match=message):
            list(video_body(pieces, SHAPE))


def test_shape_of_an_array():
    assert shape_of(VIDEO) == SHAPE


def test_an_invalid_video_has_no_shape(subtests: pytest.Subtests):
    cases = [VIDEO[0], VIDEO.astype(np.int16), VIDEO[:0]]
    for video in cases:
        with subtests.test(video=video), pytest.raises(ValueError, match="uint8 array"):
            shape_of(video)
