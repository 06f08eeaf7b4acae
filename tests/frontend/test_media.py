"""Images: upright RGB whatever they were, small errors for what is no image, and never a bomb."""

import base64
import contextlib
import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from filmstrip.errors import BadImage, InvalidField, UnknownPath
from frontend.media import MAX_IMAGE_PIXELS, decode_image, resolve_image
from frontend.settings import Settings
from frontend.store import Store
from frontend.stored import Kind

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
    found = decode_image(data)
    assert found.shape[0] == 1
    assert found.dtype == np.uint8
    return [[int(value) for value in pixel] for pixel in found[0]]


# -- What comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_images_keep_every_pixel(kind: str, tmp_path: Path) -> None:
    assert np.array_equal(decode_image(photo(kind)), PHOTO)
    path = tmp_path / "asset"
    path.write_bytes(photo(kind))
    assert np.array_equal(decode_image(path), PHOTO)


def test_a_jpeg_is_about_what_it_was() -> None:
    smooth = np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8)
    found = decode_image(encoded(PillowImage.fromarray(smooth), "JPEG", quality=95))
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


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    found = decode_image(photo(kind, exif=exif))
    assert np.array_equal(found, ORIENTED[orientation](PHOTO))


def test_a_photograph_taken_upright_is_upright() -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    assert decode_image(photo("JPEG", exif=exif)).shape == (9, 6, 3)


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
    assert decode_image(encoded(PillowImage.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG"))[0, 0] == pytest.approx(
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
        assert np.array_equal(decode_image(data), np.full((2, 4, 3), (255, 0, 0)))


# -- What is refused ----------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">2I5B", width, height, depth, 2, 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    data = photo(kind)
    whole = decode_image(data)
    refused = 0
    for length in range(len(data)):
        try:
            found = decode_image(data[:length])
        except BadImage:
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
    with contextlib.suppress(BadImage):
        assert decode_image(bytes(damaged)).shape[2] == 3


@given(st.binary(max_size=200))
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 "):
        with pytest.raises(BadImage):
            decode_image(head + data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "PDF", "TGA"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadImage, match="PNG, JPEG or WebP"):
        decode_image(photo(kind))


def test_svg_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for source in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", tmp_path / "nothing", tmp_path):
        with pytest.raises(BadImage) as caught:
            decode_image(source)
        assert str(tmp_path) not in caught.value.message


def test_as_many_pixels_as_allowed_are_decoded_and_not_one_more() -> None:
    rows = bytes(3 * 4096 + 1) * 4096
    assert decode_image(png(4096, 4096, rows)).shape == (4096, 4096, 3)
    for width, height in ((4096, 4097), (MAX_IMAGE_PIXELS + 1, 1), (5000, 4000)):
        with pytest.raises(BadImage, match=f"{width} x {height} pixels"):
            decode_image(png(width, height, b""))


@pytest.mark.parametrize("size", [(65_000, 65_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)])
def test_a_decompression_bomb_is_refused_unread(size: tuple[int, int]) -> None:
    began = time.process_time()
    with pytest.raises(BadImage):
        decode_image(png(*size, bytes(10_000_000)))
    assert time.process_time() - began < 2


# -- What a request names -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(Settings(data_dir=tmp_path / "data"))
    opened.open()
    yield opened
    opened.close()


async def put(store: Store, kind: Kind, data: bytes) -> str:
    with store.draft(kind) as draft:
        await draft.append(data)
        return draft.commit().name


def data_url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


def is_photo(found: npt.NDArray[np.uint8]) -> bool:
    return np.array_equal(found, PHOTO)


async def test_an_asset_is_named_by_its_name(store: Store) -> None:
    image = resolve_image(await put(store, Kind.ASSET, photo()), FIELD, store)
    assert image.shape == (6, 9, 3)
    assert is_photo(image.decode())
    assert is_photo(image.decode())


async def test_nothing_else_is_an_asset(store: Store, tmp_path: Path) -> None:
    blob = await put(store, Kind.BLOB, photo())
    (tmp_path / "photo.png").write_bytes(photo())
    for name in (blob, str(tmp_path / "photo.png"), f"file://{tmp_path}/photo.png", "../photo.png", "", "asset-"):
        with pytest.raises(UnknownPath) as caught:
            resolve_image(name, FIELD, store)
        assert caught.value.field == FIELD


async def test_an_asset_that_holds_no_image_is_named(store: Store) -> None:
    with pytest.raises(InvalidField) as caught:
        resolve_image(await put(store, Kind.ASSET, b"no image"), FIELD, store)
    assert caught.value.field == FIELD
    assert caught.value.message.startswith(f"{FIELD}: ")


@pytest.mark.parametrize(
    "head",
    ["data:image/png;base64,", "data:image/jpeg;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/vnd.x-y+z;base64,"],
)
def test_a_data_url_carries_the_image(store: Store, head: str) -> None:
    image = resolve_image(data_url(photo(), head), FIELD, store)
    assert image.shape == (6, 9, 3)
    assert is_photo(image.decode())


GOOD = data_url(photo())


@pytest.mark.parametrize(
    "source",
    [
        *("data:", "data:,x", "data:image/png,x", "data:image/png;base64", "data:text/plain;base64,AAAA"),
        *(data_url(b""), data_url(b"no image"), data_url(photo("GIF")), data_url(png(5000, 4000, b""))),
        *(
            GOOD[:-1],
            GOOD[:-40],
            GOOD + "\n",
            GOOD.replace("base64,", "base64, "),
            GOOD + "\u00e9",
            GOOD + "=",
            GOOD[:30],
        ),
        *("data:image/png;base64," + "-_" * 40, "data:image/" + "x" * 50 + ";base64,AAAA"),
    ],
    ids=range(18),
)
def test_a_data_url_that_holds_no_image_is_named_and_not_echoed(store: Store, source: str) -> None:
    with pytest.raises(InvalidField) as caught:
        resolve_image(source, FIELD, store)
    assert caught.value.field == FIELD
    assert caught.value.message.startswith(f"{FIELD}: ")
    assert len(caught.value.message) < 200


# -- Side by side -------------------------------------------------------------------------------------------


def opened_for_reading(fifo: Path) -> int:
    """The writing end of a pipe, once someone waits at the other."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_images_decoded_side_by_side_leave_the_filters_of_warnings_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uploads that overlap: the second began before the first ended. Pipes, so that the test says when."""
    monkeypatch.setattr("frontend.media.open_stored", lambda path: os.open(path, os.O_RDONLY))

    def decode(path: Path) -> None:
        with contextlib.suppress(BadImage):
            decode_image(path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = list(warnings.filters)
        running = []
        for name in ("first", "second"):
            os.mkfifo(tmp_path / name)
            thread = threading.Thread(target=decode, args=(tmp_path / name,))
            thread.start()
            running.append((thread, opened_for_reading(tmp_path / name)))
        for thread, fd in running:
            os.close(fd)
            thread.join(5)
        assert list(warnings.filters) == before
