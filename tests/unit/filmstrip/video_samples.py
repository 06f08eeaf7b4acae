"""Makes the video files that the tests read, and shows what FFmpeg's own filters make of them."""

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.video import VideoStream

SAMPLES = Path(__file__).with_name("videos")


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    source: str = "rgb24",
    rate: Fraction | int = 25,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    set_up: Callable[[VideoStream], object] | None = None,
) -> Path:
    """Write a file by PyAV alone.

    Args:
        path: its suffix says the container.
        frames: arrays of the format `source`.
        codec: of FFmpeg.
        pixel_format: of the file.
        source: pixel format of the arrays.
        rate: frames a second.
        options: of the encoder.
        container_options: of the container.
        times: of the frames, in units of `time_base`; None is one after the other.
        time_base: None is 1 / rate.
        set_up: more to do with the stream.
    """
    clock = time_base or 1 / Fraction(rate)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = clock
        if set_up:
            set_up(stream)
        for index, array in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(array, format=source)
            if not index:
                stream.width, stream.height = picture.width, picture.height
            if source != pixel_format:
                picture = picture.reformat(format=pixel_format)
            picture.pts = times[index] if times else index
            picture.time_base = clock
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def filtered(path: Path, filters: str = "null", *, decoder: str | None = None, over_black: bool = False):
    """Frames of a file, [H, W, 3] in RGB, after a chain of FFmpeg's filters: `hflip,fps=25`, say.

    Args:
        path: of the file.
        filters: separated by commas.
        decoder: of FFmpeg, where the usual one leaves something out.
        over_black: put the frames over black first, by the filter `overlay`.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context: Any = stream
        if decoder:
            context = av.CodecContext.create(decoder, "r")
            context.extradata = stream.codec_context.extradata
        pictures = [
            picture for packet in container.demux(stream) for picture in context.decode(packet if packet.size else None)
        ]
        graph, first = av.filter.Graph(), pictures[0]
        last = (
            graph.add_buffer(
                width=first.width,
                height=first.height,
                format=first.format,
                time_base=stream.time_base,
            )
            if decoder
            else graph.add_buffer(template=stream)
        )
        if over_black:
            black = graph.add("color", f"black:s={first.width}x{first.height}:r=25")
            overlay = graph.add("overlay", "format=gbrp:shortest=1")
            black.link_to(overlay, 0, 0)
            last.link_to(overlay, 0, 1)
            source, last = last, overlay
        else:
            source = last
        for text in [*filters.split(","), "scale=flags=area+accurate_rnd+full_chroma_int", "format=rgb24"]:
            name, _, arguments = text.partition("=")
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        last.link_to(graph.add("buffersink"))
        graph.configure()
        found: list[np.ndarray] = []
        for picture in [*pictures, None]:
            source.push(picture)
            while True:
                try:
                    found.append(graph.vpull().to_ndarray())
                except (av.error.EOFError, av.error.BlockingIOError):
                    break
        return found


def set_display_matrix(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Write a display matrix (a, b, c, d) into the track header of an MP4: [a b u, c d v, x y w]."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 16
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def numbered(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Plain grey frames, each of another shade: `number_of` says which."""
    return [np.full((height, width, 3), 20 + 3 * index, np.uint8) for index in range(count)]


def number_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 20) / 3)
