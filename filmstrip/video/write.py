"""Writes video files: the suffix decides the format, and a file only appears once it is complete."""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import av
import av.filter
import numpy as np
from av.video import VideoStream
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from filmstrip.geometry import MAX_FPS_DENOMINATOR
from filmstrip.video.contact_sheet import COLUMNS, ROWS, Thumbnail, evenly_spaced, sheet_rows, thumbnail, write_sheet
from filmstrip.video.read import VideoFileError, display_path, mapped_errors
from filmstrip.video.sound import (
    MKV_SOUND,
    MOV_SOUND,
    MP4_SOUND,
    WEBM_SOUND,
    Sound,
    SoundDropped,
    SoundFormat,
    dropped_note,
    has_sound,
)
from filmstrip.wire import Frame

MIN_FPS, MAX_FPS = 0.0001, 1000
MAX_ENCODER_SIDE = 16_384  # of H.264 and VP9
_BT709 = 1  # FFmpeg's number of it in each of its colour enumerations
_EVEN = 2
_MAX_GIF_FPS = 50  # browsers show a frame of less than 20 ms for 100 ms


@dataclass(frozen=True)
class _Format:
    """How files with a suffix are written.

    Attributes:
        name: name for messages.
        container: FFmpeg's name of the container; empty for images.
        codec: FFmpeg's name of the video encoder.
        codec_options: options of the encoder.
        options: options of the container.
        sound: sound that the container can have.
    """

    name: str
    container: str
    codec: str
    codec_options: dict[str, str]
    options: dict[str, str]
    sound: SoundFormat | None = None


_H264 = ("libx264", {"crf": "18"})
_VP9 = ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"})
_MP4 = _Format("MP4", "mp4", *_H264, {"movflags": "+faststart"}, MP4_SOUND)
_PNG = _Format("PNG", "", "", {}, {})
_FORMATS = {
    ".mp4": _MP4,
    ".mov": _Format("MOV", "mov", *_H264, {"movflags": "+faststart"}, MOV_SOUND),
    ".mkv": _Format("MKV", "matroska", *_H264, {}, MKV_SOUND),
    ".webm": _Format("WebM", "webm", *_VP9, {}, WEBM_SOUND),
    ".gif": _Format("GIF", "gif", "gif", {}, {}),
    ".png": _PNG,
}
_REPLACED_BY_CONTENT = {errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS}
"""Errors of rename for a mount point, across file systems, and in a folder without write access."""
_CHECKED_BYTES = 1 << 16
_NUMBER = re.compile(r"%(0?)(\d*)d")


@dataclass(frozen=True)
class Written:
    """The result of writing a file.

    Attributes:
        num_frames: frames that were passed in, even if the format dropped some.
        notes: sentences for the user about what the format could not keep.
    """

    num_frames: int
    notes: tuple[str, ...] = ()


