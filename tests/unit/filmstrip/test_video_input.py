"""Reading video files: frames as players show them, at a constant rate; each kind is compared with FFmpeg's filters."""

import itertools
import math
import os
import struct
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from filmstrip.video.frames import hdr_to_sdr
from filmstrip.video.read import VideoFileError, count_frames, probe, read_frames
from tests.unit.filmstrip.video_samples import SAMPLES, encode, filtered, number_of, numbered, set_display_matrix

CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:32, :48] = 255, 0, 0
CORNERS[:32, 48:] = 0, 255, 0
CORNERS[32:, :48] = 0, 0, 255
CORNERS[32:, 48:] = 200, 200, 60


def assert_same(found, expected, tolerance: float = 3):
    """Nearly the same pixels; a few at edges may differ, as scalers do."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == np.uint8
        difference = np.abs(ours.astype(int) - theirs)
        assert np.median(difference) <= tolerance
        assert difference.mean() <= 2 * tolerance


def assert_agree(path: Path) -> list[np.ndarray]:
    """All frames of a file, once `probe` and `count_frames` have told the same of them."""
    info, frames = probe(path), list(read_frames(path))
    assert count_frames(path) == len(frames)
    assert info.num_frames in (None, len(frames))
    assert {frame.shape for frame in frames} == {(info.height, info.width, 3)}
    limit = max(1, len(frames) // 2)
    assert count_frames(path, limit) == len(list(read_frames(path, max_frames=limit))) == limit
    return frames


# -- Shape ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "aspect"),
    [
        ("wide.mp4", "libx264", Fraction(64, 45)),
        ("narrow.mkv", "libx264", Fraction(8, 9)),
        ("wide.mpg", "mpeg2video", Fraction(32, 27)),
        ("wide.avi", "mpeg4", Fraction(12, 11)),
    ],
)
def test_pixels_become_square(tmp_path, name, codec, aspect):
    def set_aspect(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    path = encode(tmp_path / name, [CORNERS] * 3, codec=codec, set_up=set_aspect)
    frames = assert_agree(path)
    assert_same(frames, filtered(path, f"setsar={aspect},scale=round(iw*sar):ih"))
    assert frames[0].shape[1] > 96 if aspect > 1 else frames[0].shape[1] < 96


def test_a_circle_is_round_and_the_size_asked_for_is_the_shown_one():
    frame = assert_agree(SAMPLES / "wide_pixels.mp4")[0]
    assert frame.shape == (576, 1024, 3)
    inside = frame.max(axis=2) > 128
    down, across = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert np.ptp(down) == pytest.approx(np.ptp(across), abs=4)
    assert next(read_frames(SAMPLES / "wide_pixels.mp4", size=(90, 160))).shape == (90, 160, 3)


def test_a_gif_has_square_pixels_whatever_it_says(tmp_path):
    path = tmp_path / "aspect.gif"
    Image.fromarray(CORNERS).save(path)
    data = bytearray(path.read_bytes())
    data[12] = 200  # pixel aspect ratio: (200 + 15) / 64
    path.write_bytes(data)
    assert assert_agree(path)[0].shape == (64, 96, 3)


def test_the_container_knows_better_than_the_stream_but_for_absurd_pixels(tmp_path):
    def set_aspect(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = encode(tmp_path / "two.mp4", [CORNERS] * 2, set_up=set_aspect)
    data = bytearray(path.read_bytes())
    place = data.index(b"pasp") + 4
    for wide, width in ((2, 192), (1, 96), (1000, None)):
        data[place : place + 8] = struct.pack(">II", wide, 1)
        path.write_bytes(data)
        if width:
            assert assert_agree(path)[0].shape == (64, width, 3)
        else:
            with pytest.raises(VideoFileError, match=r"two\.mp4 .*1000 times as wide as high.* 96000x64"):
                probe(path)


ORIENTATIONS = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
ORIENTATIONS += [(0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0)]


def as_shown(frame: np.ndarray, matrix) -> np.ndarray:
    """Each pixel put where the matrix says: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    y, x = np.indices(frame.shape[:2])
    shown_x, shown_y = a * x + c * y, b * x + d * y
    shown_x, shown_y = shown_x - shown_x.min(), shown_y - shown_y.min()
    shown = np.zeros((shown_y.max() + 1, shown_x.max() + 1, 3), np.uint8)
    shown[shown_y, shown_x] = frame
    return shown


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, matrix):
    path = encode(tmp_path / "phone.mp4", [CORNERS] * 2)
    plain = next(read_frames(path))
    set_display_matrix(path, matrix)
    frames = assert_agree(path)
    assert np.array_equal(frames[0], as_shown(plain, matrix))
    height, width = (48, 32) if matrix[0] == 0 else (32, 48)
    small = next(read_frames(path, size=(height, width)))
    assert np.abs(small.astype(int) - frames[0][1::2, 1::2]).mean() < 8


