import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filmstrip.video.contact_sheet import contact_sheet, evenly_spaced, thumbnails, write_sheet


@given(num_frames=st.integers(1, 500), count=st.integers(1, 40))
def test_picks_are_evenly_spread_from_the_first_frame_to_the_last(num_frames, count):
    picked = evenly_spaced(num_frames, count)
    assert len(picked) == min(num_frames, count)
    assert picked[0] == 0
    if count > 1:
        assert picked[-1] == num_frames - 1
    steps = [after - before for before, after in itertools.pairwise(picked)]
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)


@pytest.mark.parametrize(("num_frames", "count"), [(0, 4), (4, 0)])
def test_nothing_can_be_picked_of_nothing(num_frames, count):
    with pytest.raises(ValueError, match="cannot pick"):
        evenly_spaced(num_frames, count)


def shades(count: int):
    for index in range(count):
        yield np.full((32, 64, 3), 50 + 10 * index, np.uint8)


def test_thumbnails_are_small_and_know_their_frame():
    made = thumbnails(shades(10), 10, 4, width=32)
    assert [thumbnail.index for thumbnail in made] == [0, 3, 6, 9]
    assert {thumbnail.image.size for thumbnail in made} == {(32, 16)}
    assert [thumbnail.image.getpixel((5, 5))[0] for thumbnail in made] == [50, 80, 110, 140]


def test_a_stream_is_read_to_its_end_and_may_be_shorter_than_said():
    frames = shades(5)
    assert [thumbnail.index for thumbnail in thumbnails(frames, 10, 10)] == [0, 1, 2, 3, 4]
    assert next(frames, None) is None


def test_no_frames_make_no_sheet():
    with pytest.raises(ValueError, match="needs a frame"):
        thumbnails(iter(()), 3, 3)


def test_a_contact_sheet_shows_every_frame_in_its_place(tmp_path):
    path = tmp_path / "sheet.png"
    contact_sheet(shades(12), 12, path, columns=4, rows=3, width=64)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        cell_width, cell_height = 64 + 4, 32 + 4 + 16
        assert sheet.size == (4 * cell_width + 4, 3 * cell_height + 4)
        for index in range(12):
            left, top = 4 + index % 4 * cell_width, 4 + index // 4 * cell_height
            assert sheet.getpixel((left + 32, top + 16 + 16)) == (50 + 10 * index,) * 3
            caption = np.asarray(sheet.crop((left, top, left + 64, top + 16)))
            assert caption.max() > 150  # the frame's number


def test_rows_of_two_videos(tmp_path):
    path = tmp_path / "sheet.png"
    write_sheet([("input", thumbnails(shades(3), 3, 3)), ("output", thumbnails(shades(3), 3, 2))], path)
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 244 + 4, 2 * (120 + 4 + 16) + 4)
