"""Generate to Video against the real server: a file as it should be, in little memory."""

import errno
import os
import re
import sys
import threading
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from comfyui import video_file
from comfyui.errors import FilmstripError
from comfyui.nodes_generate import FilmstripGenerateVideo
from filmstrip.video import count_frames, probe, read_frames
from tests.support.comfyui.host import Comfy, ramp
from tests.support.comfyui.nodes import generate_video, pipeline
from tests.support.server import Frontend


def test_the_file_is_the_video(server: Frontend, comfy: Comfy):
    sent = ramp(30)
    answer = generate_video(pipeline(server, "passthrough"), images=comfy.tensor(sent), num_frames=0, fps=24.0)
    video, path, count, _ = answer["result"]
    assert (count, video.file) == (30, path)
    assert path == str(comfy.output_directory / "video" / "Filmstrip_00001_.mp4")
    assert answer["ui"] == {
        "images": [{"filename": "Filmstrip_00001_.mp4", "subfolder": "video", "type": "output"}],
        "animated": (True,),
    }
    facts = probe(path)
    assert (facts.height, facts.width, facts.fps, count_frames(path)) == (64, 96, 24, 30)
    difference = np.stack(list(read_frames(path))) - sent * 255.0
    assert np.abs(difference).mean() < 6
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    second = generate_video(pipeline(server, "passthrough"), images=comfy.tensor(sent), num_frames=0)
    assert second["result"][1].endswith("Filmstrip_00002_.mp4")


def test_long_videos_lie_in_no_memory(server: Frontend, comfy: Comfy):
    """2000 frames of 192 x 128 are 147 MB as bytes, and 590 MB as float32."""
    probe_pipeline = pipeline(server)
    generate_video(probe_pipeline, num_frames=12)  # what PyAV takes once
    process, stop, most = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        answer = generate_video(probe_pipeline, num_frames=2000, width=192, height=128)
    finally:
        stop.set()
        thread.join()
    assert answer["result"][2] == 2000
    assert count_frames(answer["result"][1]) == 2000
    assert most[0] - before < 100e6


@pytest.mark.parametrize("size", [(65, 97), (64, 97), (65, 96)])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path, size: tuple[int, int]):
    frames = [np.full((*size, 3), value, np.uint8) for value in (10, 200)]
    path = str(tmp_path / "odd.mp4")
    assert video_file.write(path, iter(frames), 16) == 2
    facts = probe(path)
    assert (facts.height, facts.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    first, second = read_frames(path)
    assert abs(int(first[-1, -1, 0]) - 10) <= 3
    assert abs(int(second[-1, -1, 0]) - 200) <= 3


def test_nothing_is_left_of_a_file_that_could_not_be_made(tmp_path: Path):
    def breaks():
        yield from np.zeros((100, 64, 64, 3), np.uint8)  # more than the encoder looks ahead: the file is begun
        raise FilmstripError("the download broke off")

    with pytest.raises(FilmstripError, match="broke off"):
        video_file.write(str(tmp_path / "broken.mp4"), breaks(), 16)
    with pytest.raises(FilmstripError, match="a video needs a frame"):
        video_file.write(str(tmp_path / "empty.mp4"), iter(()), 16)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FilmstripError, match="cannot be written"):
        video_file.write(str(tmp_path / "nowhere" / "x.mp4"), iter([np.zeros((64, 64, 3), np.uint8)]), 16)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_made(
    server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch
):
    before = len(server.probe_entries())
    with pytest.raises(FilmstripError, match=r"filename_prefix: '../x' cannot be used: ERROR: Saving image outside"):
        generate_video(pipeline(server), num_frames=9, filename_prefix="../x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FilmstripError, match="pip install av"):
        generate_video(pipeline(server), num_frames=9)
    assert len(server.probe_entries()) == before


def test_a_video_that_cannot_be_written_is_not_lost(server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    def fill_the_disk(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(video_file, "_encode", fill_the_disk)
    with pytest.raises(FilmstripError, match=r"No space left on device; the video is not lost: ") as caught:
        generate_video(pipeline(server), num_frames=9)
    name = re.search(r"filmstrip download (output-\w+) -o FILE", str(caught.value))
    assert name is not None
    assert server.download(name[1]).shape == (9, 64, 96, 3)


def test_without_pyav_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FilmstripError, match="pip install av"):
        video_file.write(str(tmp_path / "x.mp4"), iter(()), 16)


def test_an_older_comfyui_has_the_path_for_a_video_and_the_log_for_texts(
    server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "comfy_api.input_impl", None)
    monkeypatch.delattr(comfy.server.PromptServer, "send_progress_text")
    caplog.set_level("INFO")
    video, path, count, _ = generate_video(pipeline(server), num_frames=9)["result"]
    assert video == path
    assert count == 9
    assert "Filmstrip: chunk 1 of 1" in caplog.text


def test_it_is_an_output_node():
    assert FilmstripGenerateVideo.OUTPUT_NODE is True


def test_any_name_that_a_folder_takes_is_written(tmp_path: Path):
    folder = tmp_path / "a:b %d"
    folder.mkdir()
    for name in ("take:1.mp4", "n" * 251 + ".mp4", "-100% %03d.mp4"):
        path = folder / name
        assert video_file.write(str(path), iter(np.zeros((3, 64, 64, 3), np.uint8)), 16) == 3
        assert count_frames(path) == 3
    assert len(list(folder.iterdir())) == 3
    umask = os.umask(0o027)
    try:
        video_file.write(str(path), iter(np.zeros((3, 64, 64, 3), np.uint8)), 16)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