def test_a_mirrored_file_of_ffmpeg_is_mirrored():
    path = SAMPLES / "mirrored.mp4"
    assert_same(assert_agree(path), filtered(path, "hflip"))


def test_turned_wide_pixels_are_tall(tmp_path):
    def set_aspect(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = set_display_matrix(encode(tmp_path / "both.mp4", [CORNERS] * 2, set_up=set_aspect), (0, 1, -1, 0))
    frames = assert_agree(path)
    assert_same(frames, filtered(path, "scale=2*iw:ih,transpose=clock"))


@pytest.mark.parametrize("degrees", [10, 45, 200, 300])
def test_any_angle_is_turned_as_by_ffmpeg(tmp_path, degrees):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    path = set_display_matrix(encode(tmp_path / "askew.mp4", [CORNERS] * 2), (cos, sin, -sin, cos))
    assert_same(assert_agree(path), filtered(path, f"rotate={degrees}*PI/180"))


# -- Colours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "pixel_format", "tags"),
    [
        ("libx264", "yuv420p", {"colorspace": 1, "color_range": 1}),
        ("libx264", "yuv420p", {"colorspace": 6, "color_range": 1}),
        ("libx264", "yuv420p", {"colorspace": 1, "color_range": 2}),
        ("libx264", "yuv420p", {}),
        ("libx264", "yuv444p", {"colorspace": 1}),
        ("libx265", "yuv420p10le", {"colorspace": 9, "color_range": 1, "color_trc": 14, "color_primaries": 9}),
        ("mjpeg", "yuvj420p", {}),
        ("ffv1", "gray", {}),
        ("ffv1", "bgr0", {}),
        ("libx264rgb", "rgb24", {}),
    ],
)
def test_colours_are_those_of_ffmpeg(tmp_path, codec, pixel_format, tags):
    def tag(stream):
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)

    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {}
    path = encode(
        tmp_path / "colours.mkv", [CORNERS] * 2, codec=codec, pixel_format=pixel_format, set_up=tag, options=options
    )
    assert_same(assert_agree(path), filtered(path), 1)


