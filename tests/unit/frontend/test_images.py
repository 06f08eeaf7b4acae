"""Images: upright RGB whatever they were, small errors for what is no image, and never a bomb."""

import asyncio
import base64
import contextlib
import io
import socket
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
import psutil
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from filmstrip.errors import BadImage, InternalError, InvalidField, UnknownPath
from filmstrip.geometry import MAX_IMAGE_SIDE
from frontend import images
from frontend.image_worker import MAX_PIXELS, MAX_SCANS, Refused, decode, read_data_url
from frontend.images import ImageDecoder, Requester, RequestImage, resolve_image
from frontend.inference import FileSlice
from frontend.settings import Settings
from frontend.store import Kind, Store
from tests.support.recovery import eventually
from tests.support.server import ROOT

FORMATS = ("PNG", "JPEG", "WEBP")
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
FIELD = "chunk_specs[0].first_frame_image"


def encoded(image: PillowImage.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(kind: str = "PNG", **options: object) -> bytes:
    if kind == "WEBP":
        options = {"lossless": True} | options
    return encoded(PillowImage.fromarray(PHOTO), kind, **options)


def pixels(mode: str, values: list[object]) -> PillowImage.Image:
    """An image of one row."""
    image = PillowImage.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)  # type: ignore[arg-type]
    return image


def decoded_row(data: bytes) -> list[list[int]]:
    found = decode(data)
    assert found.shape[0] == 1
    assert found.dtype == np.uint8
    return [[int(value) for value in pixel] for pixel in found[0]]


# -- What comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_images_keep_every_pixel(kind: str) -> None:
    assert np.array_equal(decode(photo(kind)), PHOTO)


def test_a_jpeg_is_about_what_it_was() -> None:
    smooth = np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)
    found = decode(encoded(PillowImage.fromarray(smooth), "JPEG", quality=95))
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - smooth).max() < 12


ORIENTED = {  # EXIF orientation: what turns the stored pixels upright
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def test_images_are_rotated_upright(subtests: pytest.Subtests) -> None:
    for orientation, upright in ORIENTED.items():
        for kind in ("PNG", "WEBP"):
            with subtests.test(orientation=orientation, kind=kind):
                exif = PillowImage.Exif()
                exif[0x0112] = orientation
                found = decode(photo(kind, exif=exif))
                assert np.array_equal(found, upright(PHOTO))


def test_a_photograph_taken_upright_is_upright() -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    assert decode(photo("JPEG", exif=exif)).shape == (9, 6, 3)


def blended(colour: int, alpha: int) -> int:
    return round(colour * alpha / 255)


@given(st.tuples(*(st.integers(0, 255) for _ in range(4))))
def test_transparency_lies_over_black(rgba: tuple[int, ...]) -> None:
    *colours, alpha = rgba
    expected = [blended(colour, alpha) for colour in colours]
    assert decoded_row(encoded(pixels("RGBA", [rgba]))) == [pytest.approx(expected, abs=1)]


def test_transparency_of_every_kind_lies_over_black() -> None:
    assert decoded_row(encoded(pixels("LA", [(200, 255), (200, 0)]))) == [[200] * 3, [0] * 3]
    assert decoded_row(encoded(pixels("L", [10, 200]), transparency=200)) == [[10] * 3, [0] * 3]
    red, green = (255, 0, 0), (0, 255, 0)
    assert decoded_row(encoded(pixels("RGB", [red, green]), transparency=green)) == [[255, 0, 0], [0] * 3]
    webp = encoded(pixels("RGBA", [(*red, 255), (*red, 0)]), "WEBP", lossless=True, exact=True)
    assert decoded_row(webp) == [[255, 0, 0], [0] * 3]
    indexed = pixels("P", [0, 1])
    indexed.putpalette([255, 0, 0, 0, 255, 0])
    assert decoded_row(encoded(indexed)) == [[255, 0, 0], [0, 255, 0]]
    assert decoded_row(encoded(indexed, transparency=b"\xff\x00")) == [[255, 0, 0], [0] * 3]


def test_grey_and_black_and_white_become_rgb() -> None:
    assert decoded_row(encoded(pixels("L", [0, 100, 255]))) == [[0] * 3, [100] * 3, [255] * 3]
    assert decoded_row(encoded(pixels("1", [0, 255]))) == [[0] * 3, [255] * 3]
    assert decode(encoded(PillowImage.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG"))[0, 0] == pytest.approx(
        [255, 0, 0], abs=3
    )


def test_sixteen_bits_of_grey_become_eight() -> None:
    grey = PillowImage.fromarray(np.array([[0, 255, 0x4000, 0x8000, 0xFFFF]], np.uint16))
    found = [pixel[0] for pixel in decoded_row(encoded(grey))]
    assert found == pytest.approx([0, 1, 64, 128, 255], abs=1)


def test_sixteen_bits_of_colour_become_eight() -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x4000, 0x8000, 0xFFFF, 0x00FF, 0xFF00)
    assert decoded_row(png(2, 1, row, depth=16)) == [[0, 64, 128], [255, pytest.approx(0, abs=1), 255]]


def test_the_first_frame_of_an_animation_is_the_image() -> None:
    frames = [PillowImage.new("RGB", (4, 2), colour) for colour in ("red", "lime", "blue")]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10, lossless=True)
        assert PillowImage.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
        assert np.array_equal(decode(data), np.full((2, 4, 3), (255, 0, 0)))


