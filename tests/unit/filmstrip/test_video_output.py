"""Writing video files: formats by suffix, and what may stand in the place of the result."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from filmstrip.video.read import VideoFileError
from filmstrip.video.write import check_output, open_output, write_video
from tests.support.mounts import unshare

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (10, 10, 10)]


def plain(height: int = 64, width: int = 96, colours=COLOURS) -> list[np.ndarray]:
    return [np.full((height, width, 3), colour, np.uint8) for colour in colours]


def decoded(path: Path) -> tuple[str, str, list[np.ndarray], list[Fraction]]:
    """Container, codec, frames and their times in seconds, by PyAV alone."""
    with path.open("rb") as file, av.open(file) as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        frames = [picture.to_ndarray(format="rgb24") for picture in pictures]
        return (
            container.format.name,
            stream.codec_context.name,
            frames,
            [picture.pts * picture.time_base for picture in pictures],
        )


def near(frame: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(frame.astype(int) - colour) <= 6).all())


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("out.mp4", "mp4", "h264"),
        ("OUT.MP4", "mp4", "h264"),
        ("out.mov", "mov", "h264"),
        ("out.mkv", "matroska", "h264"),
        ("out.WebM", "webm", "vp9"),
        ("out.gif", "gif", "gif"),
    ],
)
def test_the_suffix_names_the_format(tmp_path, name, container, codec):
    written = write_video(tmp_path / name, iter(plain()), 16, scale=2)
    assert (written.num_frames, written.notes) == (5, ())
    assert files(tmp_path) == [name]
    found, found_codec, frames, times = decoded(tmp_path / name)
    assert container in found.split(",")
    assert found_codec in (codec, f"lib{codec}-{codec}", "libvpx-vp9" if codec == "vp9" else codec)
    assert [frame.shape for frame in frames] == [(128, 192, 3)] * 5
    assert all(near(frame, colour) for frame, colour in zip(frames, COLOURS, strict=True))
    assert [float(time) for time in times] == pytest.approx([index / 16 for index in range(5)], abs=0.0051)


def test_one_picture_is_a_contact_sheet_and_a_pattern_is_a_sequence(tmp_path):
    write_video(tmp_path / "Sheet.PNG", iter(plain()), 16, num_frames=5)
    with Image.open(tmp_path / "Sheet.PNG") as sheet:
        assert (sheet.format, sheet.width) == ("PNG", 5 * 244 + 4)
    folder = tmp_path / "100% 50%d" / "frames"
    folder.mkdir(parents=True)
    write_video(folder / "out-%03d.png", iter(plain()), 16, scale=3)
    assert files(folder) == [f"out-00{number}.png" for number in range(1, 6)]
    for number, colour in enumerate(COLOURS, 1):
        with Image.open(folder / f"out-00{number}.png") as picture:
            assert picture.size == (288, 192)
            assert picture.getpixel((100, 100)) == colour
    assert write_video(folder / "out-%03d.png", plain(colours=COLOURS[:3]), 16).notes == (
        "out-004.png and later images belong to an earlier sequence",
    )
    with pytest.raises(VideoFileError, match="several numbers"):
        check_output(folder / "%d-%d.png")


def test_each_pixel_becomes_a_square(tmp_path):
    frame = np.random.default_rng(1).integers(0, 256, (8, 10, 3), np.uint8)
    write_video(tmp_path / "%d.png", [frame], 16, scale=4)
    with Image.open(tmp_path / "1.png") as picture:
        large = np.asarray(picture)
    assert np.array_equal(large[::4, ::4], frame)
    assert np.array_equal(large[3::4, 3::4], frame)
    with pytest.raises(ValueError, match="scale"):
        write_video(tmp_path / "%d.png", [frame], 16, scale=0)


def test_a_gif_keeps_its_speed_where_browsers_would_slow_it_down(tmp_path):
    written = write_video(tmp_path / "fast.gif", plain(colours=COLOURS * 12), 60)
    assert written.num_frames == 60
    assert "at most 50 frames per second" in written.notes[0]
    *_, frames, times = decoded(tmp_path / "fast.gif")
    assert len(frames) == 50
    assert float(times[-1]) == pytest.approx(0.98, abs=0.011)


@pytest.mark.parametrize("name", ["out.avi", "out", ".mp4", "out.mp4.part", "out.jpg", "out.", "out.m\u0440 4"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(VideoFileError, match=r"\.mp4, \.mov, \.mkv, \.webm, \.gif and \.png"):
        check_output(tmp_path / name)
    assert files(tmp_path) == []


HARD_NAMES = [
    b"take:1.mp4",
    b"http:x.mp4",
    b"concat:a|b.mp4",
    b"-.mp4",
    b"-y.webm",
    b"12:30 %d %05d %.mp4",
    b"100%.png",
    b"a\nb.mp4",
    b"\xff\xfe.mkv",
    b"n" * 251 + b".mp4",
    "ä".encode() * 125 + b".webm",
    b"q'\"$(x)`&;.gif",
]


@pytest.mark.parametrize("name", HARD_NAMES)
def test_a_name_is_a_name(tmp_path, monkeypatch, name):
    folder = os.fsencode(tmp_path) + b"/a:b %d \xff"
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    relative = Path(os.fsdecode(name))
    write_video(relative, plain(), 25)
    assert os.listdir(folder) == [name]
    assert relative.stat().st_size > 100


def test_too_long_a_name_is_refused_at_once(tmp_path):
    with pytest.raises(VideoFileError, match="File name too long"):
        open_output(tmp_path / ("n" * 252 + ".mp4"))


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with open_output(path) as output:
        assert path.read_bytes() == b"old"
        output.write(plain(), 25)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(decoded(path)[2]) == 5
    umask = os.umask(0o027)
    try:
        write_video(tmp_path / "new.mp4", plain(), 25)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new.mp4").stat().st_mode) == 0o640


def test_a_symlink_stays_and_its_target_is_written(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "out.mp4"
    link.symlink_to("real/there.bin")  # dangling at first
    for _ in range(2):
        write_video(link, plain(), 25)
        assert link.is_symlink()
        assert files(real) == ["there.bin"]
        assert len(decoded(real / "there.bin")[2]) == 5
    (tmp_path / "round.mp4").symlink_to("round.mp4")
    (tmp_path / "nowhere.mp4").symlink_to("missing/there.mp4")
    for name in ("round.mp4", "nowhere.mp4"):
        with pytest.raises(VideoFileError, match=name):
            open_output(tmp_path / name)


def test_an_output_path_that_is_not_a_file_is_refused_and_kept(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "null.mp4").symlink_to("/dev/null")
    (tmp_path / "link.mp4").symlink_to("pipe.mp4")
    before = {path: path.lstat().st_mode for path in tmp_path.iterdir()}
    for path, reason in (
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "pipe.mp4", "not a regular file"),
        (tmp_path / "null.mp4", "not a regular file"),
        (tmp_path / "link.mp4", "not a regular file"),
        (tmp_path / "missing" / "out.mp4", "the folder .*missing does not exist"),
        (tmp_path / "pipe.mp4" / "out.mp4", "pipe.mp4"),
    ):
        with pytest.raises(VideoFileError, match=reason):
            open_output(path)
    assert {path: path.lstat().st_mode for path in tmp_path.iterdir()} == before


AS_ANOTHER_USER = """
import os, sys
import numpy as np
from filmstrip.video.read import VideoFileError
from filmstrip.video.write import open_output
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
for name in ("writable.mp4", "readonly.mp4", "new.mp4"):
    try:
        with open_output(os.path.join(sys.argv[1], name)) as output:
            print(name, output.write(np.zeros((3, 64, 64, 3), np.uint8), 25).num_frames)
    except VideoFileError as error:
        print(str(error).removeprefix(sys.argv[1] + "/"))
