"""Decodes images in a process of its own, with limits on CPU time and memory: the only place that runs image decoders.

`images.py` runs this module and feeds it. A job is a JSON line on stdin, followed by `num_bytes` bytes of data; the
answer is a JSON line on stdout.

The small parsers below read a file first. They check its dimensions and the number of its parts, and pass only the
parts that hold pixels to Pillow: metadata, of whatever size or form, never reaches it.
"""

import base64
import binascii
import contextlib
import errno
import io
import json
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from stat import S_ISREG
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from filmstrip.geometry import MAX_IMAGE_SIDE

from .workers import Limits, enter_worker, limit_cpu

MAX_PIXELS = 4096 * 4096
MAX_SCANS = 64  # of a progressive JPEG; cameras and encoders write about 10
MAX_MARKERS = 10_000  # of a JPEG, without restart markers
MAX_CHUNKS = 65_536  # of a PNG or WebP
MAX_EXIF_BYTES = 2**20
MAX_PROFILES = 8  # of a PNG, that are searched for EXIF data
READY = b"ready\n"

Pixels = npt.NDArray[np.uint8]


class Refused(ValueError):
    """The source is not an acceptable image; the text is for the client."""


class Parsed(NamedTuple):
    """What a parser found.

    Attributes:
        format: Pillow's name for it.
        width, height: as stored, before the image is rotated.
        orientation: EXIF's, 1 to 8.
        data: a file with only the parts that hold pixels.
    """

    format: str
    width: int
    height: int
    orientation: int
    data: bytes | bytearray


def decode(data: bytes) -> Pixels:
    """Decode a PNG, JPEG or WebP image (of an animation, the first frame) to upright RGB, transparency over black.

    Returns:
        uint8 [H, W, 3].

    Raises:
        Refused: it is none of these, is damaged, or exceeds a limit.
    """
    try:
        parsed = _parse(data)
        _check_size(parsed.width, parsed.height)
        with PillowImage.open(io.BytesIO(parsed.data), formats=(parsed.format,)) as image:
            _check_size(*image.size)
            return _to_rgb(image, parsed.orientation)
    except (Refused, MemoryError):
        raise
    # Pillow's decoders raise almost anything: OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise Refused("not a complete PNG, JPEG or WebP image") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(f"the image is {width}x{height}, over the limit of {MAX_PIXELS} pixels")
    if max(width, height) > MAX_IMAGE_SIDE:
        raise Refused(f"the image is {width}x{height}, over the limit of {MAX_IMAGE_SIDE} pixels per side")


_TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


def _to_rgb(image: PillowImage.Image, orientation: int) -> Pixels:
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        image = PillowImage.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = PillowImage.new("RGBA", clear.size, "black")
        image.alpha_composite(clear)
    image = image.convert("RGB")
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return np.asarray(image)


def _parse(data: bytes) -> Parsed:
    if data.startswith(_PNG_HEAD):
        return _parse_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _parse_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _parse_webp(data)
    raise Refused("not a PNG, JPEG or WebP image")


_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS")
_XMP_NAME = b"XML:com.adobe.xmp\0"
_PROFILE = re.compile(rb"Raw profile type (?:exif|APP1)\0")