class Output:
    """An output file, opened before there is anything to write; see `open_output`.

    A partial file is opened in the folder of the result, so that a missing folder, a full or read-only disk and an
    unwritable name are noticed at once. Once complete, the result replaces an existing file and keeps its mode. On any
    error the partial file is removed and the existing file stays. A symlink stays, and its target is written.

    Attributes:
        path: path of the result.
        num_frames: number of frames added so far.
    """

    def __init__(self, path: str | Path, file_format: _Format | None = None) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self._format = file_format or _format_of(self.path)
        self._pattern = _sequence_pattern(self.path) if self._format is _PNG else None
        self._encoder: Encoder | None = None
        self._shape: tuple[int, ...] = ()
        self._scale = 1
        self._committed = False
        with mapped_errors(self.path):
            self._place = _SequencePlace(self.path, self._pattern) if self._pattern else _FilePlace(self.path)

    @property
    def is_sequence(self) -> bool:
        """It is one image per frame."""
        return self._pattern is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def write(
        self,
        frames: Iterable[Frame],
        fps: Fraction | float,
        *,
        num_frames: int | None = None,
        scale: int = 1,
        audio: str | Path | None = None,
    ) -> Written:
        """Encode frames, uint8 [H, W, 3] in RGB, one in memory at a time; the file is complete when this returns.

        Args:
            frames: frames of the video.
            fps: frames per second.
            num_frames: how many there will be; required for contact sheets and sound, unless `frames` has a length.
            scale: enlarges the frames this many times, without smoothing.
            audio: input video whose sound is kept, if the format has sound and the frames show that video, or its
                start, at its own rate; otherwise a note says why it is dropped.

        Raises:
            ValueError: a frame has another type or size, fps is outside `MIN_FPS` to `MAX_FPS`, or scale is below 1.
            VideoFileError: the file cannot be written, a side would exceed `MAX_ENCODER_SIDE`, or there are no frames.
        """
        if num_frames is None and isinstance(frames, Sized):
            num_frames = len(frames)
        self.start(fps, num_frames=num_frames, scale=scale, audio=audio)
        for frame in frames:
            self.add(frame)
        return self.commit()

    def start(
        self,
        fps: Fraction | float,
        *,
        num_frames: int | None = None,
        scale: int = 1,
        audio: str | Path | None = None,
    ) -> None:
        """Begin a video; its frames follow with `add`, and `commit` ends it. See `write`."""
        if not MIN_FPS <= fps <= MAX_FPS:
            raise ValueError(f"fps must be between {MIN_FPS} and {MAX_FPS}, got {fps}")
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self._scale = scale
        rate = Fraction(fps).limit_denominator(MAX_FPS_DENOMINATOR)
        with mapped_errors(self.path):
            if self._pattern:
                self._encoder = _SequenceEncoder(self._place.part, self._pattern)
            elif self._format is _PNG:
                if num_frames is None:
                    raise ValueError("a contact sheet needs num_frames")
                self._encoder = _SheetEncoder(self._place.part, num_frames)
            else:
                self._encoder = _opened_encoder(self._place.part, self._format, rate)
            self._add_sound(audio, rate, num_frames)

    def _add_sound(self, audio: str | Path | None, fps: Fraction, num_frames: int | None) -> None:
        assert self._encoder is not None
        if audio is None or not has_sound(audio):
            return
        if self._format.sound is None or not isinstance(self._encoder, _VideoEncoder):
            self._encoder.notes.append(dropped_note(audio, f"a {self._format.name} has none"))
            return
        try:
            self._encoder.sound = Sound(audio, fps, num_frames, self._format.container, self._format.sound)
        except (SoundDropped, VideoFileError) as error:
            self._encoder.notes.append(dropped_note(audio, error))

    def add(self, frame: Frame) -> None:
        """Encode one frame, uint8 [H, W, 3] in RGB.

        Raises:
            ValueError: it is not such a frame, or has another size than those before it.
            VideoFileError: the file cannot be written.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise ValueError(
                f"all frames of a video must have one size, got {list(frame.shape)} after {list(self._shape)}"
            )
        height, width = frame.shape[0] * self._scale, frame.shape[1] * self._scale
        if max(height, width) > MAX_ENCODER_SIDE:
            raise VideoFileError(
                f"{display_path(self.path)} cannot be {width}x{height}: at most {MAX_ENCODER_SIDE} pixels are supported"
            )
        frame = enlarged(frame, self._scale)
        assert self._encoder is not None, "start() must be called first"
        with mapped_errors(self.path):
            self._encoder.add(frame)
        self.num_frames += 1

    def commit(self) -> Written:
        """Finish the file and give it its name.

        Raises:
            VideoFileError: the file cannot be written, or there are no frames.
        """
        if not self.num_frames or self._encoder is None:
            raise VideoFileError(f"{display_path(self.path)}: a video needs at least one frame")
        with mapped_errors(self.path):
            self._encoder.finish()
            self._place.commit()
        self._committed = True
        return Written(self.num_frames, (*self._encoder.notes, *self._place.notes))

    def discard(self) -> None:
        """Remove an unfinished file; does nothing after `commit`."""
        if self._committed:
            return
        if self._encoder is not None:
            with suppress(av.FFmpegError, OSError):
                self._encoder.abort()
        self._place.discard()


def open_mp4(path: str | Path) -> Output:
    """Open an MP4 for writing, whatever its suffix; see `open_output`."""
    return Output(path, _MP4)


def open_output(path: str | Path) -> Output:
    """Open a file for writing, in the format of its suffix: `.mp4`, `.mov`, `.mkv`, `.webm`, `.gif` or `.png`.

    `out.png` is a contact sheet, `out-%05d.png` a sequence of images numbered from 1.

    Raises:
        VideoFileError: the file cannot be written: unknown suffix, missing folder, a folder or device of this name, no
            permission, or a full disk.
    """
    return Output(path)


def check_output(path: str | Path) -> None:
    """Check that a file can be written; use `open_output` instead if the result follows soon."""
    open_output(path).discard()


def write_video(
    path: str | Path,
    frames: Iterable[Frame],
    fps: Fraction | float,
    *,
    num_frames: int | None = None,
    scale: int = 1,
    audio: str | Path | None = None,
) -> Written:
    """Write a video in the format of the suffix of `path`; see `open_output` and `Output.write`."""
    with open_output(path) as output:
        return output.write(frames, fps, num_frames=num_frames, scale=scale, audio=audio)


def open_encoder(
    path: Path,
    suffix: str,
    fps: Fraction,
    *,
    codec_options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> "Encoder":
    """Open an encoder that writes straight to a file, without the partial file of `open_output`.

    Args:
        path: path of the file, whatever its suffix; an existing file is overwritten.
        suffix: `.mp4`, `.mov`, `.mkv`, `.webm` or `.gif`.
        fps: frames per second.
        codec_options: options of the encoder that replace ours or add to them.
        container_options: options of the container; replace the default ones.
    """
    found = _FORMATS[suffix]
    return _opened_encoder(
        path,
        replace(
            found,
            codec_options=found.codec_options | dict(codec_options or {}),
            options=found.options if container_options is None else dict(container_options),
        ),
        fps,
    )


@contextmanager
def open_replacement(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for bytes that are complete already; it replaces `path` at the end of the block, as `Output` does.

    Raises:
        VideoFileError: nothing can be written there.
    """
    with mapped_errors(path):
        place = _FilePlace(Path(path))
    try:
        with place.part.open("wb") as file:
            yield file
        with mapped_errors(path):
            place.commit()
    finally:
        place.discard()