ALPHA = np.dstack([np.full((64, 96, 3), (255, 128, 40), np.uint8), np.tile(np.linspace(0, 255, 96), (64, 1))])
ALPHA = ALPHA.astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "decoder"),
    [
        ("vp9.webm", "libvpx-vp9", "yuva420p", "libvpx-vp9"),
        ("vp8.webm", "libvpx", "yuva420p", "libvpx"),
        ("prores.mov", "prores_ks", "yuva444p10le", None),
        ("png.mov", "png", "rgba", None),
        ("animation.mov", "qtrle", "argb", None),
        ("ffv1.mkv", "ffv1", "yuva420p", None),
        ("frames.apng", "apng", "rgba", None),
    ],
)
def test_alpha_is_composited_over_black(tmp_path, name, codec, pixel_format, decoder):
    options = {"auto-alt-ref": "0", "crf": "4", "b": "2M"} if decoder else {}
    if codec == "prores_ks":
        options = {"profile": "4444"}
    path = encode(tmp_path / name, [ALPHA] * 3, codec=codec, pixel_format=pixel_format, source="rgba", options=options)
    frames = assert_agree(path)
    assert_same(frames, filtered(path, decoder=decoder, over_black=True), 3)
    assert frames[0][:, 0].max() <= 3
    assert frames[0][:, -1, 0].min() >= 245
    small = next(read_frames(path, size=(32, 48)))
    assert np.abs(small.astype(int) - frames[0][::2, ::2]).mean() < 3


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_pictures_keep_their_times_and_are_black_where_they_are_clear(tmp_path, suffix):
    shape = np.zeros((64, 96), np.uint8)
    shape[:, :48] = 255
    pictures = [Image.fromarray(np.dstack([np.full((64, 96, 3), grey, np.uint8), shape])) for grey in (250, 128, 60)]
    path = tmp_path / f"picture.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    options |= {"disposal": 2} if suffix == "gif" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[200, 100, 300], **options)
    frames = assert_agree(path)
    assert probe(path).fps == 10
    assert [int(frame[5, 5, 0]) for frame in frames] == pytest.approx([250, 250, 128, 60, 60, 60], abs=3)
    assert all(not frame[:, 48:].any() for frame in frames)


# -- HDR -----------------------------------------------------------------------------------------------------


def pq_nits(signal: float) -> float:
    """ITU-R BT.2100-2, table 4: the light of a PQ signal."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = signal ** (1 / m2)
    return 10_000 * (max(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_nits(rgb: list[float]) -> list[float]:
    """ITU-R BT.2100-2, table 5: the light of an HLG signal on a display of 1000 nit."""
    a, b, c = 0.17883277, 1 - 4 * 0.17883277, 0.5 - 0.17883277 * math.log(4 * 0.17883277)
    scene = [signal**2 / 3 if signal <= 0.5 else (math.exp((signal - c) / a) + b) / 12 for signal in rgb]
    luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
    return [1000 * luminance**0.2 * light for light in scene]


def sdr_code(nits: float) -> float:
    """ITU-R BT.1886, with 203 nit as white."""
    return 255 * (nits / 203) ** (1 / 2.4)


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_has_the_light_of_bt2100(transfer):
    signals = np.linspace(0, 1, 129)
    codes = np.repeat(np.round(signals * 65535).astype(np.uint16)[None, :, None], 3, axis=2)
    found = hdr_to_sdr(transfer, 9)(codes)[0]
    assert (np.ptp(found.astype(int), axis=1) <= 1).all()  # grey stays grey
    greys = found[:, 1].astype(int)
    assert (np.diff(greys) >= 0).all()
    assert greys[0] == 0
    assert greys[-1] == 255
    for signal, grey in zip(signals, greys, strict=True):
        nits = pq_nits(signal) if transfer == 16 else hlg_nits([signal] * 3)[0]
        if nits < 0.85 * 203:
            assert grey == pytest.approx(sdr_code(nits), abs=1)
        elif nits >= 203:
            assert grey >= 245
        else:
            assert sdr_code(0.85 * 203) - 1 <= grey <= sdr_code(nits) + 1


def test_hdr_colours_are_those_of_bt709():
    """Reds, greens and blues of BT.709 at 100 nit, as PQ in BT.2020: ITU-R BT.2087's matrix."""
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    grid = np.linspace(0, 1, 200_001)
    table = np.array([pq_nits(signal) for signal in grid])
    for colour in itertools.product([0, 100], repeat=3):
        signal = np.interp(to_2020 @ colour, table, grid)
        codes = np.round(signal * 65535).astype(np.uint16)[None, None]
        found = hdr_to_sdr(16, 9)(codes)[0, 0].astype(int)
        expected = [sdr_code(light) for light in colour]
        assert found == pytest.approx(expected, abs=14)  # the matrix has four digits; black is steep
        assert found[np.array(colour) > 0] == pytest.approx(sdr_code(100), abs=1)


