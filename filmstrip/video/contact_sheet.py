"""Contact sheets: a video at a glance, as one PNG of evenly spaced, numbered frames."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from filmstrip.wire import Frame

COLUMNS = 6
ROWS = 4
_GAP = 4
_CAPTION_PIXELS = 16
_PAPER = (24, 24, 24)
_INK = (235, 235, 235)


@dataclass(frozen=True)
class Thumbnail:
    """A small image of a frame, and the frame's index."""

    index: int
    image: Image.Image


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """At most `count` frame indices, evenly spread from the first frame to the last."""
    if min(num_frames, count) < 1:
        raise ValueError(f"cannot pick {count} of {num_frames} frames")
    if count == 1:
        return [0]
    return sorted({round(place * (num_frames - 1) / (count - 1)) for place in range(count)})


def thumbnails(frames: Iterable[Frame], num_frames: int, count: int, width: int = 240) -> list[Thumbnail]:
    """Thumbnails of evenly spaced frames.

    Args:
        frames: uint8 [H, W, 3]; all of them are read, so that a stream is consumed to its end.
        num_frames: number of frames; missing frames at the end are left out.
        count: number of thumbnails.
        width: width of a thumbnail in pixels.

    Raises:
        ValueError: there are no frames.
    """
    picked = set(evenly_spaced(num_frames, count))
    pictures = [thumbnail(frame, index, width) for index, frame in enumerate(frames) if index in picked]
    if not pictures:
        raise ValueError("a contact sheet needs a frame")
    return pictures


def thumbnail(frame: Frame, index: int, width: int = 240) -> Thumbnail:
    """A thumbnail of a frame, uint8 [H, W, 3], `width` pixels wide."""
    image = Image.fromarray(frame)
    height = max(1, round(image.height * width / image.width))
    return Thumbnail(index, image.resize((width, height), Image.Resampling.LANCZOS))


def sheet_rows(thumbnails: Sequence[Thumbnail], columns: int, label: str = "") -> list[tuple[str, Sequence[Thumbnail]]]:
    """Thumbnails as the rows of a sheet, for `write_sheet`."""
    return [(label, thumbnails[start : start + columns]) for start in range(0, len(thumbnails), columns)]


def write_sheet(rows: Sequence[tuple[str, Sequence[Thumbnail]]], path: str | Path) -> None:
    """Draw rows of thumbnails, each with its label and the frame numbers, and write them as a PNG."""
    images = [picture.image for _, row in rows for picture in row]
    width = max(image.width for image in images) + _GAP
    height = max(image.height for image in images) + _GAP + _CAPTION_PIXELS
    columns = max(len(row) for _, row in rows)
    sheet = Image.new("RGB", (columns * width + _GAP, len(rows) * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for down, (label, row) in enumerate(rows):
        for across, picture in enumerate(row):
            left, top = _GAP + across * width, _GAP + down * height
            draw.text((left, top), f"{label} {picture.index}".strip(), _INK, font)
            sheet.paste(picture.image, (left, top + _CAPTION_PIXELS))
    sheet.save(path, "PNG")


def contact_sheet(
    frames: Iterable[Frame],
    num_frames: int,
    path: str | Path,
    *,
    columns: int = COLUMNS,
    rows: int = ROWS,
    width: int = 240,
    label: str = "",
) -> None:
    """Write a contact sheet of a video; only its thumbnails are in memory.

    Args:
        frames: uint8 [H, W, 3].
        num_frames: number of frames.
        path: path of the PNG.
        columns: thumbnails per row.
        rows: most rows.
        width: width of a thumbnail in pixels.
        label: text before each frame number.
    """
    pictures = thumbnails(frames, num_frames, columns * rows, width)
    write_sheet(sheet_rows(pictures, columns, label), path)