def enlarged(frame: Frame, scale: int) -> Frame:
    """A frame with each pixel repeated `scale` times in both directions."""
    return frame if scale == 1 else np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1)


def _format_of(path: Path) -> _Format:
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        *first, last = _FORMATS
        raise VideoFileError(
            f"{display_path(path)} has {f'the suffix {display_path(path.suffix)}' if path.suffix else 'no suffix'};"
            f" supported are {', '.join(first)} and {last} (a contact sheet; name-%05d.png is a sequence)"
        )
    return found


def _sequence_pattern(path: Path) -> re.Match[str] | None:
    found = list(_NUMBER.finditer(path.name))
    if len(found) > 1:
        raise VideoFileError(f"{display_path(path)} has several numbers; a sequence has one, such as %05d")
    if found and len(found[0][2]) > 2:
        raise VideoFileError(f"{display_path(path)}: {found[0][0]} has more digits than a file name can hold")
    return found[0] if found else None


# -- Where a file is until it is complete ---------------------------------------------------------------------


class _FilePlace:
    """A partial file next to the target, which replaces it at the end."""

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self._target = _writable_target(path)
        try:
            handle, part = _new_part(self._target.parent)
        except OSError as error:
            if error.errno not in _REPLACED_BY_CONTENT or not self._target.exists():
                raise
            handle, part = _new_part(Path(tempfile.gettempdir()))  # the file is writable, its folder is not
        self.part = Path(part)
        _check_space(handle, self.part)

    def commit(self) -> None:
        _replace(self._target, self.part)

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)