HDR_TAGS = {"colorspace": 9, "color_range": 1, "color_primaries": 9}


def hdr_file(path: Path, signal: float, transfer: int, codec: str = "libx265", **tags: int) -> Path:
    code = round(64 + 876 * signal)
    grey = np.full((96, 64), 512, np.uint16)
    grey[:64] = code

    def tag(stream):
        for name, value in {**HDR_TAGS, "color_trc": transfer, **tags}.items():
            setattr(stream.codec_context, name, value)

    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {}
    return encode(
        path, [grey] * 3, codec=codec, pixel_format="yuv420p10le", source="yuv420p10le", set_up=tag, options=options
    )


@pytest.mark.parametrize(
    ("transfer", "signal", "nits"),
    [(16, 0.5806, 203), (18, 0.75, 203), (16, 0.3, pq_nits(0.3)), (18, 0.3, hlg_nits([0.3] * 3)[0])],
)
@pytest.mark.parametrize("name", ["hdr.mp4", "hdr.mkv"])
def test_hdr_files_are_tone_mapped(tmp_path, name, transfer, signal, nits):
    path = hdr_file(tmp_path / name, signal, transfer)
    for frame in assert_agree(path):
        if nits == 203:
            assert frame.min() >= 245
        else:
            assert frame.mean() == pytest.approx(sdr_code(nits), abs=2)


def test_pq_white_of_ffmpeg_is_white():
    assert min(frame.min() for frame in assert_agree(SAMPLES / "pq_white.mp4")) >= 245


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_that_cannot_be_converted_is_named(tmp_path, transfer):
    path = hdr_file(tmp_path / "ictcp.mkv", 0.5, transfer, colorspace=14)
    with pytest.raises(VideoFileError, match=r"ictcp\.mkv .*HDR \((PQ|HLG)\) in ICtCp"):
        probe(path)


def test_dolby_vision_without_a_base_is_refused(tmp_path):
    def tag(stream):
        stream.codec_context.codec_tag = "dvh1"

    path = encode(
        tmp_path / "dolby.mp4",
        [CORNERS] * 2,
        codec="libx265",
        pixel_format="yuv420p10le",
        set_up=tag,
        options={"x265-params": "log-level=none:bframes=0"},
        container_options={"strict": "-2"},
    )
    with pytest.raises(VideoFileError, match=r"HDR in Dolby Vision .*profile 5"):
        probe(path)


# -- Times ---------------------------------------------------------------------------------------------------


def expected_by_fps_filter(path: Path, fps: Fraction) -> list[int]:
    return [number_of(frame) for frame in filtered(path, f"setpts=PTS-STARTPTS,fps={fps}")]


RNG = np.random.default_rng(5)
TWO_RATES = [round(1000 * index / 25) for index in range(25)] + [1000 + 200 * index for index in range(15)]
PHONE = [round(90000 * index * 1001 / 30000 + RNG.uniform(-300, 300)) + 5000 for index in range(60)]
SCREEN = [1000 * index for index in range(6)]
BURST = [1000 * index for index in range(5)] + [5000 + 33 * index for index in range(30)]


