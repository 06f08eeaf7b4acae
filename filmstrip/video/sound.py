"""Copies the sound of an input video to an output that shows the same frames."""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
from av.audio import AudioStream

from filmstrip.video.read import (
    VideoFileError,
    count_frames,
    display_path,
    first_time,
    has_decoder,
    opened_container,
    probe,
)

_RATE_TOLERANCE = Fraction(1, 10_000)
_GAP_S = Fraction(1, 20)
_ENCODED_RATE = 48_000
_INPUT_ERRORS = (av.FFmpegError, OSError, ValueError)
"""Errors of reading and decoding; PyAV raises ValueError if the sound changes its format in the middle."""


@dataclass(frozen=True)
class SoundFormat:
    """The sound that a container supports.

    Attributes:
        copied: codecs that are copied without encoding, by FFmpeg's names.
        codec: encoder for all others.
        has_priming: it can tell players to skip the first samples, which only a decoder needs.
    """

    copied: frozenset[str]
    codec: str
    has_priming: bool = False


MP4_SOUND = SoundFormat(frozenset(("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")), "aac", has_priming=True)
MOV_SOUND = SoundFormat(
    frozenset(("aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le")),
    "aac",
    has_priming=True,
)
MKV_SOUND = SoundFormat(
    frozenset(
        ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac", "vorbis", "dts", "truehd", "pcm_s16le", "pcm_s24le")
    ),
    "aac",
)
WEBM_SOUND = SoundFormat(frozenset(("opus", "vorbis")), "libopus")


class SoundDropped(Exception):
    """The sound cannot be kept; the message continues "the sound of a file is dropped: "."""


class _Sink:
    """A file that discards what is written to it."""

    def __init__(self) -> None:
        self._place = self._size = 0

    def write(self, data: Any) -> int:
        num_bytes = len(data)
        self._place += num_bytes
        self._size = max(self._size, self._place)
        return num_bytes

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place


