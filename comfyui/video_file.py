"""Writes an MP4 frame by frame: H.264, yuv420p, BT.709, which every browser and player can show."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from .errors import FilmstripError
from .frames import Pixels
from .host import Sound

_MAX_FPS_DENOMINATOR = 100_000
_BT709 = 1  # FFmpeg's number of it in each of its colour enumerations
_CRF = "18"
_SOUND_SAMPLES = 1024  # AAC's frame
_MAX_CHANNELS = 2


def check(path: str) -> None:
    """Check that a file can be written, before there is a video that could be lost.

    Raises:
        FilmstripError: PyAV is missing, or the file cannot be written.
    """
    _pyav()
    try:
        with tempfile.NamedTemporaryFile(prefix=".filmstrip-", dir=os.path.dirname(os.path.abspath(path))):
            pass
    except OSError as error:
        raise FilmstripError(f"{path} cannot be written: {error.strerror or error}") from None


def write(
    path: str,
    frames: Iterable[Pixels],
    fps: float,
    *,
    sound: Sound | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Encode frames, uint8 [H, W, 3] in RGB; returns their number. One frame is in memory at a time.

    Sound that is longer than the frames is cut at their end. The metadata are texts by their names.

    yuv420p has one colour sample for 2x2 pixels: frames of odd height or width repeat their last row or column. The
    file gets its name once it is complete; nothing is left behind on an error.

    Raises:
        FilmstripError: PyAV is missing, or the file cannot be written.
    """
    av = _pyav()
    part = None
    try:
        handle, part = tempfile.mkstemp(
            prefix=".filmstrip-", suffix=".part", dir=os.path.dirname(os.path.abspath(path))
        )
        os.close(handle)
        # FFmpeg takes a name for a URL: "file:" keeps a colon in it from being read as a protocol.
        # Without use_metadata_tags, only the few names that MP4 knows are written.
        options = {"movflags": "+faststart+use_metadata_tags"}
        with av.open(f"file:{part}", "w", format="mp4", options=options) as container:
            container.metadata.update(metadata or {})
            rate = Fraction(fps).limit_denominator(_MAX_FPS_DENOMINATOR)
            num_frames = _encode(av, container, frames, rate, sound)
        os.chmod(part, 0o666 & ~_umask())  # as open() would set it
        os.replace(part, path)
    except (av.FFmpegError, OSError) as error:
        raise FilmstripError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if part is not None:
            with contextlib.suppress(OSError):  # it has its name now
                os.remove(part)
    return num_frames


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise FilmstripError("PyAV is missing in ComfyUI's Python: pip install av") from None
    return av


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _encode(av: Any, container: Any, frames: Iterable[Pixels], fps: Fraction, sound: Sound | None) -> int:
    reformatter = av.video.reformatter.VideoReformatter()
    stream, sound_stream, num_frames = None, None, 0
    for frame in frames:
        height, width, _ = frame.shape
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if stream is None:
            stream = container.add_stream("libx264", rate=fps, options={"crf": _CRF})
            stream.height, stream.width, _ = even.shape
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.time_base = 1 / fps
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            if sound is not None:  # before anything is written: the header names all streams
                sound_stream = container.add_stream("aac", rate=sound.rate, layout=_layout(sound))
        rgb = av.VideoFrame.from_ndarray(even, format="rgb24")
        picture = reformatter.reformat(rgb, format="yuv420p", dst_colorspace=av.video.reformatter.Colorspace.ITU709)
        picture.pts = num_frames
        picture.time_base = 1 / fps
        container.mux(stream.encode(picture))
        num_frames += 1
    if stream is None:
        raise FilmstripError("a video needs a frame")
    container.mux(stream.encode(None))
    if sound is not None and sound_stream is not None:
        samples = sound.samples[:, : max(round(num_frames / fps * sound.rate), 1)]
        planes = np.ascontiguousarray(samples[:_MAX_CHANNELS], np.float32)
        for start in range(0, planes.shape[1], _SOUND_SAMPLES):
            piece = np.ascontiguousarray(planes[:, start : start + _SOUND_SAMPLES])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=_layout(sound))
            frame.sample_rate, frame.pts, frame.time_base = sound.rate, start, Fraction(1, sound.rate)
            container.mux(sound_stream.encode(frame))
        container.mux(sound_stream.encode(None))
    return num_frames


def _layout(sound: Sound) -> str:
    return "mono" if len(sound.samples) == 1 else "stereo"


def read(path: str) -> Iterator[Pixels]:
    """The frames of a file, uint8 [H, W, 3] in RGB.

    Raises:
        FilmstripError: PyAV is missing.
    """
    with _pyav().open(f"file:{path}") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