@pytest.mark.parametrize(
    ("name", "codec", "times", "clock", "fps"),
    [
        ("two.mkv", "libx264", TWO_RATES, 1000, 25),
        ("two.mp4", "libx264", TWO_RATES, 1000, 25),
        ("two.webm", "libvpx-vp9", TWO_RATES, 1000, 25),
        ("late.mp4", "libx264", [time + 7000 for time in TWO_RATES], 1000, 25),
        ("phone.mp4", "libx264", PHONE, 90000, None),
        ("screen.mkv", "libx264", SCREEN, 1000, 1),
        ("burst.mkv", "libx264", BURST, 1000, None),
        ("film.mkv", "libx264", [round(index * 1001 / 24) for index in range(48)], 1000, Fraction(24000, 1001)),
        ("film.ts", "libx264", [index * 3600 for index in range(50)], 90000, 25),
        ("clock.mp4", "libx264", [index * 40 for index in range(20)], 1000, 25),
    ],
)
def test_varying_frames_become_a_constant_rate(tmp_path, name, codec, times, clock, fps):
    options = {"bf": "2"} if codec == "libx264" else {}
    # The rate that a container may note is the right one, or, as by browsers, that of its clock.
    path = encode(
        tmp_path / name,
        numbered(len(times)),
        codec=codec,
        times=times,
        time_base=Fraction(1, clock),
        options=options,
        rate=fps or clock,
    )
    info = probe(path)
    if fps is None:
        assert float(info.fps) == pytest.approx(30, abs=0.31)
    else:
        assert info.fps == fps
    frames = [number_of(frame) for frame in assert_agree(path)]
    expected = expected_by_fps_filter(path, info.fps)
    # The last frame has no end of its own in some containers: FFmpeg's filter may show it longer or shorter.
    assert frames[: len(expected) - 1] == expected[: len(frames)][: len(expected) - 1]
    assert abs(len(frames) - len(expected)) <= 1
    elapsed = [(time - times[0]) / clock for time in times]
    for index, number in enumerate(frames):
        shown = max(place for place, time in enumerate(elapsed) if time <= (index + 0.5) / info.fps + 0.002)
        assert number in (shown, shown - 1)


def test_two_rates_of_ffmpeg_keep_their_length():
    path = SAMPLES / "two_rates.mp4"
    assert probe(path).fps == 25
    frames = assert_agree(path)
    assert_same(frames, filtered(path, "fps=25"))
    assert len(frames) == 96


@pytest.mark.parametrize(
    ("times", "clock", "num_frames", "fps"),
    [
        ([0], 90000, 1, 25),  # a still
        (list(range(30)), 90000, 30, 25),  # times without a meaning
        ([33 * index for index in range(40)], 1000, 40, 30),  # a browser's recording: the rate is that of its clock
    ],
)
def test_absurd_rates_are_replaced(tmp_path, times, clock, num_frames, fps):
    path = encode(tmp_path / "odd.mkv", numbered(len(times)), times=times, time_base=Fraction(1, clock), rate=clock)
    assert probe(path).fps == pytest.approx(fps, abs=0.31)
    assert len(assert_agree(path)) == num_frames


def test_slow_videos_keep_their_rate_and_joined_recordings_follow_each_other(tmp_path):
    slow = encode(tmp_path / "slow.webm", numbered(10), codec="libvpx-vp9", rate=Fraction(7, 10))
    assert float(probe(slow).fps) == pytest.approx(0.7, rel=0.01)
    assert len(assert_agree(slow)) == 10
    first = encode(tmp_path / "first.ts", numbered(10), options={"bf": "2"}).read_bytes()
    second = encode(tmp_path / "second.ts", numbered(10, 48, 64)).read_bytes()
    times = [90_000 * 18_000 + 3600 * index for index in range(10)]  # five hours later
    third = encode(tmp_path / "third.ts", numbered(10), times=times, time_base=Fraction(1, 90_000)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second + third + first)
    frames = assert_agree(tmp_path / "joined.ts")  # all of the first one's size
    assert [number_of(frame) for frame in frames] == list(range(10)) * 4


def test_a_gif_of_varying_frames(tmp_path):
    pictures = [Image.fromarray(frame) for frame in numbered(12)]
    path = tmp_path / "varying.gif"
    steps = [30, 100, 50] * 4
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=steps)
    fps = probe(path).fps
    assert 20 <= fps <= 50
    shown = Counter(number_of(frame) for frame in assert_agree(path))
    for number, step in enumerate(steps):
        assert shown[number] / float(fps) == pytest.approx(step / 1000, abs=1.01 / float(fps))