"""


def test_a_file_that_cannot_be_replaced_is_written_and_what_may_not_be_written_is_refused():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, mode in (("writable.mp4", 0o666), ("readonly.mp4", 0o444)):
            (folder / file).write_bytes(b"old" * 100_000)
            (folder / file).chmod(mode)
        folder.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER, name], capture_output=True, text=True, check=True, timeout=100
        )
        assert done.stdout.splitlines() == [
            "writable.mp4 3",
            "readonly.mp4: Permission denied",
            "new.mp4: Permission denied",
        ]
        assert files(folder) == ["readonly.mp4", "writable.mp4"]
        assert len(decoded(folder / "writable.mp4")[2]) == 3
        assert (folder / "readonly.mp4").read_bytes() == b"old" * 100_000
        folder.chmod(0o755)


def test_a_file_that_is_mounted_into_a_folder_that_is_read_only_is_written(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    inside, target = tmp_path / "inside.mp4", folder / "out.mp4"
    inside.touch()
    mounts = (
        f"mount -t tmpfs tmpfs {folder} && touch {target} && mount --bind {inside} {target}"
        f' && mount -o remount,ro {folder} && exec "$@"'
    )
    code = (
        "import sys, numpy as np; from filmstrip.video.write import write_video;"
        " print(write_video(sys.argv[1], np.zeros((3, 64, 64, 3), np.uint8), 25).num_frames)"
    )
    command = (*unshare(), "sh", "-c", mounts, "sh", sys.executable, "-c", code, str(target))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout, done.stderr) == ("3\n", "")
    assert len(decoded(inside)[2]) == 3


def test_sizes_and_rates_that_no_file_can_have_are_refused(tmp_path):
    for fps in (0, -1, 1e-9, 1e9, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps must be between"):
            write_video(tmp_path / "out.mp4", plain(), fps)
    with pytest.raises(VideoFileError, match=r"out\.mp4 cannot be 96000x64000: at most 16384"):
        write_video(tmp_path / "out.mp4", plain(), 25, scale=1000)
    for fps in (0.0001, 1000):
        for name in ("out.mp4", "out.mkv", "out.webm", "out.gif"):
            write_video(tmp_path / name, plain(), fps)
            *_, frames, times = decoded(tmp_path / name)
            assert len(frames) == (1 if (fps, name) == (1000, "out.gif") else 5)
            if name != "out.gif":
                assert float(times[1] - times[0]) == pytest.approx(1 / fps, rel=0.01)
    assert files(tmp_path) == ["out.gif", "out.mkv", "out.mp4", "out.webm"]


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.png", "out-%d.png", "out.webm"])
def test_what_fails_leaves_the_file_before_it_and_no_part(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="one size"):
        write_video(path, [*plain(colours=COLOURS * 20), *plain(64, 98)], 25, num_frames=105)
    with pytest.raises(VideoFileError, match="a video needs at least one frame"):
        write_video(path, [], 25)
    with open_output(path):
        pass  # a generation that failed
    assert files(tmp_path) == [name]
    assert path.read_bytes() == b"old"


FULL_DISK = """
import resource, sys
import numpy as np
from filmstrip.video.read import VideoFileError
from filmstrip.video.write import write_video
noise = np.random.default_rng(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_video(sys.argv[1], (noise.integers(0, 256, (128, 128, 3), np.uint8) for _ in range(50)), 25, num_frames=50)
except VideoFileError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm", "out.gif", "out.png", "out-%d.png"])
def test_a_full_disk_leaves_the_file_before_it_and_no_part(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True, timeout=100
    )
    assert os.strerror(errno.EFBIG) in done.stdout
    assert name in done.stdout
    assert done.stderr == ""
    assert files(tmp_path) == [name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["out.mp4", "out-%d.png"])
def test_a_full_disk_shows_before_there_is_anything_to_write(tmp_path, name):
    code = (
        "import resource, signal, sys; from filmstrip.video.write import open_output\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"  # as a disk with 8 KiB
        "open_output(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "VideoFileError" in result.stderr
    assert "File too large" in result.stderr
    assert files(tmp_path) == []
