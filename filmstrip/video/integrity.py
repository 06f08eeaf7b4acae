"""Whether a video file is complete; FFmpeg reads a truncated file as if it ended there."""

import os
import re
from collections.abc import Callable, Iterator

import av.container
from av.video import VideoStream

_MICROSECONDS = 1_000_000
_KNOWN_BOXES = {b"mdat", b"moov", b"moof"}
_SEGMENT_ID = b"\x18\x53\x80\x67"
_TS_PACKET_BYTES = (188, 192, 204)
_TS_SYNC = 0x47
_PES_START = re.compile(rb"\x00\x00\x01[\xbb-\xbf\xc0-\xef](..)", re.DOTALL)
_HEADER_BYTES = 1 << 20
_TAIL_BYTES = 4096
_MATROSKA_CODEC = re.compile(rb"V_[A-Z0-9/_]+")
_MP4_CODEC = re.compile(rb"vide.*?stsd.{12}(....)", re.DOTALL)


class FileBytes:
    """Reads from an open file without moving its position."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.size = os.fstat(handle).st_size

    def read(self, start: int, num_bytes: int) -> bytes:
        """`num_bytes` bytes from `start` on; fewer at the end of the file."""
        return os.pread(self._handle, num_bytes, start)


def missing_part(
    file: FileBytes,
    container: av.container.InputContainer,
    stream: VideoStream,
    *,
    end_s: float,
    is_cut: bool,
    num_decoded: int,
) -> str | None:
    """Where a file ends, if it is truncated; None if it is complete or cannot be checked.

    Args:
        file: the file, which has been read to its end.
        container: the file's container.
        stream: its video stream.
        end_s: end of the last packet of any stream.
        is_cut: FFmpeg found the last packet of the video to be incomplete.
        num_decoded: number of decoded frames.
    """
    names = set(container.format.name.split(","))
    if frames := _missing_frames(file, names, stream, num_decoded):
        return frames
    for name, promised_bytes in _PROMISES.items():
        promised = promised_bytes(file) if name in names else None
        if promised is not None and promised > file.size:
            return f"after {file.size} bytes, in a part that goes to {promised}"
    if "mpegts" in names and _breaks_packet(file):
        return f"after {end_s:.1f} seconds, in the middle of a packet"
    if is_cut:
        return f"after {end_s:.1f} seconds"
    if names & {"flv", "matroska"} and container.duration is not None:
        promised_s = container.duration / _MICROSECONDS
        if promised_s - end_s > max(min(1.0, promised_s / 20), 2 / float(stream.average_rate or 25)):
            return f"after {end_s:.1f} of {promised_s:.1f} seconds"
    return None


def _missing_frames(file: FileBytes, names: set[str], stream: VideoStream, num_decoded: int) -> str | None:
    if "mov" in names and (total := len(stream.index_entries)):
        whole = sum(1 for entry in stream.index_entries if entry.pos + entry.size <= file.size)
        if whole < total:
            return f"after {whole} of {total} frames"
    # An AVI may count frames that it drops, so fewer frames mean nothing unless zeros follow.
    if "avi" in names and num_decoded < stream.frames and _ends_in_zeros(file):
        return f"after {num_decoded} of {stream.frames} frames; zeros follow, as in a download that was not finished"
    return None


def unreadable_mp4(file: FileBytes) -> str | None:
    """Why FFmpeg cannot open an MP4 or MOV; None if it is another format, or for another reason."""
    boxes = list(_boxes(file))
    if not boxes or boxes[0][1] not in (b"ftyp", b"mdat", b"wide", b"moov"):
        return None
    start, _, size = boxes[-1]
    if start + size > file.size:
        return f"it breaks off after {file.size} bytes, in a part that goes to {start + size}"
    if b"moov" not in (kind for _, kind, _ in boxes):
        return "it has no index (moov), as when a recording was not finished"
    return None


def codec_name(file: FileBytes, container: av.container.InputContainer) -> str:
    """The codec of the first video stream, as the file names it; else the name of the container."""
    names = container.format.name.split(",")
    head = file.read(0, _HEADER_BYTES)
    if "matroska" in names and (found := _MATROSKA_CODEC.search(head)):
        return found[0].decode()
    if "mov" in names:
        moov = next(
            (file.read(start, min(size, _HEADER_BYTES)) for start, kind, size in _boxes(file) if kind == b"moov"), b""
        )
        if found := _MP4_CODEC.search(moov):
            return found[1].decode("ascii", "backslashreplace")
    return names[0].removesuffix("_pipe")


def _ends_in_zeros(file: FileBytes) -> bool:
    """Whether the end was preallocated and never written."""
    return not any(file.read(max(file.size - _TAIL_BYTES, 0), _TAIL_BYTES))


def _boxes_end(file: FileBytes) -> int | None:
    """Where the last box of an MP4 ends."""
    for start, kind, size in _boxes(file):
        if kind in _KNOWN_BOXES and start + size > file.size:
            return start + size
    return None


def _boxes(file: FileBytes) -> Iterator[tuple[int, bytes, int]]:
    start = 0
    while len(header := file.read(start, 16)) >= 8:
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # to the end of the file, or no box
            return
        yield start, kind, size
        start += size


def _elements_end(file: FileBytes) -> int | None:
    """Where the last element of a Matroska file ends; those of live recordings have no size, but their children do."""
    start = 0
    while len(header := file.read(start, 12)) >= 2 and header[0]:
        id_bytes = 9 - header[0].bit_length()
        size_bytes = 9 - header[id_bytes : id_bytes + 1].ljust(1, b"\1")[0].bit_length()
        if id_bytes > 4 or size_bytes > 8:
            return None
        size = int.from_bytes(header[id_bytes : id_bytes + size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
        start += id_bytes + size_bytes
        has_size = size != (1 << 7 * size_bytes) - 1
        if has_size and header[:id_bytes] == _SEGMENT_ID:
            return start + size
        start += size if has_size else 0
    return start


def _riffs_end(file: FileBytes) -> int | None:
    """Where the last RIFF list of an AVI or WebP ends; large AVIs have several."""
    end = 0
    while (header := file.read(end, 8))[:4] == b"RIFF" and len(header) == 8:
        size = int.from_bytes(header[4:], "little")
        if not size:
            return None
        end += 8 + size
    return end


def _chunks_end(file: FileBytes) -> int | None:
    """Where the chunks of a PNG end; past the end of the file if the last one is missing."""
    start = 8
    while len(header := file.read(start, 8)) == 8:
        start += 12 + int.from_bytes(header[:4], "big")
        if header[4:] == b"IEND":
            return start
    return max(start, file.size + 12)


def _pages_end(file: FileBytes) -> int | None:
    """Where the last page of an Ogg file ends."""
    tail_start = max(0, file.size - 2 * 65_307)  # a page is at most half as long
    tail = file.read(tail_start, file.size)
    start = tail.rfind(b"OggS")
    num_segments = tail[start + 26] if 0 <= start < len(tail) - 27 else None
    if num_segments is None:
        return None
    return tail_start + start + 27 + num_segments + sum(tail[start + 27 : start + 27 + num_segments])


def _asf_end(file: FileBytes) -> int | None:
    """The size in the header of a WMV file."""
    head = file.read(0, 65_536)
    place = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # its "file properties"
    is_broadcast = place < 0 or head[place + 88 : place + 89] != b"\2"
    return None if is_broadcast else int.from_bytes(head[place + 40 : place + 48], "little")


def _gif_end(file: FileBytes) -> int | None:
    """Where the last block of a GIF ends; a missing end marker after a block is accepted, as in browsers."""
    data = file.read(0, file.size)
    place = 13 + _colours_bytes(data[10:11])
    while data[place : place + 1] in (b"!", b","):
        is_image = data[place : place + 1] == b","
        place += 11 + _colours_bytes(data[place + 9 : place + 10]) if is_image else 2
        while (num_bytes := int.from_bytes(data[place : place + 1])) and place < file.size:
            place += 1 + num_bytes
        place += 1
    return place


def _colours_bytes(flags: bytes) -> int:
    """The length of a colour table of a GIF."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _packet_end(file: FileBytes) -> int | None:
    """Where the last packet of an MPEG program stream ends."""
    tail_start = max(0, file.size - 0x20000)
    tail = file.read(tail_start, 0x20000)
    packets = [found.end() + int.from_bytes(found[1], "big") for found in _PES_START.finditer(tail)]
    return tail_start + packets[-1] if packets else None


def _breaks_packet(file: FileBytes) -> bool:
    head = file.read(0, 2 * max(_TS_PACKET_BYTES) + 5)
    for num_bytes in _TS_PACKET_BYTES:
        offset = num_bytes % 188 if num_bytes == 192 else 0  # a time stamp stands before each packet of an M2TS
        if all(len(head) > place and head[place] == _TS_SYNC for place in (offset, offset + num_bytes)):
            return file.size % num_bytes != 0
    return False


_PROMISES: dict[str, Callable[[FileBytes], int | None]] = {
    "mov": _boxes_end,
    "matroska": _elements_end,
    "avi": _riffs_end,
    "webp": _riffs_end,
    "apng": _chunks_end,
    "gif": _gif_end,
    "ogg": _pages_end,
    "mpeg": _packet_end,
    "asf": _asf_end,
}