def test_a_gap_of_hours_is_refused_in_a_sentence_and_a_long_one_is_filled(tmp_path):
    long = encode(tmp_path / "long.mkv", numbered(4), times=[0, 40, 80, 60_080], time_base=Fraction(1, 1000), rate=25)
    assert count_frames(long) == 2 + 1500 + 1
    assert [number_of(frame) for frame in read_frames(long, max_frames=5)] == [0, 1, 2, 2, 2]
    hours = encode(
        tmp_path / "hours.mkv", numbered(4), times=[0, 40, 80, 20_000_000], time_base=Fraction(1, 1000), rate=25
    )
    assert count_frames(hours, 2) == 2
    with pytest.raises(VideoFileError, match=r"hours\.mkv shows one frame for 20000 s, from 0 s on"):
        count_frames(hours)


def test_recordings_with_b_frames_and_without_times_play_in_order(tmp_path):
    frames = [np.full((64, 96, 3), 20 + 9 * index, np.uint8) for index in range(20)]
    for name, options in (("raw.h264", {"bf": "2"}), ("packed.avi", {"bf": "2"}), ("plain.m4v", {})):
        codec = "libx264" if "m4v" not in name else "mpeg4"
        path = encode(tmp_path / name, frames, codec=codec, options=options)
        assert [frame.mean() for frame in assert_agree(path)] == pytest.approx(list(range(20, 200, 9)), abs=4)


def test_frames_hidden_by_an_edit_list_stay_hidden(tmp_path):
    path = encode(tmp_path / "edited.mp4", numbered(25), options={"bf": "0", "g": "1"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst")
    version, count = data[place + 4], struct.unpack(">I", data[place + 8 : place + 12])[0]
    assert (version, count) == (0, 1)
    duration, start, _ = struct.unpack(">IiI", data[place + 12 : place + 24])
    assert (duration, start) == (1000, 0)
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    data[place + 12 : place + 20] = struct.pack(">Ii", 400, scale * 5 // 25)  # ten frames, from the sixth on
    path.write_bytes(data)
    assert [number_of(frame) for frame in assert_agree(path)] == list(range(5, 15))


# -- Which stream --------------------------------------------------------------------------------------------


def test_music_with_a_cover_is_not_a_video():
    for read in (probe, count_frames, lambda path: list(read_frames(path))):
        with pytest.raises(VideoFileError, match=r"sound_with_cover\.m4a: the file has no video"):
            read(SAMPLES / "sound_with_cover.m4a")


def test_a_cover_next_to_a_video_is_ignored():
    frames = assert_agree(SAMPLES / "cover.mp4")
    assert len(frames) == 25
    assert frames[0].shape == (180, 320, 3)


def test_of_several_videos_the_best_of_ffmpeg_is_taken(tmp_path):
    for default in (0, 1):
        path = tmp_path / f"two{default}.mkv"
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
            for number, stream in enumerate(streams):
                stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
                stream.disposition = av.stream.Disposition.default if number == default else 0
            for number, stream in enumerate(streams):
                for index in range(10):
                    shade = np.full((64, 64, 3), 50 + 100 * number, np.uint8)
                    picture = av.VideoFrame.from_ndarray(shade).reformat(format="yuv420p")
                    picture.pts, picture.time_base = index, Fraction(1, 25)
                    container.mux(stream.encode(picture))
                container.mux(stream.encode(None))
        with av.open(str(path)) as container:
            assert container.streams.best("video").index == default
        assert assert_agree(path)[0].mean() == pytest.approx(50 + 100 * default, abs=3)


# -- Names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"take:1.mp4",
        b"12:30.mp4",
        b"http:clip.mp4",
        b"file:clip.mp4",
        b"concat:a|b.mp4",
        b"pipe:0",
        b"-",
        b"-i.mp4",
        b"clip%03d.png",
        b"a\nb.mp4",
        b"\xff\xfe.mp4",
        b"n" * 255,
        b"cat.m3u8",
    ],
)
def test_a_name_is_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    clip = encode(tmp_path / "clip.mp4", numbered(3)).read_bytes()
    path = Path(os.fsdecode(name))
    if path.suffix == ".png":
        Image.fromarray(numbered(1)[0]).save(path, "PNG")
        Image.fromarray(CORNERS).save("clip001.png")
        assert number_of(assert_agree(path)[0]) == 0
        return
    path.write_bytes(clip)
    assert len(assert_agree(path)) == 3
    path.write_bytes(b"nothing that is a video")
    with pytest.raises(VideoFileError, match=r"Invalid data"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile {clip}\n"),
        ("list.txt", "file {clip}\n"),
        ("call.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n"),
        ("list.pls", "[playlist]\nFile1={clip}\n"),
    ],
)
def test_a_playlist_is_not_a_video(tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "clip.ts", numbered(3))
    (tmp_path / name).write_text(text.format(clip="clip.ts"))
    with pytest.raises(VideoFileError, match=name):
        probe(name)


