"""Reads video files that FFmpeg can read, as frames at a constant rate, one in memory at a time."""

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Self

import av
import av.codec
import av.container
import numpy as np
from av.stream import Disposition, Stream
from av.video import VideoStream
from av.video.codeccontext import VideoCodecContext
from PIL import Image, ImageSequence

from filmstrip.video.frames import Alpha, FrameConverter, FrameNotSupported
from filmstrip.video.integrity import FileBytes, codec_name, missing_part, unreadable_mp4
from filmstrip.wire import Frame

_UNTIMED_FPS = Fraction(25)
_MAX_NOMINAL_FPS = 240
"""A rate above this is measured: many files give the resolution of their clock instead."""
_MAX_GIF_FPS = 50
_MAX_FPS = 480
"""Times of frames that are closer together than this are meaningless."""
_MEASURED_PACKETS = 1000
_STANDARD_RATES = [Fraction(rate) for rate in (24, 25, 30, 48, 50, 60, 100, 120, 240)]
_NEAR = Fraction(2, 100)
_MAX_GAP_S = 3600
_MAX_FRAMES_BACK = 2
_MAX_STEP_OF_STREAMS_S = 10  # as FFmpeg's dts_delta_threshold
_CONSTANT = Fraction(6, 5)
_FRAME_TOLERANCE = Fraction(1, 2)
_PLAYLISTS = {"hls", "concat", "dash", "sdp", "imf", "webm_dash_manifest", "applehttp"}
_PLAYLIST_START = re.compile(rb"(\xef\xbb\xbf)?\s*(#EXTM3U|ffconcat version|<\?xml[^>]*>\s*<MPD|<MPD|v=0\r?\no=)")
_MATROSKA_START = b"\x1a\x45\xdf\xa3"
_MOV_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_SEEK_S = 2  # less is decoded and dropped
_SINGLE_THREAD_PIXELS = 2048 * 2048
"""Each thread of a decoder has frames of its own: that many pixels, and one thread must do."""
_NO_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these drop the alpha channel."""

_ANIMATION_FLAG = 0x02
_CLOCK = Fraction(1, 1000)
_MAX_IGNORED_MS, _DEFAULT_STEP_MS = 10, 100  # browsers show a frame of up to 10 ms for 100 ms


class VideoFileError(Exception):
    """A file that cannot be read or written; the message names it."""


def display_path(path: str | Path) -> str:
    """A path as printable text; bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextmanager
def mapped_errors(path: str | Path) -> Iterator[None]:
    """The one place where errors of FFmpeg and of the operating system become VideoFileErrors."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoFileError(f"{display_path(path)}: {error.strerror or error}") from error


def container_of(head: bytes) -> str:
    """The container of a file that starts with these 8 bytes: "mov" (also MP4), "matroska" (also WebM) or ""."""
    return "matroska" if head.startswith(_MATROSKA_START) else "mov" if head[4:8] in _MOV_BOXES else ""


@dataclass(frozen=True)
class Restrictions:
    """What a file from a stranger may be. Its format is told by its first bytes, and nothing else is tried.

    Attributes:
        formats: containers, of `mov` (also MP4) and `matroska` (also WebM).
        decoders: FFmpeg's names of the decoders that may run.
        max_side: longest side of a frame, in pixels.
    """

    formats: frozenset[str]
    decoders: frozenset[str]
    max_side: int

    def format_of(self, head: bytes) -> str | None:
        """The format of a file that starts with these 8 bytes or more; None if it is not allowed."""
        found = container_of(head)
        return found if found in self.formats else None

    @property
    def options(self) -> dict[str, str]:
        """Options for FFmpeg, which looks at streams by itself when it opens a file."""
        return {"codec_whitelist": ",".join(sorted(self.decoders))}


@dataclass(frozen=True)
class Part:
    """Which part of a video to read, and at what rate.

    Attributes:
        start: in seconds from the first frame.
        end: likewise; None is the end of the video.
        fps: frames per second; None is the file's own rate.
        max_frames: most frames; None for no limit.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    fps: Fraction | None = None
    max_frames: int | None = None

    def slots(self, fps: Fraction) -> tuple[int, int | None]:
        """The first frame of the part, and the one after its last, counted at `fps` from the start of the video."""
        first = math.ceil(self.start * fps)
        stop = None if self.end is None else max(first, math.ceil(self.end * fps))
        if self.max_frames is not None:
            stop = first + self.max_frames if stop is None else min(stop, first + self.max_frames)
        return first, stop


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        height: of its frames as shown, in pixels.
        width: likewise.
        fps: frames per second at which `read_frames` yields them.
        num_frames: None if the file does not say, or its frame rate varies; `count_frames` is exact.
    """

    height: int
    width: int
    fps: Fraction
    num_frames: int | None


def probe(path: str | Path) -> VideoInfo:
    """Read the properties of a video file; decodes one frame, since only a frame knows its orientation.

    Raises:
        VideoFileError: the file is not a video.
    """
    with _Source.opened(path) as source:
        height, width, _ = source.first_frame().shape
        return VideoInfo(height, width, source.fps, source.promised_frames())


def count_frames(path: str | Path, max_frames: int | None = None) -> int:
    """Count the frames that `read_frames` yields, by decoding: the container's count may be wrong or missing.

    Args:
        path: of the file.
        max_frames: stop there.

    Raises:
        VideoFileError: the file cannot be read, is damaged, or ends too early.
    """
    num_frames = 0
    with _Source.opened(path) as source:
        for _, _, times in source.timed_frames():
            num_frames += times
            if max_frames is not None and num_frames >= max_frames:
                return max_frames
    return num_frames


def read_frames(
    path: str | Path, size: tuple[int, int] | None = None, max_frames: int | None = None
) -> Iterator[Frame]:
    """Decode a file's frames, uint8 [H, W, 3] in RGB, as players show them, at the constant rate `VideoInfo.fps`.

    Frames are rotated and mirrored as the file says, pixels become square, transparency becomes black, and HDR (PQ and
    HLG) becomes SDR. If the frame rate varies, frames are repeated or dropped. Interlaced frames stay as they are.

    Args:
        path: path of the file; never a URL or a pattern.
        size: (height, width) to scale to; None keeps the displayed size of the first frame.
        max_frames: stop there.

    Raises:
        VideoFileError: the file cannot be read, is damaged, or ends too early.
    """
    with _Source.opened(path) as source:
        yield from islice(source.frames(size), max_frames)


class PartReader:
    """Reads a part of a video within restrictions; see `read_frames` for what its frames are.

    Attributes:
        height: of a frame as shown.
        width: likewise.
        fps: frames per second.
        num_frames: how many there will be, if the file says how long it is; that may be wrong.

    Raises:
        VideoFileError: the file is not such a video.
    """

    def __init__(self, path: str | Path, part: Part, restrictions: Restrictions) -> None:
        self._path = path
        self._part = part
        self._restrictions = restrictions
        with _Source.opened(path, restrictions) as source:
            self._origin = source.first_time()
            duration = source.duration()
        with _Source.opened(path, restrictions) as source:
            self.height, self.width, _ = source.first_frame().shape
            source.check_side(self.height, self.width)
            self.fps = part.fps or source.fps
        first, stop = part.slots(self.fps)
        self.num_frames = stop and stop - first
        if duration is not None:
            in_file = max(0, round(duration * self.fps) - first)
            self.num_frames = in_file if self.num_frames is None else min(self.num_frames, in_file)

    def frames(self, size: tuple[int, int] | None) -> Iterator[Frame]:
        """The frames, uint8 [H, W, 3], scaled to `size`, (height, width), if it is not None."""
        with _Source.opened(self._path, self._restrictions) as source:
            source.fps = self.fps
            if self._part.start > _SEEK_S:
                source.seek(self._origin, self._part.start)
            yield from source.frames(size, *self._part.slots(self.fps))


def first_time(path: str | Path) -> Fraction:
    """When the first frame of a file is shown, in seconds on the file's clock.

    Raises:
        VideoFileError: it is not a video.
    """
    with _Source.opened(path) as source:
        return source.first_time()


class _Source:
    """An open file and its video stream."""

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        container: av.container.InputContainer,
        restrictions: Restrictions | None = None,
    ) -> None:
        self._path = path
        self._file = FileBytes(file.fileno())
        self._container = container
        self._restrictions = restrictions
        self._origin: Fraction | None = None
        self._stream = _video_stream(path, container, self._file, restrictions)
        self._stream.thread_type = "AUTO"
        if restrictions is not None:
            self.check_side(self._stream.height, self._stream.width)
            is_large = self._stream.height * self._stream.width > _SINGLE_THREAD_PIXELS
            self._stream.thread_count = 1 if is_large else 2
            self._stream.codec_context.options = {"max_pixels": str(restrictions.max_side**2)}
        self._is_avi = "avi" in container.format.name.split(",")
        self._may_jump = bool({"mpegts", "mpeg"} & set(container.format.name.split(",")))
        self._num_decoded = 0
        self._end_s = 0.0
        self._is_cut = False
        self._webp = AnimatedWebp(file) if is_animated_webp(self._file) else None
        rate = self._webp.rate() if self._webp else _nominal_rate(path, self._stream, restrictions)
        self.fps = rate or _UNTIMED_FPS
        self._has_times = rate is not None

    @classmethod
    @contextmanager
    def opened(cls, path: str | Path, restrictions: Restrictions | None = None) -> Iterator[Self]:
        with opened_container(path, restrictions) as (file, container):
            yield cls(Path(path), file, container, restrictions)

    def first_frame(self) -> Frame:
        """The first frame as shown."""
        converter = self._converter(None)
        for frame in self._decoded():
            return self._converted(converter, frame)
        raise VideoFileError(f"{display_path(self._path)}: no frame can be decoded")

    def first_time(self) -> Fraction:
        """When the first frame is shown, in seconds on the file's clock."""
        if self._is_avi:
            return Fraction(0)
        return next((self._time_of(frame) or Fraction(0) for frame in self._decoded()), Fraction(0))

    def frames(self, size: tuple[int, int] | None, first: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Frames as displayed, at the constant rate, from index `first` up to `stop`."""
        converter = self._converter(size)
        for frame, index, times in self.timed_frames():
            if stop is not None and index >= stop:
                return
            after = index + times if stop is None else min(index + times, stop)
            if times := after - max(index, first):
                if times < 0:
                    continue
                picture = self._converted(converter, frame)
                yield picture
                for _ in range(times - 1):
                    yield picture.copy()

    def duration(self) -> Fraction | None:
        """How long the video is, if the file says so, in seconds."""
        stream = self._stream
        if stream.duration and stream.time_base:
            return stream.duration * stream.time_base
        return Fraction(self._container.duration, av.time_base) if self._container.duration else None

    def seek(self, origin: Fraction, start: Fraction) -> None:
        """Go to a key frame at or before `start`, in seconds from the first frame, which is shown at `origin`."""
        if not self._has_times:
            return
        with suppress(av.FFmpegError):  # then all frames before it are decoded
            self._container.seek(math.floor((origin + start) * av.time_base))
            self._origin = origin

    def timed_frames(self) -> Iterator[tuple[av.VideoFrame, int, int]]:
        """Decoded frames, with the index at the constant rate, and how often each is repeated; 0 if it is dropped.

        A frame is shown from its own time, rounded to the constant rate, to that of the next one, as in FFmpeg's `fps`
        filter.
        """
        held: av.VideoFrame | None = None
        held_slot, elapsed, origin = 0, Fraction(0), Fraction(0)
        for frame in self._decoded():
            time = self._time_of(frame)
            if held is None:
                held, origin = frame, time or Fraction(0)
                if self._origin is not None:  # of the first frame, before the seek
                    origin, elapsed = self._origin, max(origin - self._origin, Fraction(0))
                    held_slot = self._slot(elapsed)
                continue
            step = 1 / self.fps if time is None else time - origin - elapsed
            is_jump = step < -_MAX_FRAMES_BACK / self.fps or (self._may_jump and step > _MAX_STEP_OF_STREAMS_S)
            if time is not None and is_jump:  # the clock jumps, as where recordings are joined
                step = 1 / self.fps
                origin = time - elapsed - step
            self._check_gap(step, elapsed)
            elapsed += max(step, Fraction(0))
            slot = self._slot(elapsed)
            yield held, held_slot, slot - held_slot
            held, held_slot = frame, slot
        if held is not None:
            duration = (held.duration or 0) * (held.time_base or 0) if self._has_times else 0
            self._check_gap(Fraction(duration), elapsed)
            yield held, held_slot, max(1, self._slot(elapsed + duration) - held_slot)

    def promised_frames(self) -> int | None:
        """The container's number of frames, if it is that of the constant rate."""
        stream = self._stream
        if not (self._has_times and stream.frames and stream.duration and stream.time_base):
            return None
        shown = stream.duration * stream.time_base * self.fps
        return stream.frames if abs(shown - stream.frames) < _FRAME_TOLERANCE else None

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Decoded frames of the video; raises if the file is damaged or incomplete."""
        try:
            for frame in self._webp.frames() if self._webp else self._decoded_by_ffmpeg():
                self.check_side(frame.height, frame.width)
                yield frame
                self._num_decoded += 1
        except (av.FFmpegError, OSError) as error:
            self._check_whole()
            raise VideoFileError(
                f"{display_path(self._path)} is damaged after {self._num_decoded} frames: {error.strerror or error}"
            ) from error
        self._check_whole()

    def _decoded_by_ffmpeg(self) -> Iterator[av.VideoFrame]:
        decode = _decoder(self._stream)
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base:
                self._end_s = max(self._end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == self._stream.index:  # stream_index is not set at the end of a stream
                self._is_cut = packet.is_corrupt if packet.size else self._is_cut
                yield from decode(packet)

    def _check_whole(self) -> None:
        missing = missing_part(
            self._file,
            self._container,
            self._stream,
            end_s=self._end_s,
            is_cut=self._is_cut,
            num_decoded=self._num_decoded,
        )
        if missing:
            raise VideoFileError(f"{display_path(self._path)} breaks off {missing}")

    def check_side(self, height: int, width: int) -> None:
        """Check a frame against the restrictions.

        Raises:
            VideoFileError: it is too large.
        """
        if self._restrictions is not None and max(height, width) > self._restrictions.max_side:
            raise VideoFileError(
                f"{display_path(self._path)} has frames of {width}x{height}; at most "
                f"{self._restrictions.max_side} pixels per side are supported"
            )

    def _check_gap(self, gap: Fraction, start: Fraction) -> None:
        if gap > _MAX_GAP_S:
            raise VideoFileError(
                f"{display_path(self._path)} shows one frame for {float(gap):.0f} s, from {float(start):.0f} s on; "
                f"at most {_MAX_GAP_S} s are supported"
            )

    def _time_of(self, frame: av.VideoFrame) -> Fraction | None:
        # AVI only has decoding times; FFmpeg assigns them to the wrong frames if the display order differs.
        stamp = frame.dts if self._is_avi or frame.pts is None else frame.pts
        if stamp is None or not frame.time_base or not self._has_times:
            return None
        return stamp * frame.time_base

    def _slot(self, elapsed: Fraction) -> int:
        return math.floor(elapsed * self.fps + Fraction(1, 2))

    def _converter(self, size: tuple[int, int] | None) -> FrameConverter:
        aspect = self._stream.sample_aspect_ratio
        if (
            not aspect or aspect <= 0 or "gif" in self._container.format.name
        ):  # players ignore the aspect ratio of a GIF
            aspect = Fraction(1)
        context = self._stream.codec_context
        # The fourth byte of a pixel has no meaning in an uncompressed AVI, and often none with HuffYUV.
        is_raw = self._is_avi and context.name == "rawvideo" and not context.codec_tag.strip("\0")
        alpha = Alpha.IGNORED if is_raw else Alpha.UNSURE if self._is_avi else Alpha.STRAIGHT
        return FrameConverter(aspect, size, context.codec_tag, alpha)

    def _converted(self, converter: FrameConverter, frame: av.VideoFrame) -> Frame:
        try:
            with mapped_errors(self._path):
                return converter.convert(frame)
        except FrameNotSupported as error:
            raise VideoFileError(f"{display_path(self._path)} cannot be read: {error}") from error


@contextmanager
def opened_container(
    path: str | Path, restrictions: Restrictions | None = None
) -> Iterator[tuple[BinaryIO, av.container.InputContainer]]:
    """Open a media file. The path is never a URL or a pattern, and other files that it refers to are not opened.

    Raises:
        VideoFileError: it cannot be opened, or is not a media file.
    """
    with mapped_errors(path), open(path, "rb", opener=_without_blocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise VideoFileError(f"{display_path(path)} is not a regular file")
        if not os.fstat(file.fileno()).st_size:
            raise VideoFileError(f"{display_path(path)} is empty")
        name, options = None, {"protocol_whitelist": "none"}
        if restrictions is not None:
            name, options = restrictions.format_of(os.pread(file.fileno(), 8, 0)), options | restrictions.options
            if name is None:
                raise VideoFileError(f"{display_path(path)} is not an MP4, MOV, WebM or MKV file")
        try:
            # FFmpeg gets no name: it would take "a:b" for a URL, and "%d" for an image sequence.
            container = av.open(_Nameless(file), format=name, options=options)
        except av.FFmpegError as error:
            if _PLAYLIST_START.match(os.pread(file.fileno(), 1024, 0)):
                raise VideoFileError(f"{display_path(path)} is a playlist, not a video") from error
            reason = unreadable_mp4(FileBytes(file.fileno())) or error.strerror
            raise VideoFileError(f"{display_path(path)} is not a video that can be read: {reason}") from error
        with container:
            assert isinstance(container, av.container.InputContainer)
            if not len(container.streams) and (reason := unreadable_mp4(FileBytes(file.fileno()))):
                raise VideoFileError(f"{display_path(path)} is not a video that can be read: {reason}")
            if _PLAYLISTS & set(container.format.name.split(",")):
                raise VideoFileError(f"{display_path(path)} is a playlist, not a video")
            yield file, container


def has_decoder(stream: Stream) -> bool:
    """Whether FFmpeg can decode a stream; PyAV lacks most attributes of one that it cannot."""
    return bool(stream.codec_context)


class _Nameless:
    """The part of a file that PyAV needs."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def _without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # open() of a FIFO would wait for its writer


def _video_stream(
    path: Path, container: av.container.InputContainer, file: FileBytes, restrictions: Restrictions | None
) -> VideoStream:
    """The stream that FFmpeg considers best, except for attached pictures and streams without a decoder."""
    found = [stream for stream in container.streams.video if not stream.disposition & _NO_PICTURES]
    streams = [stream for stream in found if has_decoder(stream)]
    if restrictions is not None:
        streams = [stream for stream in streams if stream.codec_context.codec.name in restrictions.decoders]
    best = container.streams.best("video")
    if best in streams:
        assert isinstance(best, VideoStream)
        return best
    if found and not streams:
        raise VideoFileError(
            f"{display_path(path)} cannot be read: there is no decoder for its video ({codec_name(file, container)})"
        )
    if not streams:
        raise VideoFileError(f"{display_path(path)}: the file has no video")
    return max(streams, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.bit_rate or 0))


