import struct
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest

from filmstrip.video import VideoFileError, count_frames, open_mp4, probe, read_frames, write_video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (10, 10, 10)]


def plain(height: int, width: int, colours=COLOURS) -> list[np.ndarray]:
    return [np.full((height, width, 3), colour, np.uint8) for colour in colours]


def halves(height: int, width: int) -> np.ndarray:
    """Red above, blue below."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, :, 0] = 255
    frame[height // 2 :, :, 2] = 255
    return frame


def near(frame: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(frame.astype(int) - colour) <= 4).all())


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, plain(64, 96), 25)
    return path


def test_what_is_written_is_read_back_in_its_colours(clip):
    frames = list(read_frames(clip))
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 5
    assert all(frame.dtype == np.uint8 for frame in frames)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert near(frame, colour)


def test_the_file_is_what_every_player_shows(clip):
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited


@pytest.mark.parametrize(
    ("size", "written"), [((65, 97), (66, 98)), ((64, 97), (64, 98)), ((65, 96), (66, 96)), ((1, 1), (2, 2))]
)
def test_odd_sizes_repeat_their_last_row_or_column(tmp_path, size, written):
    write_video(tmp_path / "odd.mp4", plain(*size), 25)
    frames = list(read_frames(tmp_path / "odd.mp4"))
    assert {frame.shape for frame in frames} == {(*written, 3)}
    assert near(frames[0], COLOURS[0])


@pytest.mark.parametrize("fps", [25, 23.976, Fraction(30000, 1001), 0.5])
def test_probe(tmp_path, fps):
    path = tmp_path / "clip.mp4"
    assert write_video(path, plain(64, 96), fps).num_frames == 5
    info = probe(path)
    assert (info.height, info.width, info.num_frames) == (64, 96, 5)
    assert float(info.fps) == pytest.approx(float(fps), rel=1e-4)


def test_frames_are_counted_by_decoding(clip):
    assert count_frames(clip) == 5
    assert count_frames(clip, 3) == 3


def test_frames_are_scaled_and_limited(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, [halves(64, 64)] * 4, 25)
    frames = list(read_frames(path, size=(32, 80), max_frames=3))
    assert [frame.shape for frame in frames] == [(32, 80, 3)] * 3
    assert near(frames[0][:12], (255, 0, 0))
    assert near(frames[0][20:], (0, 0, 255))


def test_frames_are_turned_as_the_file_says(tmp_path):
    path = tmp_path / "phone.mp4"
    write_video(path, [halves(64, 96)] * 2, 25)
    _set_matrix(path, (0, 1, -1, 0))  # a quarter clockwise, as phones write it
    frames = list(read_frames(path))
    assert frames[0].shape == (96, 64, 3)
    assert near(frames[0][:, 40:], (255, 0, 0))  # what was above is on the right
    assert near(frames[0][:, :24], (0, 0, 255))
    assert (probe(path).height, probe(path).width) == (96, 64)
    scaled = next(read_frames(path, size=(48, 32)))
    assert scaled.shape == (48, 32, 3)
    assert near(scaled[:, 22:], (255, 0, 0))


def _set_matrix(path, quarter):
    """Write the rotation into the track header: the display matrix [a b u, c d v, x y w]."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 16
    a, b, c, d = (value << 16 for value in quarter)
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


def test_a_file_is_closed_when_its_reader_stops_early(clip):
    def is_open() -> bool:
        return str(clip) in {file.path for file in psutil.Process().open_files()}

    frames = read_frames(clip)
    next(frames)
    assert is_open()
    frames.close()
    assert not is_open()


@pytest.mark.parametrize("content", [None, b"", b"not a video"])
def test_an_invalid_video_is_named(tmp_path, content):
    path = tmp_path / "wrong.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (probe, count_frames, lambda path: list(read_frames(path))):
        with pytest.raises(VideoFileError, match=r"wrong\.mp4"):
            read(path)


def test_a_file_without_pictures_is_not_a_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(VideoFileError, match="no video"):
        probe(path)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [*plain(64, 64), *plain(64, 66)],
        [np.zeros((64, 64), np.uint8)],
        [np.zeros((64, 64, 4), np.uint8)],
        [np.zeros((64, 64, 3), np.float32)],
    ],
)
def test_a_video_that_fails_leaves_the_file_before_it(clip, frames):
    before = clip.read_bytes()
    with pytest.raises((ValueError, VideoFileError)):
        write_video(clip, frames, 25)
    assert clip.read_bytes() == before
    assert list(clip.parent.iterdir()) == [clip]


def test_a_video_that_fails_late_leaves_no_part(tmp_path):
    frames = [*plain(64, 64, [(0, 0, 0)] * 200), *plain(66, 64)]  # so many that the encoder has written some
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "new.mp4", frames, 25)
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new.mp4"
    with open_mp4(path) as output:
        output.start(25)
        for frame in plain(64, 64):
            output.add(frame)
        assert not path.exists()
        assert output.commit().num_frames == 5
    assert count_frames(path) == 5


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(VideoFileError, match=r"the folder .*missing does not exist"):
        write_video(tmp_path / "missing" / "new.mp4", plain(64, 64), 25)


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_fps_must_be_positive(tmp_path, fps):
    with pytest.raises(ValueError, match="fps"):
        write_video(tmp_path / "new.mp4", plain(64, 64), fps)