class _SequencePlace:
    """A folder next to the images, from which they are moved to their names at the end."""

    def __init__(self, path: Path, pattern: re.Match[str]) -> None:
        self.notes: list[str] = []
        self._folder = path.parent
        self._pattern = pattern
        _writable_target(path.with_name(_numbered(pattern, 1)))
        self.part = Path(tempfile.mkdtemp(prefix=".filmstrip-", suffix=".part", dir=self._folder))
        try:
            handle, part = _new_part(self.part)
            _check_space(handle, Path(part))
            os.unlink(part)
        except OSError:
            self.discard()
            raise

    def commit(self) -> None:
        pictures = sorted(self.part.iterdir())
        targets = [_writable_target(self._folder / picture.name) for picture in pictures]
        for picture, target in zip(pictures, targets, strict=True):
            _replace(target, picture)
        self.part.rmdir()
        after = _numbered(self._pattern, len(pictures) + 1)
        if (self._folder / after).exists():
            self.notes.append(f"{display_path(after)} and later images belong to an earlier sequence")

    def discard(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)


def _writable_target(path: Path) -> Path:
    """The file that a path leads to through symlinks, after a check that it can be written.

    Raises:
        OSError: it cannot.
        VideoFileError: something other than a file is there.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise VideoFileError(f"{display_path(path)} is a symbolic link in a loop")
    try:
        status = target.stat()
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise VideoFileError(
                f"{display_path(path)} cannot be written: the folder {display_path(target.parent)} does not exist"
            ) from None
        return target
    if stat.S_ISDIR(status.st_mode):
        raise VideoFileError(f"{display_path(path)} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoFileError(f"{display_path(path)} is not a regular file; a video can only be written to a file")
    if not os.access(target, os.W_OK):
        raise PermissionError(0, "Permission denied")
    return target


def _replace(target: Path, part: Path) -> None:
    """Replace the target by a partial file at once; keeps the target's mode and, if permitted, its owner."""
    with suppress(OSError):
        os.chown(part, target.stat().st_uid, target.stat().st_gid)
    part.chmod(_mode_for(target))
    try:
        part.replace(target)
    except OSError as error:
        if error.errno not in _REPLACED_BY_CONTENT:
            raise
        shutil.copyfile(part, target)
        part.unlink()


def _new_part(folder: Path) -> tuple[int, str]:
    return tempfile.mkstemp(prefix=".filmstrip-", suffix=".part", dir=folder)