def _decoder(stream: VideoStream) -> Callable[["av.Packet[Any]"], list[av.VideoFrame]]:
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return stream.decode
    context = av.codec.CodecContext.create(name, "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    return lambda packet: context.decode(packet if packet.size else None)


def _nominal_rate(path: Path, stream: VideoStream, restrictions: Restrictions | None) -> Fraction | None:
    """The constant rate for a stream: FFmpeg's guess if it is plausible; None if the stream has no usable times."""
    guess, mean = stream.guessed_rate, stream.average_rate
    is_gif = stream.codec_context.name == "gif"
    highest = max(stream.base_rate or 0, guess or 0)
    is_plausible = bool(guess) and highest <= (_MAX_GIF_FPS if is_gif else _MAX_NOMINAL_FPS)
    if is_plausible and not (guess and mean and guess > mean * _CONSTANT):
        return guess
    with opened_container(path, restrictions) as (_, container):
        twin = container.streams[stream.index]
        stamps = sorted(
            {packet.pts for packet in islice(container.demux(twin), _MEASURED_PACKETS) if packet.pts is not None}
        )
        steps = sorted(after - before for before, after in pairwise(stamps))
    is_constant = bool(steps) and steps[-1] <= steps[0] * _CONSTANT
    if is_plausible and not is_constant:
        return guess
    if not steps or not twin.time_base:
        return None
    rate = 1 / ((steps[0] if is_gif else steps[len(steps) // 2]) * twin.time_base)
    if rate > _MAX_FPS:
        return None
    near = min(_STANDARD_RATES, key=lambda standard: abs(standard - rate))
    return near if abs(near - rate) < near * _NEAR else rate.limit_denominator(1000)


# -- Animated WebP, which FFmpeg does not decode --------------------------------------------------------------


def is_animated_webp(file: FileBytes) -> bool:
    """Whether a file is a WebP with several frames."""
    head = file.read(0, 21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & _ANIMATION_FLAG)


class AnimatedWebp:
    """Frames of an animated WebP, with their times."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def rate(self) -> Fraction | None:
        """Frames per second, by the shortest frame; None if there is only one."""
        steps = [frame.duration for frame in self.frames()]
        return 1 / (min(steps) * _CLOCK) if len(steps) > 1 else None

    def frames(self) -> Iterator[av.VideoFrame]:
        """Complete frames in RGBA: each is drawn over those before it.

        Raises:
            OSError: the file is damaged.
        """
        self._file.seek(0)
        with Image.open(self._file, formats=["WEBP"]) as animation:
            pts = 0
            for image in ImageSequence.Iterator(animation):
                frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), format="rgba")
                frame.pts, frame.time_base = pts, _CLOCK
                duration = int(image.info.get("duration", 0))
                frame.duration = duration if duration > _MAX_IGNORED_MS else _DEFAULT_STEP_MS
                pts += frame.duration
                yield frame