def test_a_path_that_is_not_a_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, reason in (
        (tmp_path / "pipe.mp4", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "directory"),
        (tmp_path / "missing.mp4", "No such file"),
    ):
        with pytest.raises(VideoFileError, match=reason):
            probe(path)


# -- Broken files --------------------------------------------------------------------------------------------


def test_a_file_that_breaks_off_says_where():
    for read in (count_frames, lambda path: list(read_frames(path))):
        with pytest.raises(VideoFileError, match=r"truncated\.mp4 breaks off after 12 of 25 frames"):
            read(SAMPLES / "truncated.mp4")
    assert count_frames(SAMPLES / "truncated.mp4", 5) == 5


def noise(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"movflags": "+faststart"}),
        ("fragments.mp4", "libx264", {"movflags": "+frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {}),
        ("a.flv", "libx264", {}),
        ("a.ts", "libx264", {}),
        ("a.gif", "gif", {}),
        ("a.apng", "apng", {}),
        ("a.wmv", "msmpeg4", {}),
        ("live.mkv", "libx264", {"live": "1"}),
        ("live.webm", "libvpx-vp9", {"live": "1"}),
        ("a.mpg", "mpeg2video", {}),
        ("a.vob", "mpeg2video", {}),
        ("a.m2ts", "libx264", {}),
    ],
)
def test_every_container_that_breaks_off_is_refused(tmp_path, name, codec, options, subtests: pytest.Subtests):
    pixel_format = {"gif": "rgb8", "apng": "rgb24"}.get(codec, "yuv420p")
    path = encode(
        tmp_path / name,
        noise(50),
        codec=codec,
        pixel_format=pixel_format,
        container_options=options,
        options={"g": "10"} if codec != "gif" else {},
    )
    assert len(assert_agree(path)) == 50
    data = path.read_bytes()
    for kept in (0.31, 0.61, 0.93):
        with subtests.test(kept=kept):
            path.write_bytes(data[: int(len(data) * kept)])
            with pytest.raises(VideoFileError, match=rf"{name} (breaks off|is damaged) after \d+"):
                list(read_frames(path))
            with pytest.raises(VideoFileError, match=rf"{name} (breaks off|is damaged) after \d+"):
                count_frames(path)


def test_an_avi_whose_end_was_never_written_is_refused(tmp_path):
    path = encode(tmp_path / "a.avi", noise(50), codec="mpeg4")
    data = path.read_bytes()
    kept = len(data) * 6 // 10
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    for read in (count_frames, lambda path: list(read_frames(path))):
        with pytest.raises(VideoFileError, match=r"a\.avi (breaks off after \d+ of 50 frames; zeros|is damaged after)"):
            read(path)


@pytest.mark.parametrize("junk", [bytes(100), b"what some programs append", b";"])
def test_what_stands_after_the_end_is_passed_over(tmp_path, junk):
    gif = tmp_path / "a.gif"
    pictures = [Image.fromarray(frame) for frame in numbered(3)]
    pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=100)
    paths = [gif] + [
        encode(tmp_path / name, numbered(3), codec=codec)
        for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mpg", "mpeg2video"))
    ]
    for path in paths:
        with path.open("ab") as file:
            file.write(junk)
        assert len(assert_agree(path)) == 3
    gif.write_bytes(gif.read_bytes().removesuffix(junk).removesuffix(b";"))  # without its end mark
    assert len(assert_agree(gif)) == 3


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"])
def test_files_without_content_are_refused(tmp_path, content):
    path = tmp_path / "empty.mp4"
    path.write_bytes(content)
    for read in (probe, count_frames, lambda path: list(read_frames(path))):
        with pytest.raises(VideoFileError, match=r"empty\.mp4"):
            read(path)


