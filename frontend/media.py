"""Images that requests name: uploaded assets and data URLs, decoded with limits."""

import base64
import binascii
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps

from filmstrip.errors import BadImage, InvalidField
from frontend.store import Store
from frontend.stored import Kind, open_stored

MAX_IMAGE_PIXELS = 4096 * 4096
_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def decode_image(source: Path | bytes) -> npt.NDArray[np.uint8]:
    """Decode a PNG, JPEG or WebP image to RGB, upright, transparency over black.

    Shapes:
        [H, W, 3] uint8.

    Raises:
        BadImage: it is none of these, is damaged, or has more than `MAX_IMAGE_PIXELS` pixels.
    """
    try:
        with _open(source) as file, PillowImage.open(file, formats=_FORMATS) as raw:
            if raw.width * raw.height > MAX_IMAGE_PIXELS:
                raise BadImage(f"the image has {raw.width} x {raw.height} pixels, over {MAX_IMAGE_PIXELS} in all")
            upright = ImageOps.exif_transpose(raw)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                upright = PillowImage.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                clear = upright.convert("RGBA")
                upright = PillowImage.new("RGBA", clear.size, "black")
                upright.alpha_composite(clear)
            return np.asarray(upright.convert("RGB"))
    except BadImage:
        raise
    # Pillow's decoders raise whatever they stumble over: OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise BadImage("the body is not a whole PNG, JPEG or WebP image") from error


def _open(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(open_stored(source), "rb")


@dataclass(frozen=True)
class Image:
    """An image of a request; its pixels are decoded when a chunk needs them.

    Attributes:
        shape: [H, W, 3].
        decode: gives the pixels; call it in a thread.
    """

    shape: tuple[int, ...]
    decode: Callable[[], npt.NDArray[np.uint8]]


def resolve_image(source: str, field: str, store: Store, owner: str = "") -> Image:
    """The image that a field of a request names, of those that belong to `owner`; call it in a thread.

    Raises:
        UnknownPath: it names an asset that is not here.
        InvalidField: it is a data URL that holds no image.
    """
    if not source.lower().startswith("data:"):
        path = store.find(source, Kind.ASSET, owner=owner, field=field).path
        return _checked(lambda: decode_image(path), field)
    head = _DATA_URL.match(source)
    if head is None:
        raise InvalidField(f"{field}: a data URL must start with data:image/...;base64,", field)
    try:
        encoded = base64.b64decode(source[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidField(f"{field}: the data URL is not base64", field) from None
    return _checked(lambda: decode_image(encoded), field)


def _checked(decode: Callable[[], npt.NDArray[np.uint8]], field: str) -> Image:
    try:
        return Image(decode().shape, decode)
    except BadImage as error:
        raise InvalidField(f"{field}: {error.message}", field) from None