def _check_space(handle: int, part: Path) -> None:
    """Write to a new partial file to notice a full disk; it is closed and empty afterwards, or removed."""
    try:
        with open(handle, "wb") as file:
            file.write(bytes(_CHECKED_BYTES))
            file.flush()
            file.truncate(0)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _mode_for(target: Path) -> int:
    """The mode of the file that is replaced; for a new file, the mode that open() would set."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _numbered(pattern: re.Match[str], number: int) -> str:
    name = pattern.string
    width = int(pattern[2] or 0)
    shown = f"{number:0{width}d}" if pattern[1] else f"{number:{width}d}"
    return name[: pattern.start()] + shown + name[pattern.end() :]


# -- Encoders ------------------------------------------------------------------------------------------------


class Encoder(Protocol):
    """Writes frames of one size, uint8 [H, W, 3], to a file.

    Attributes:
        notes: sentences for the user about what the format cannot keep.
    """

    notes: list[str]

    def add(self, frame: Frame) -> None:
        """Encode the next frame."""

    def finish(self) -> None:
        """Complete the file."""

    def abort(self) -> None:
        """Close the file, complete or not."""


def _opened_encoder(part: Path, file_format: _Format, fps: Fraction) -> Encoder:
    return _GifEncoder(part, fps) if file_format.container == "gif" else _VideoEncoder(part, file_format, fps)


class _VideoEncoder:
    """H.264 or VP9, yuv420p, BT.709, which every browser and player can show.

    yuv420p has one colour sample for 2x2 pixels: a frame of odd height or width repeats its last row or column, so that
    the file is one pixel larger.
    """

    def __init__(self, part: Path, file_format: _Format, fps: Fraction) -> None:
        self.notes: list[str] = []
        self._format = file_format
        self._fps = fps
        self._num_frames = 0
        self._stream: VideoStream | None = None
        self._reformatter = VideoReformatter()
        self.sound: Sound | None = None
        self._container = _opened_for_writing(part, file_format)

    def add(self, frame: Frame) -> None:
        height, width, _ = frame.shape
        if self._stream is None:
            self._stream = self._open_stream(height + height % _EVEN, width + width % _EVEN)
            if self.sound:
                self.sound.add_to(self._container)
        even = np.pad(frame, ((0, height % _EVEN), (0, width % _EVEN), (0, 0)), mode="edge")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(even, format="rgb24"), format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        picture.pts = self._num_frames
        picture.time_base = 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self._num_frames += 1
        if self.sound:
            self.sound.mux_until(self._num_frames / self._fps)

    def finish(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        if self.sound:
            self.sound.finish()
            self.notes += self.sound.notes
        self._container.close()

    def abort(self) -> None:
        if self.sound:
            self.sound.close()
        self._container.close()

    def _open_stream(self, height: int, width: int) -> VideoStream:
        stream = self._container.add_stream(self._format.codec, rate=self._fps, options=self._format.codec_options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._fps
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        return stream


class _GifEncoder:
    """A looping GIF, with a palette for each frame."""

    def __init__(self, part: Path, fps: Fraction) -> None:
        self.notes: list[str] = []
        self._fps = fps
        self._gif_fps = min(fps, Fraction(_MAX_GIF_FPS))
        self._index = 0
        self._num_shown = 0
        self._stream: VideoStream | None = None
        self._graph: av.filter.Graph | None = None
        self._container = _opened_for_writing(part, _FORMATS[".gif"])
        if fps > _MAX_GIF_FPS:
            self.notes.append(f"a GIF shows at most {_MAX_GIF_FPS} frames per second; the other frames are dropped")

    def add(self, frame: Frame) -> None:
        shown = self._index * self._gif_fps / self._fps >= self._num_shown
        self._index += 1
        if not shown:
            return
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if self._graph is None:
            self._graph = self._make_graph(picture)
        picture.pts = self._num_shown
        picture.time_base = 1 / self._gif_fps
        self._graph.push(picture)
        self._num_shown += 1
        self._drain()

    def finish(self) -> None:
        assert self._graph is not None
        self._graph.push(None)
        self._drain()
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        self._container.close()

    def _drain(self) -> None:
        assert self._graph is not None
        while True:
            try:
                picture = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            if self._stream is None:
                self._stream = self._container.add_stream("gif", rate=self._gif_fps)
                self._stream.width, self._stream.height = picture.width, picture.height
                self._stream.pix_fmt = picture.format.name
                self._stream.codec_context.time_base = 1 / self._gif_fps
            self._container.mux(self._stream.encode(picture))

    def _make_graph(self, picture: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=picture.width, height=picture.height, format=picture.format, time_base=1 / self._gif_fps
        )
        split = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(graph.add("buffersink"))
        graph.configure()
        return graph


class _SequenceEncoder:
    """PNG files, numbered from 1."""

    def __init__(self, folder: Path, pattern: re.Match[str]) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._pattern = pattern
        self._num_frames = 0

    def add(self, frame: Frame) -> None:
        self._num_frames += 1
        Image.fromarray(frame).save(self._folder / _numbered(self._pattern, self._num_frames), "PNG")

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class _SheetEncoder:
    """A contact sheet: evenly spaced, numbered frames in one PNG."""

    def __init__(self, part: Path, num_frames: int) -> None:
        self.notes: list[str] = []
        self._part = part
        self._picks = set(evenly_spaced(num_frames, COLUMNS * ROWS)) if num_frames else set()
        self._thumbnails: list[Thumbnail] = []
        self._index = 0

    def add(self, frame: Frame) -> None:
        if self._index in self._picks:
            self._thumbnails.append(thumbnail(frame, self._index))
        self._index += 1

    def finish(self) -> None:
        write_sheet(sheet_rows(self._thumbnails, COLUMNS), self._part)

    def abort(self) -> None:
        pass


def _opened_for_writing(part: Path, file_format: _Format) -> av.container.OutputContainer:
    # FFmpeg takes the name for a URL: with "file:" a colon in a folder's name is not read as a protocol.
    return av.open(f"file:{part.absolute()}", "w", format=file_format.container, options=file_format.options)