def test_a_file_without_its_index_is_refused(tmp_path):
    path = encode(tmp_path / "no_moov.mp4", numbered(5))
    data = path.read_bytes()
    index = data.index(b"moov") - 4
    for end, reason in (
        (index, r"no index \(moov\)"),
        (index + 100, "breaks off after"),
        (200, "breaks off after 200"),
    ):
        path.write_bytes(data[:end])
        with pytest.raises(VideoFileError, match=rf"no_moov\.mp4 is not a video that can be read: .*{reason}"):
            probe(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = encode(tmp_path / "damaged.mp4", noise(50), container_options={"movflags": "+faststart"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(VideoFileError, match=r"damaged\.mp4 is damaged after \d+ frames"):
        list(read_frames(path))


MEASURE = """
import resource, sys
from filmstrip.video.read import count_frames, probe, read_frames
probe(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(1 for _ in read_frames(sys.argv[1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_one_frame_is_in_memory_at_a_time(tmp_path):
    shades = (np.full((1080, 1920, 3), index, np.uint8) for index in range(4))
    path = encode(
        tmp_path / "large.mp4", shades, times=[0, 1, 2, 300], rate=25, options={"preset": "ultrafast", "bf": "0"}
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=100
    )
    num_frames, kilobytes = map(int, done.stdout.split())
    assert num_frames == 301
    assert kilobytes < 150_000  # all frames would take 1.9 GB


def test_a_video_without_a_decoder_is_refused_by_the_name_of_its_codec(tmp_path):
    for name, changes in {
        "clip.mp4": {b"avc1": b"zzz9", b"avcC": b"zzzC"},
        "clip.mkv": {b"V_MPEG4/ISO/AVC": b"V_QUUX4/ISO/ZZZ"},
    }.items():
        data = encode(tmp_path / name, [CORNERS] * 3).read_bytes()
        for old, new in changes.items():
            data = data.replace(old, new)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "clip.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    for name, codec in {"clip.mp4": "zzz9", "clip.mkv": "V_QUUX4/ISO/ZZZ", "clip.svg": "svg"}.items():
        for read in (probe, count_frames, lambda path: next(read_frames(path))):
            with pytest.raises(VideoFileError, match=rf"{name} cannot be read: there is no decoder .*\({codec}\)"):
                read(tmp_path / name)


@pytest.mark.parametrize("codec", ["rawvideo", "huffyuv"])
def test_the_unused_fourth_byte_of_an_avi_is_not_alpha(tmp_path, codec):
    for alpha in (0, 255):
        frame = np.dstack([CORNERS[..., ::-1], np.full(CORNERS.shape[:2], alpha, np.uint8)])
        path = encode(tmp_path / f"{alpha}.avi", [frame] * 2, codec=codec, pixel_format="bgra", source="bgra")
        assert np.array_equal(assert_agree(path)[0], CORNERS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nclip.ts\n", "is a playlist, not a video"),
        (b"\xef\xbb\xbf#EXTM3U\nclip.mp4\n", "is a playlist, not a video"),
        (b"ffconcat version 1.0\nfile clip.mp4\n", "is a playlist, not a video"),
        (b'<?xml version="1.0"?>\n<MPD type="static"></MPD>\n', "is a playlist, not a video"),
        (b"", "is empty"),
    ],
)
def test_playlists_and_empty_files_are_named(tmp_path, content, reason):
    (tmp_path / "clip.m3u8").write_bytes(content)
    with pytest.raises(VideoFileError, match=rf"clip\.m3u8 {reason}"):
        probe(tmp_path / "clip.m3u8")