def _parse_png(data: bytes) -> Parsed:
    head, image_data = bytearray(_PNG_HEAD), bytearray()
    exif = xmp = b""
    size = (0, 0)
    num_profiles = 0
    for name, start, stop in _png_chunks(data):
        if name in _PNG_PIXELS and not image_data:
            head += data[start - 8 : stop + 4]
            if name == b"IHDR":
                size = struct.unpack_from(">2I", data, start)
                _check_size(*size)
        elif name == b"IDAT":
            image_data += memoryview(data)[start:stop]
        elif name == b"eXIf":
            exif = data[start : min(stop, start + MAX_EXIF_BYTES)]
        elif name == b"iTXt" and data.startswith(_XMP_NAME, start):
            xmp = data[start:stop]
        elif name in (b"tEXt", b"zTXt") and not exif and _PROFILE.match(data, start) and num_profiles < MAX_PROFILES:
            num_profiles += 1  # each may be inflated to megabytes
            exif = _raw_profile(data[start : min(stop, start + MAX_EXIF_BYTES)], compressed=name == b"zTXt")
    head += struct.pack(">I", len(image_data)) + b"IDAT"
    check = struct.pack(">I", zlib.crc32(image_data, zlib.crc32(b"IDAT")))
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return Parsed("PNG", *size, _orientation(exif, xmp), head + image_data + check + end)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, and start and stop of the content, of each chunk."""
    position = len(_PNG_HEAD)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, position)
        yield name, position + 8, min(position + 8 + length, len(data))
        if name == b"IEND":
            return
        position += length + 12
    raise Refused(f"the PNG has more than {MAX_CHUNKS} chunks")


def _raw_profile(text: bytes, *, compressed: bool) -> bytes:
    """EXIF data as ImageMagick writes it into a PNG: in hexadecimal digits."""
    name = _PROFILE.match(text)
    if name is None:
        return b""
    digits = text[name.end() :]
    if compressed:
        with contextlib.suppress(zlib.error):
            digits = zlib.decompressobj().decompress(digits[1:], 2 * MAX_EXIF_BYTES)
    try:
        return bytes.fromhex(b"".join(digits.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a fill byte, nor a stuffed byte, nor a restart marker
_SOI, _EOI, _SOS, _TEM, _APP0, _APP1, _APP14, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC, which lie between SOF0 and SOF15
_EXIF_HEAD, _XMP_HEAD = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def _parse_jpeg(data: bytes) -> Parsed:
    head = bytearray(b"\xff\xd8")
    exif = xmp = b""
    size = (0, 0)
    scans_start = num_scans = 0
    position = stop = 2
    for _ in range(MAX_MARKERS):
        found = _MARKER.search(data, position)
        if found is None:
            stop = len(data)
            break
        marker, start = data[found.end() - 1], found.end()
        if marker == _EOI:
            stop = start
            break
        if marker in (_SOI, _TEM):
            position = start
            continue
        position = start + int.from_bytes(data[start : start + 2], "big")
        if marker == _SOS:
            num_scans += 1
            scans_start = scans_start or found.start()
            if num_scans > MAX_SCANS:
                raise Refused(f"the JPEG has more than {MAX_SCANS} scans")
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack_from(">2H", data, start + 3)
            _check_size(width, height)
            size = (width, height)
        elif marker == _APP1 and data.startswith(_EXIF_HEAD, start + 2) and len(exif) < MAX_EXIF_BYTES:
            exif += data[start + 2 + len(_EXIF_HEAD) : position]
        elif marker == _APP1 and data.startswith(_XMP_HEAD, start + 2):
            xmp = xmp or data[start + 2 : position]
        if not scans_start and (marker in (_APP0, _APP14) or not (_APP0 <= marker <= _APP15 or marker == _COM)):
            head += data[found.start() : position]
    else:
        raise Refused(f"the JPEG has more than {MAX_MARKERS} markers")
    return Parsed("JPEG", *size, _orientation(exif, xmp), head + memoryview(data)[scans_start or stop : stop])


def _parse_webp(data: bytes) -> Parsed:
    exif = xmp = b""
    size = (0, 0)
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if name == b"VP8X":
            width, height = (int.from_bytes(data[start + at : start + at + 3], "little") + 1 for at in (4, 7))
            size = (width, height)
            _check_size(*size)
        elif name == b"EXIF":
            exif = data[start : start + min(length, MAX_EXIF_BYTES)].removeprefix(_EXIF_HEAD)
        elif name == b"XMP ":
            xmp = data[start : start + length]
        position = start + length + length % 2
    else:
        raise Refused(f"the WebP has more than {MAX_CHUNKS} chunks")
    # Without VP8X the size is in the bitstream, at most 14 bits a side; Pillow reports it before it decodes.
    return Parsed("WEBP", *size, _orientation(exif, xmp), data)


_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")
_ORIENTATION_TAG = 0x0112


def _orientation(exif: bytes, xmp: bytes) -> int:
    """The image's orientation by its EXIF data, otherwise by its XMP; 1 if neither has one."""
    exif = exif.removeprefix(_EXIF_HEAD)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    with contextlib.suppress(struct.error):
        if order is not None:
            (offset,) = struct.unpack_from(f"{order}I", exif, 4)
            (num_entries,) = struct.unpack_from(f"{order}H", exif, offset)
            for at in range(offset + 2, offset + 2 + 12 * num_entries, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
                if tag == _ORIENTATION_TAG:
                    return int(value)
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


_CONTROLS = bytes(range(0x21))
_BASE64 = re.compile(rb"; *base64$", re.IGNORECASE)
_TYPE = re.compile(rb"(?:image/[^/]+|application/octet-stream)", re.IGNORECASE)
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_SHOWN_BYTES = 40


def read_data_url(url: bytes) -> bytes:
    """The bytes of a data URL (RFC 2397), read as leniently as browsers do.

    Parameters of the media type and whitespace in base64 are ignored, padding may be missing, and both base64 alphabets
    are accepted. Data without base64 is percent-encoded.

    Raises:
        Refused: it is not a data URL of an image.
    """
    head, comma, body = url.strip(_CONTROLS).partition(b"#")[0].partition(b",")
    if not comma:
        raise Refused("the data URL has no comma")
    head = head[len(b"data:") :].strip(_CONTROLS)
    is_base64 = _BASE64.search(head)
    media_type = (head[: is_base64.start()] if is_base64 else head).partition(b";")[0].strip()
    if not _TYPE.fullmatch(media_type):
        shown = media_type[:_SHOWN_BYTES].decode(errors="replace") or "text/plain (it has no media type)"
        raise Refused(f"the data URL holds {shown}; it must start with data:image/png;base64, or similar")
    if b"%" in body:
        body = _ESCAPED.sub(lambda escaped: _BYTES[int(escaped[1], 16)], body)
    if not is_base64:
        return body
    body = body.translate(_URL_SAFE, b"\t\n\f\r ")
    if len(body) % 4 == 0:
        body = body.removesuffix(b"=").removesuffix(b"=")
    try:
        if body.endswith(b"="):
            raise binascii.Error("too much padding")
        return base64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("the data URL is not valid base64") from None


_BYTES = [bytes([value]) for value in range(256)]


def _serve(jobs: BinaryIO, answer: Callable[[dict[str, Any]], None], limits: Limits) -> None:
    """Do jobs until stdin ends, which happens when the server is gone."""
    for line in jobs:
        job = json.loads(line)
        data = jobs.read(job["num_bytes"])
        limit_cpu(limits)
        try:
            answer({"shape": _do(job, data)})
        except Refused as refusal:
            answer({"refused": str(refusal)})
        except MemoryError:
            answer({"refused": "decoding the image takes too much memory"})
        except OSError as error:
            answer({"refused": f"cannot read the image: {error.strerror or 'unknown error'}"})
        del data


def _do(job: dict[str, Any], data: bytes) -> tuple[int, ...]:
    path = job.get("path")
    if "save" in job:
        _write(np.frombuffer(read_data_url(data), np.uint8), job["save"], 0)
        return ()
    pixels = decode(read_data_url(data) if path is None else _read_file(path))
    if "into" in job:
        if list(pixels.shape) != job["shape"]:
            raise Refused("the image has changed since the request was checked")
        _write(pixels, job["into"], job["offset"])
    return pixels.shape


def _read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def _write(pixels: Pixels, path: str, offset: int) -> None:
    left = np.ascontiguousarray(pixels).data.cast("B")
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while left:
            written = os.pwrite(fd, left, offset)
            left, offset = left[written:], offset + written
    finally:
        os.close(fd)


def main() -> None:
    """Decode images for the process that started this one."""
    PillowImage.MAX_IMAGE_PIXELS = None  # Pillow only warns; we have our own limit
    PillowImage.preinit()
    from PIL import WebPImagePlugin  # noqa: F401, PLC0415

    limits, _ = enter_worker()
    answers = sys.stdout
    sys.stdout = sys.stderr  # keep what libraries print out of the answers

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answers.buffer.write(READY)
    answers.flush()
    _serve(sys.stdin.buffer, answer, limits)


if __name__ == "__main__":
    main()