class Sound:
    """Sound that is muxed packet by packet along with the frames of an output.

    Attributes:
        notes: sentences for the user, once it is finished.

    Args:
        path: path of the input video.
        fps: frames per second of the output.
        num_frames: number of frames of the output.
        container: FFmpeg's name of the output's container.
        sound_format: the sound that the container supports.

    Raises:
        SoundDropped: the output does not show the start of the input at its own rate, or the input cannot be read.
    """

    def __init__(
        self, path: str | Path, fps: Fraction, num_frames: int | None, container: str, sound_format: SoundFormat
    ) -> None:
        try:
            self._start = _start_of_same_span(path, fps, num_frames)
        except VideoFileError as error:
            raise SoundDropped(str(error)) from error
        self._end = Fraction(num_frames or 0) / fps
        self._stack = ExitStack()
        self._packets: Iterator[tuple[Fraction, Any]] = iter(())
        self._next: tuple[Fraction, Any] | None = None
        self._output: av.container.OutputContainer | None = None
        self._path = path
        self._sound_format = sound_format
        self.notes: list[str] = []
        self._is_copied = self._works(container, is_copied=True)
        if not self._is_copied and not self._works(container, is_copied=False):
            raise SoundDropped("it cannot be decoded")

    def add_to(self, output: av.container.OutputContainer) -> None:
        """Add a stream to an output, after all other streams; a note says if the input has disappeared since."""
        try:
            self._packets = self._packets_for(output, self._stack, is_copied=self._is_copied)
        except (SoundDropped, VideoFileError) as error:
            self.notes.append(dropped_note(self._path, error))
        self._output = output
        self._read_next()

    def _works(self, container: str, *, is_copied: bool) -> bool:
        """Try the sound alone in a container of the same kind: each has its own rules for codecs and rates.

        Raises:
            SoundDropped: it cannot be decoded.
            VideoFileError: the input can't be opened.
        """
        with ExitStack() as stack:
            try:
                with av.open(_Sink(), "w", format=container) as output:
                    assert isinstance(output, av.container.OutputContainer)
                    packets = self._packets_for(output, stack, is_copied=is_copied)
                    output.start_encoding()
                    for _, packet in _without_damage(packets):
                        output.mux(packet)
                        if not is_copied:  # one packet of an encoder is enough
                            break
            except (av.FFmpegError, ValueError):
                return False
        return True

    def _packets_for(
        self, output: av.container.OutputContainer, stack: ExitStack, *, is_copied: bool
    ) -> Iterator[tuple[Fraction, Any]]:
        _, container = stack.enter_context(opened_container(self._path))
        source = _sound_stream(container)
        if not is_copied:
            return self._encoded(container, source, output, self._sound_format)
        name = source.codec_context.codec.canonical_name
        has_header = name != "aac" or source.codec_context.extradata  # MPEG-TS has it in each packet instead
        if name not in self._sound_format.copied or not has_header:
            raise ValueError(name)
        return self._copied(container, source, output.add_stream_from_template(source), self._sound_format)

    def mux_until(self, time: Fraction) -> None:
        """Write the sound up to a time in seconds.

        Raises:
            av.FFmpegError: the output cannot be written.
        """
        assert self._output is not None
        while self._next is not None and self._next[0] < time:
            try:
                self._output.mux(self._next[1])
            except ValueError:  # the container rejects the packet; a full disk is another error
                self._next = None
                self.notes.append(f"The sound of {display_path(self._path)} ends early: it cannot be written.")
                return
            self._read_next()

    def _read_next(self) -> None:
        try:
            self._next = next(self._packets, None)
        except _INPUT_ERRORS as error:
            self._next = None
            reason = getattr(error, "strerror", None) or error
            self.notes.append(f"The sound of {display_path(self._path)} ends early: it is damaged ({reason}).")

    def finish(self) -> None:
        """Write what is left."""
        self.mux_until(self._end + 1)
        self.close()

    def close(self) -> None:
        """Close the input."""
        self._stack.close()
        self._next = None

    def _copied(
        self,
        container: av.container.InputContainer,
        source: AudioStream,
        stream: AudioStream,
        sound_format: SoundFormat,
    ) -> Iterator[tuple[Fraction, Any]]:
        for packet in container.demux(source):
            if packet.pts is None or packet.dts is None:
                continue
            time = packet.pts * packet.time_base - self._start
            duration = (packet.duration or 0) * packet.time_base
            if time >= self._end:
                return
            if time < 0 and not (sound_format.has_priming and time + 2 * duration > 0):
                continue
            shift = round(self._start / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            yield time, packet

    def _encoded(
        self,
        container: av.container.InputContainer,
        source: AudioStream,
        output: av.container.OutputContainer,
        sound_format: SoundFormat,
    ) -> Iterator[tuple[Fraction, Any]]:
        layout = "mono" if source.codec_context.channels == 1 else "stereo"
        stream: Any = output.add_stream(sound_format.codec, rate=_ENCODED_RATE)
        stream.layout = layout
        stream.bit_rate = 192_000

        def packets() -> Iterator[tuple[Fraction, Any]]:
            num_samples = 0
            for samples in self._samples(container, source, layout):
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
                frame.sample_rate = _ENCODED_RATE
                frame.pts, frame.time_base = num_samples, Fraction(1, _ENCODED_RATE)
                num_samples += samples.shape[1]
                for packet in stream.encode(frame):
                    yield Fraction(packet.pts * packet.time_base), packet
            for packet in stream.encode(None):
                yield Fraction(packet.pts * packet.time_base), packet

        return packets()

    def _samples(
        self, container: av.container.InputContainer, source: AudioStream, layout: str
    ) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """Samples [channels, L] from the start to the end of the output, with silence in gaps of the input."""
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=_ENCODED_RATE)
        total, place = round(self._end * _ENCODED_RATE), 0
        for decoded in itertools.chain(container.decode(source), [None]):
            for frame in resampler.resample(decoded):
                samples = np.asarray(frame.to_ndarray(), np.float32)
                begin = place
                if frame.pts is not None and frame.time_base:
                    begin = round((frame.pts * frame.time_base - self._start) * _ENCODED_RATE)
                silence = min(begin, total) - place
                if silence > _GAP_S * _ENCODED_RATE:
                    yield np.zeros((samples.shape[0], silence), np.float32)
                    place += silence
                samples = samples[:, max(0, -begin) :][:, : total - place]
                if samples.shape[1]:
                    yield np.ascontiguousarray(samples)
                    place += samples.shape[1]
            if place >= total:
                return


def _without_damage(packets: Iterator[tuple[Fraction, Any]]) -> Iterator[tuple[Fraction, Any]]:
    """Packets up to the first one that cannot be read."""
    with suppress(*_INPUT_ERRORS):
        yield from packets


def _sound_stream(container: av.container.InputContainer) -> AudioStream:
    best = container.streams.best("audio")
    streams = [stream for stream in container.streams.audio if has_decoder(stream)]
    if not streams:
        raise SoundDropped("there is no decoder for it")
    return best if best in streams and isinstance(best, AudioStream) else streams[0]


def has_sound(path: str | Path) -> bool:
    """Whether a file has sound; False if it cannot be read."""
    try:
        with opened_container(path) as (_, container):
            return bool(container.streams.audio)
    except VideoFileError:
        return False


def _start_of_same_span(path: str | Path, fps: Fraction, num_frames: int | None) -> Fraction:
    """When the first frame of a video is shown, after a check that the output shows the same span."""
    source_fps = probe(path).fps
    if abs(source_fps - fps) > _RATE_TOLERANCE * source_fps:
        raise SoundDropped(f"the output has {float(fps):g} frames per second, the input {float(source_fps):g}")
    if num_frames is None:
        raise SoundDropped("the number of frames is not known")
    found = count_frames(path, num_frames)
    if found < num_frames:
        raise SoundDropped(f"the output has {num_frames} frames, the input {found}")
    return first_time(path)


def dropped_note(path: str | Path, reason: object) -> str:
    """A sentence that says why there is no sound."""
    return f"The sound of {display_path(path)} is dropped: {reason}."