# -- What is refused ----------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">2I5B", width, height, depth, 2, 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_truncated_file_is_refused_unless_all_pixels_are_there(subtests: pytest.Subtests) -> None:
    for kind in FORMATS:
        with subtests.test(kind=kind):
            data = photo(kind)
            whole = decode(data)
            refused = 0
            for length in range(len(data)):
                try:
                    found = decode(data[:length])
                except Refused:
                    refused += 1
                else:  # what was cut off is no pixel: the end mark
                    assert length > 0.9 * len(data) - 16
                    assert np.array_equal(found, whole)
            assert refused > 0.8 * len(data)


@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_file_is_an_image_or_refused_but_no_other_error(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(photo(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Refused):
        assert decode(bytes(damaged)).shape[2] == 3


@given(st.binary(max_size=200))
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 "):
        with pytest.raises(Refused):
            decode(head + data)


def test_other_formats_are_refused(subtests: pytest.Subtests) -> None:
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "PDF", "TGA"):
        with subtests.test(kind=kind), pytest.raises(Refused, match="PNG, JPEG or WebP"):
            decode(photo(kind))


def test_svg_is_refused() -> None:
    with pytest.raises(Refused):
        decode(b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def test_as_many_pixels_as_allowed_are_decoded_and_not_one_more() -> None:
    rows = bytes(3 * 4096 + 1) * 4096
    assert decode(png(4096, 4096, rows)).shape == (4096, 4096, 3)
    for width, height in ((4096, 4097), (MAX_PIXELS + 1, 1), (5000, 4000)):
        with pytest.raises(Refused, match=f"{width}x{height}, over the limit"):
            decode(png(width, height, b""))


def test_a_decompression_bomb_is_refused_unread(subtests: pytest.Subtests) -> None:
    for size in ((65_000, 65_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)):
        with subtests.test(size=size):
            began = time.process_time()
            with pytest.raises(Refused):
                decode(png(*size, bytes(10_000_000)))
            assert time.process_time() - began < 2


# -- Parts of files that hold no pixels --------------------------------------------------------------------


def png_part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_parts(data: bytes, *parts: bytes) -> bytes:
    """A PNG with chunks behind its head."""
    return data[:33] + b"".join(parts) + data[33:]


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments at its start."""
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


BOMB = zlib.compress(bytes(100_000_000), 9)
EXIF_6 = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
XMP_6 = b'<rdf:Description tiff:Orientation="6"/>'
LONG_HEADS = {
    "text that unpacks to 100 MB": with_parts(photo(), png_part(b"zTXt", b"Comment\0\0" + BOMB)),
    "many such texts": with_parts(photo(), *[png_part(b"iTXt", b"c\0\1\0\0\0" + BOMB)] * 100),
    "a profile that unpacks to 100 MB": with_parts(photo(), png_part(b"iCCP", b"icc\0\0" + BOMB)),
    "thousands of profiles that unpack to 2 MB": with_parts(
        photo(), *[png_part(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\n" + b"41" * 2**20, 9))] * 3000
    ),
    "a chunk of 30 MB": with_parts(photo(), png_part(b"prVt", bytes(30_000_000))),
    "EXIF of 30 MB": with_parts(photo(), png_part(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(30_000_000))),
    "a hundred thousand frames": with_parts(
        photo(), png_part(b"acTL", struct.pack(">2I", 60_000, 0)), *[png_part(b"fcTL", bytes(26))] * 60_000
    ),
    "filling of 30 MB": with_segments(photo("JPEG"), b"\xff" * 30_000_000),
    "comments of 30 MB": with_segments(photo("JPEG"), *[segment(0xFE, bytes(60_000))] * 500),
    "a profile of 255 parts": with_segments(
        photo("JPEG"), *[segment(0xE2, b"ICC_PROFILE\0" + bytes([part, 255]) + bytes(60_000)) for part in range(255)]
    ),
    "EXIF with 5,000 entries that are each 60 kB": with_segments(
        photo("JPEG"),
        segment(0xE1, EXIF_6[:14] + struct.pack(">H", 5000) + struct.pack(">HHII", 1, 7, 60_000, 8) * 5000),
    ),
}


def test_metadata_of_any_size_costs_next_to_nothing(subtests: pytest.Subtests) -> None:
    for name, data in LONG_HEADS.items():
        with subtests.test(name):
            began = time.process_time()
            assert decode(data).shape == (6, 9, 3)
            assert time.process_time() - began < 2  # the bombs take many times that where they are unpacked


TOO_MANY = {
    "chunks": with_parts(photo(), *[png_part(b"tEXt", b"a\0b")] * 70_000),
    "pieces of pixels": photo()[:33] + png_part(b"IDAT", b"") * 2_000_000,
    "comments": with_segments(photo("JPEG"), segment(0xFE, b"") * 2_000_000),
    "markers": with_segments(photo("JPEG"), b"\xff\x01" * 10_000_000),
    "frames": photo("WEBP") + (b"ANMF" + bytes(4)) * 2_000_000,
}


def test_a_file_of_millions_of_parts_is_refused_soon(subtests: pytest.Subtests) -> None:
    for name, data in TOO_MANY.items():
        with subtests.test(name):
            began = time.process_time()
            with pytest.raises(Refused):
                decode(data)
            assert time.process_time() - began < 2


def test_metadata_turn_an_image_wherever_they_stand() -> None:
    raw_profile = b"\nexif\n      %d\n%s\n" % (len(EXIF_6), EXIF_6.hex().encode())
    turned = {
        "eXIf": with_parts(photo(), png_part(b"eXIf", EXIF_6[6:])),
        "XMP": with_parts(photo(), png_part(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_6)),
        "ImageMagick": with_parts(photo(), png_part(b"tEXt", b"Raw profile type exif\0" + raw_profile)),
        "ImageMagick, packed": with_parts(
            photo(), png_part(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile))
        ),
        "JPEG": with_segments(photo("JPEG"), segment(0xE1, EXIF_6)),
        "JPEG, XMP": with_segments(photo("JPEG"), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP_6)),
        "WebP, XMP": photo("WEBP", xmp=XMP_6),
    }
    for name, data in turned.items():
        assert decode(data).shape == (9, 6, 3), name
    assert np.array_equal(decode(turned["eXIf"]), np.rot90(PHOTO, -1))


def test_invalid_exif_does_not_rotate_the_image() -> None:
    for exif in (b"", b"MM\0*", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", EXIF_6[6:-12], b"x" * 100):
        assert decode(with_parts(photo(), png_part(b"eXIf", exif))).shape == (6, 9, 3)
        assert decode(with_segments(photo("JPEG"), segment(0xE1, b"Exif\0\0" + exif))).shape == (6, 9, 3)


def many_scans(num_scans: int, side: int = 4096) -> bytes:
    """A progressive JPEG in grey whose scans refine an empty band over and over."""
    data = encoded(PillowImage.new("L", (side, side)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (num_scans - data.count(b"\xff\xda") + 1) + b"\xff\xd9"


def test_a_progressive_jpeg_has_a_limited_number_of_scans() -> None:
    assert decode(many_scans(MAX_SCANS, 64)).shape == (64, 64, 3)
    began = time.process_time()
    with pytest.raises(Refused, match=f"more than {MAX_SCANS} scans"):
        decode(many_scans(10_000))
    assert time.process_time() - began < 1
    colours = encoded(PillowImage.fromarray(PHOTO), "JPEG", progressive=True, subsampling=0)
    assert decode(colours).shape == (6, 9, 3)


def test_a_side_is_limited() -> None:
    for width, height in ((1, MAX_IMAGE_SIDE), (MAX_IMAGE_SIDE, 1)):
        assert decode(png(width, height, bytes(3 * width + 1) * height)).shape == (height, width, 3)
    tall = PillowImage.new("L", (1, MAX_IMAGE_SIDE + 1))
    for data in (encoded(tall), encoded(tall, "JPEG"), png(16_777_216, 1, bytes(16_777_216 * 3 + 1))):
        with pytest.raises(Refused, match=f"limit of {MAX_IMAGE_SIDE} pixels per side"):
            decode(data)


# -- What a request names -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(Settings(data_dir=tmp_path / "data"))
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
async def decoder() -> AsyncIterator[ImageDecoder]:
    started = ImageDecoder()
    yield started
    await started.close()
    assert not children()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "image_worker" in " ".join(child.cmdline())]


class Resolver:
    """Resolves images for nobody in particular."""

    def __init__(self, store: Store, decoder: ImageDecoder, folder: Path) -> None:
        self._store = store
        self._decoder = decoder
        self._folder = folder

    async def __call__(self, source: str) -> RequestImage:
        with contextlib.ExitStack() as held_files:
            return await resolve_image(source, FIELD, self._store, self._decoder, Requester(), held_files=held_files)

    async def is_photo(self, image: RequestImage) -> bool:
        """Whether what it writes into a file, behind other bytes, is the photo."""
        path = self._folder / "buffer"
        path.write_bytes(b"x" * (64 + PHOTO.nbytes))
        await image.write(FileSlice(path, None, 64, PHOTO.nbytes))
        return path.read_bytes() == b"x" * 64 + PHOTO.tobytes()


@pytest.fixture
def resolve(store: Store, decoder: ImageDecoder, tmp_path: Path) -> Resolver:
    return Resolver(store, decoder, tmp_path)


async def put(store: Store, kind: Kind, data: bytes) -> str:
    with store.draft(kind) as draft:
        await draft.append(data)
        return draft.commit().name


def data_url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


async def test_an_asset_is_named_by_its_name(store: Store, resolve: Resolver) -> None:
    image = await resolve(await put(store, Kind.ASSET, photo()))
    assert image.shape == (6, 9, 3)
    for _ in range(2):
        assert await resolve.is_photo(image)


async def test_nothing_else_is_an_asset(store: Store, resolve: Resolver, tmp_path: Path) -> None:
    blob = await put(store, Kind.BLOB, photo())
    (tmp_path / "photo.png").write_bytes(photo())
    for name in (blob, str(tmp_path / "photo.png"), f"file://{tmp_path}/photo.png", "../photo.png", "", "asset-"):
        with pytest.raises(UnknownPath) as caught:
            await resolve(name)
        assert caught.value.field == FIELD


async def test_an_asset_that_holds_no_image_is_named(store: Store, resolve: Resolver) -> None:
    with pytest.raises(InvalidField) as caught:
        await resolve(await put(store, Kind.ASSET, b"no image"))
    assert caught.value.field == FIELD
    assert caught.value.message.startswith(f"{FIELD}: ")


async def test_an_image_that_has_changed_since_it_was_checked_is_found_out(store: Store, resolve: Resolver) -> None:
    name = await put(store, Kind.ASSET, photo())
    image = await resolve(name)
    path = store.find(name, Kind.ASSET).path
    for harm, reason in (
        (lambda: path.write_bytes(photo()[:-40]), "not a complete PNG, JPEG or WebP image"),
        (lambda: path.write_bytes(png(1, 1, bytes(4))), "the image has changed since the request was checked"),
        (path.unlink, "cannot read the image: No such file or directory"),
    ):
        harm()
        with pytest.raises(InternalError) as caught:
            await resolve.is_photo(image)
        assert caught.value.message == reason


ENCODED = base64.b64encode(photo()).decode()
URLS = [
    *("data:image/png;base64," + ENCODED, "DATA:IMAGE/PNG;BASE64," + ENCODED, "data:image/vnd.x-y+z;base64," + ENCODED),
    "data:image/png;charset=utf-8;base64," + ENCODED,
    'data:image/png;a=b;c="d";base64,' + ENCODED,
    "data:image/png; charset=utf-8; base64," + ENCODED,
    " \ndata: image/png ;base64," + ENCODED,
    "data:application/octet-stream;base64," + ENCODED,
    "data:image/jpeg;base64," + ENCODED,  # the bytes say what they are
    "data:image/png;base64,\r\n" + "\n".join(textwrap.wrap(ENCODED, 64)) + " \t\f\n",
    "data:image/png;base64," + ENCODED.rstrip("="),
    "data:image/png;base64," + ENCODED.replace("+", "-").replace("/", "_"),
    "data:image/png;base64," + ENCODED.replace("+", "%2B").replace("/", "%2F").replace("=", "%3d"),
    "data:image/png;base64," + ENCODED + "#fragment",
    "data:image/png," + quote_from_bytes(photo()),
    "data:image/png;charset=latin-1," + "".join(f"%{byte:02X}" for byte in photo()),
]


async def test_a_data_url_is_read_as_browsers_do(resolve: Resolver) -> None:
    assert any(sign in ENCODED for sign in "+/")
    for url in URLS:
        image = await resolve(url)
        assert image.shape == (6, 9, 3), url
        assert await resolve.is_photo(image), url


NO_IMAGES = [
    *("data:", "data:,x", "data:image/png,x", "data:image/png;base64", "data:text/plain;base64,AAAA", "data:;base64,"),
    *(data_url(b""), data_url(b"no image"), data_url(photo("GIF")), data_url(png(5000, 4000, b""))),
    *(data_url(photo())[:-60], data_url(photo())[:-100], data_url(photo()) + "\u00e9", data_url(photo()) + "="),
    *(data_url(photo())[:30], "data:image/png;base64," + "-_" * 40, "data:image/" + "x" * 50 + ";base64,AAAA"),
    *(data_url(photo(), f"data:{media_type};base64,") for media_type in ("text/plain", "", "image", "image/a/b")),
    *("data:image/png;base64,%", "data:image/png,%zz%", "data:image/png;base64,A", "data:image/svg+xml,<svg/>"),
    "data:image/png;base64" + "," * 1_000_000,
]


async def test_a_data_url_that_holds_no_image_is_named_and_not_echoed(resolve: Resolver) -> None:
    for url in NO_IMAGES:
        with pytest.raises(InvalidField) as caught:
            await resolve(url)
        assert caught.value.field == FIELD
        assert caught.value.message.startswith(f"{FIELD}: ")
        assert len(caught.value.message) < 200


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_come_through_a_data_url(data: bytes, is_base64: bool) -> None:
    encoded_data = ";base64," + base64.b64encode(data).decode() if is_base64 else "," + quote_from_bytes(data)
    assert read_data_url(f"data:image/png{encoded_data}".encode()) == data


@given(st.text(alphabet="data:imge/pn;bs64,%+-_=\n\0\u00e9", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_data_url_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(read_data_url(f"data:{text}".encode(errors="replace")), bytes)


# -- Processes ----------------------------------------------------------------------------------------------


SLOW = many_scans(MAX_SCANS)


async def test_few_images_are_decoded_at_once_and_clients_take_turns(decoder: ImageDecoder) -> None:
    order: list[str] = []

    async def decode_for(requester: Requester) -> None:
        await decoder.shape(data_url(SLOW), requester)
        assert len(children()) <= 2
        order.append(requester.client)

    greedy = Requester("greedy")
    tasks = [asyncio.create_task(decode_for(greedy)) for _ in range(8)]
    await asyncio.sleep(0)
    await asyncio.gather(*tasks, *(decode_for(Requester(client)) for client in ("alice", "bob")))
    assert {"alice", "bob"} <= set(order[:6])


async def test_an_image_that_nobody_waits_for_is_decoded_no_further(decoder: ImageDecoder) -> None:
    await decoder.shape(data_url(photo()), Requester())
    (process,) = children()
    task = asyncio.create_task(decoder.shape(data_url(SLOW), Requester()))
    while process.cpu_times().user < 0.5:  # noqa: ASYNC110 - it is decoding by then
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not process.is_running()
    assert await decoder.shape(data_url(photo()), Requester()) == (6, 9, 3)


async def test_a_process_that_is_ended_costs_nobody_an_image(decoder: ImageDecoder) -> None:
    for _ in range(3):
        assert await decoder.shape(data_url(photo()), Requester()) == (6, 9, 3)
        (process,) = children()
        process.kill()


async def decode_after_the_death_of_idle_processes() -> None:
    decoder = ImageDecoder()
    small, busy = data_url(photo()), data_url(photo("WEBP"))
    for is_noticed in (False, True):
        await asyncio.gather(decoder.shape(small, Requester()), decoder.shape(busy, Requester()))
        processes = children()
        assert len(processes) == 2
        for process in processes:
            process.kill()
        while is_noticed and any(process.is_running() for process in processes):  # noqa: ASYNC110 - or are zombies
            await asyncio.sleep(0.01)
        assert await decoder.shape(small, Requester()) == (6, 9, 3)
    await decoder.close()
    assert not children()


def test_idle_processes_that_died_cost_nobody_an_image() -> None:
    """On the loop of the server: uvloop knows at once that a pipe is closed, and says so by an error of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(decode_after_the_death_of_idle_processes())


LARGE = png(4096, 4096, bytes(3 * 4096 + 1) * 4096)
LIMITS = {"cpu_s": (0, SLOW, "takes too long"), "memory_bytes": (48 * 2**20, LARGE, "too much memory")}


@pytest.mark.parametrize("limit", LIMITS)
async def test_limits_of_time_and_memory_refuse_an_image(
    decoder: ImageDecoder, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """The worker with one of its limits lowered, so that an image passes it."""
    value, image, refusal = LIMITS[limit]
    monkeypatch.setattr(images, "_LIMITS", replace(images._LIMITS, **{limit: value}))
    for _ in range(2):
        with pytest.raises(BadImage, match=refusal):
            await decoder.shape(data_url(image), Requester())
    assert await decoder.shape(data_url(photo()), Requester()) == (6, 9, 3)


async def test_a_worker_has_a_clean_environment(decoder: ImageDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILMSTRIP_API_KEYS", "alice:secret")
    monkeypatch.setenv("FILMSTRIP_TRITON_SECRET", "secret")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.set_inheritable(True)
        await decoder.shape(data_url(photo()), Requester())
        (process,) = children()
        assert not process.net_connections()
        assert not {name for name in process.environ() if name.startswith("FILMSTRIP_")}
        assert "secret" not in " ".join([*process.environ().values(), *process.cmdline()])


def test_workers_end_with_the_process_that_started_them() -> None:
    program = f"""
import asyncio, os, psutil
from frontend.images import ImageDecoder, Requester
async def main():
    await ImageDecoder().shape({data_url(photo())!r}, Requester())
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    (pid,) = map(int, ended.stdout.split())
    eventually(lambda: not psutil.pid_exists(pid))
