"""The sound of an input video in the output that shows the same."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from filmstrip.video.write import write_video
from tests.unit.filmstrip.video_samples import numbered

FPS = 25
STEPS_S = 0.2
LEVELS = [0.5, 0.1, 0.3, 0.05, 0.4]  # loudness, one after the other


def with_sound(
    path: Path, codec: str, *, late_s: float = 0.0, video_late_s: float = 0.0, num_frames: int = FPS, rate: int = 44100
) -> Path:
    """A video of one second with a tone that changes its loudness, both late if told."""
    moments = np.arange(int(rate * STEPS_S * len(LEVELS))) / rate
    tone = np.sin(2 * np.pi * 440 * moments) * np.repeat(LEVELS, int(rate * STEPS_S))
    video_codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(video_codec, rate=FPS)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound: Any = container.add_stream(codec, rate=rate)
        sound.layout = "stereo"
        for index, frame in enumerate(numbered(num_frames)):
            picture = av.VideoFrame.from_ndarray(frame).reformat(format="yuv420p")
            picture.pts, picture.time_base = index + round(video_late_s * FPS), Fraction(1, FPS)
            container.mux(video.encode(picture))
        resampler = av.AudioResampler(format=sound.format, layout="stereo", rate=rate)
        samples = av.AudioFrame.from_ndarray(np.stack([tone, tone]).astype(np.float32), format="fltp", layout="stereo")
        samples.sample_rate, samples.pts, samples.time_base = rate, round(late_s * rate), Fraction(1, rate)
        for frame in resampler.resample(samples):
            container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


def loudness(path: Path, step_s: float = STEPS_S) -> tuple[str, list[float]]:
    """Codec of the sound, and how loud the middle of each step is, on the clock of the first frame."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        start = first.pts * first.time_base
        container.seek(0)
        stream = container.streams.audio[0]
        pieces, begin = [], None
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=48000)
        for frame in container.decode(stream):
            for sound in resampler.resample(frame):
                begin = float(sound.pts * sound.time_base - start) if begin is None else begin
                pieces.append(sound.to_ndarray()[0])
        heard = np.concatenate(pieces)
        offset = round((begin or 0) * 48000)
        heard = np.pad(heard, (offset, 0)) if offset >= 0 else heard[-offset:]
        size = round(48000 * step_s)
        steps = [heard[at : at + size] for at in range(0, len(heard), size)]
        middles = [step[size // 4 : 3 * size // 4] for step in steps if len(step) > size / 2]
        return stream.codec_context.codec.canonical_name, [float(np.abs(middle).max(initial=0)) for middle in middles]


@pytest.mark.parametrize(
    ("source", "source_codec", "output", "codec"),
    [
        ("in.mp4", "aac", "out.mp4", "aac"),
        ("in.mp4", "aac", "out.MOV", "aac"),
        ("in.mp4", "aac", "out.mkv", "aac"),
        ("in.ts", "aac", "out.mp4", "aac"),
        ("in.mkv", "libopus", "out.mp4", "opus"),
        ("in.mkv", "libopus", "out.webm", "opus"),
        ("in.mkv", "libopus", "out.mov", "aac"),
        ("in.mp4", "aac", "out.webm", "opus"),
        ("in.avi", "libmp3lame", "out.mp4", "mp3"),
        ("in.mov", "pcm_s16le", "out.mp4", "aac"),
        ("in.mov", "pcm_s16le", "out.mkv", "pcm_s16le"),
        ("in.mkv", "flac", "out.mov", "aac"),
    ],
)
def test_the_sound_of_the_input_is_kept(tmp_path, source, source_codec, output, codec):
    rate = 48000 if source_codec == "libopus" else 44100
    path = with_sound(tmp_path / source, source_codec, rate=rate)
    for num_frames in (25, 15):  # all of the input, and its start
        written = write_video(tmp_path / output, numbered(num_frames), FPS, audio=path)
        assert written.notes == ()
        found, heard = loudness(tmp_path / output)
        assert found == codec
        expected = LEVELS[: num_frames // 5]
        assert heard[: len(expected)] == pytest.approx(expected, abs=0.06)
        assert len(heard) <= len(expected) + 1
        with av.open(str(tmp_path / output)) as container:
            assert len(list(container.decode(video=0))) == num_frames


@pytest.mark.parametrize(("source", "output"), [("in.mp4", "out.mp4"), ("in.mkv", "out.webm"), ("in.mkv", "out.mkv")])
def test_sound_and_frames_stay_together(tmp_path, source, output):
    late = with_sound(tmp_path / f"late-{source}", "aac", late_s=0.4, num_frames=40)
    write_video(tmp_path / output, numbered(40), FPS, audio=late)
    assert loudness(tmp_path / output)[1][:7] == pytest.approx([0, 0, *LEVELS], abs=0.06)
    early = with_sound(tmp_path / f"early-{source}", "aac", video_late_s=0.4)
    write_video(tmp_path / output, numbered(15), FPS, audio=early)
    assert loudness(tmp_path / output)[1][:3] == pytest.approx(LEVELS[2:], abs=0.06)


@pytest.mark.parametrize(
    ("output", "num_frames", "fps", "reason"),
    [
        ("out.gif", 25, 25, "a GIF has none"),
        ("out.png", 25, 25, "a PNG has none"),
        ("out-%d.png", 25, 25, "a PNG has none"),
        ("out.mp4", 26, 25, "the output has 26 frames, the input 25"),
        ("out.mp4", 25, 12.5, "the output has 12.5 frames per second, the input 25"),
    ],
)
def test_sound_that_does_not_fit_is_dropped_with_a_sentence(tmp_path, output, num_frames, fps, reason):
    path = with_sound(tmp_path / "in.mp4", "aac")
    written = write_video(tmp_path / output, numbered(num_frames), fps, audio=path)
    assert written.notes == (f"The sound of {path} is dropped: {reason}.",)
    assert written.num_frames == num_frames


def test_an_input_without_sound_is_not_spoken_of(tmp_path):
    write_video(tmp_path / "in.mp4", numbered(5), FPS)
    for name in ("out.mp4", "out.gif"):
        assert write_video(tmp_path / name, numbered(5), FPS, audio=tmp_path / "in.mp4").notes == ()


def test_a_missing_or_damaged_input_costs_only_the_sound(tmp_path):
    path = with_sound(tmp_path / "in.mkv", "flac")
    assert write_video(tmp_path / "out.mp4", numbered(5), FPS, audio=tmp_path / "gone.mp4").notes == ()
    path.write_bytes(path.read_bytes()[:-3000])
    written = write_video(tmp_path / "out.mp4", numbered(25), FPS, audio=path)
    assert written.num_frames == 25
    assert "breaks off" in written.notes[0]


@pytest.mark.parametrize(
    ("rate", "output", "codec"),
    [(8000, "out.mp4", "aac"), (11025, "out.mp4", "aac"), (12000, "out.mov", "mp3"), (8000, "out.mkv", "mp3")],
)
def test_sound_that_a_container_refuses_at_its_rate_is_encoded(tmp_path, rate, output, codec):
    path = with_sound(tmp_path / "in.avi", "libmp3lame", rate=rate)
    written = write_video(tmp_path / output, numbered(25), FPS, audio=path)
    assert written.notes == ()
    found, heard = loudness(tmp_path / output)
    assert found == codec
    assert len(heard) == pytest.approx(len(LEVELS), abs=1)
    assert max(heard) == pytest.approx(max(LEVELS), abs=0.06)


def test_sound_without_a_decoder_costs_only_the_sound(tmp_path):
    path = with_sound(tmp_path / "in.mkv", "aac")
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_QQQ"))
    for output in ("out.mp4", "out.mkv", "out.webm"):
        written = write_video(tmp_path / output, numbered(25), FPS, audio=path)
        assert written.notes == (f"The sound of {path} is dropped: there is no decoder for it.",)
        with av.open(str(tmp_path / output)) as container:
            assert len(list(container.decode(video=0))) == 25
