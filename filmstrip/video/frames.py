"""Converts decoded frames for display: RGB (BT.709), upright, with square pixels, over black."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from filmstrip.wire import Frame

_SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_MAX_SHOWN_SIDE = 16_384

# FFmpeg's numbers in its colour enumerations.
_UNSPECIFIED = 2
_PQ, _HLG = 16, 18
_BT709, _SMPTE432 = 1, 12
_UNKNOWN_HDR_MATRICES = {10: "BT.2020 constant luminance", 14: "ICtCp", 15: "IPT"}
_DOLBY_VISION_ONLY = {"dvh1", "dvhe", "dav1", "dva1", "dvav"}

_REFERENCE_WHITE_NITS = 203  # of HDR: ITU-R BT.2408
_HLG_PEAK_NITS = 1000
_KNEE = 0.85  # linear light up to here is exact
_SDR_GAMMA = 2.4  # ITU-R BT.1886
_BANDS = 64  # rows tone-mapped at once, so that no copy of the whole frame in float32 is needed


class Alpha(Enum):
    """What the alpha of a file's frames means."""

    STRAIGHT = auto()
    IGNORED = auto()
    UNSURE = auto()
    """Ignored in a frame where it is 0 everywhere."""


class FrameNotSupported(Exception):
    """The frames cannot be shown as their file means them; the message says why."""


class FrameConverter:
    """Converts decoded frames to uint8 [H, W, 3] in RGB, all of one size.

    Args:
        pixel_aspect: width of a pixel divided by its height.
        size: (height, width) to scale to; None is the displayed size of the first frame.
        codec_tag: the codec tag that the container gives the stream.
        alpha: what the alpha of the frames means.
    """

    def __init__(
        self, pixel_aspect: Fraction, size: tuple[int, int] | None, codec_tag: str, alpha: Alpha = Alpha.STRAIGHT
    ) -> None:
        self._alpha = alpha
        self._pixel_aspect = pixel_aspect
        self._size = size
        self._codec_tag = codec_tag
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame) -> Frame:
        """Convert one frame.

        Raises:
            FrameNotSupported: its colours or its size cannot be converted.
        """
        orientation = _orientation(frame)
        if self._size is None:
            self._size = self._shown_size(frame, orientation)
        height, width = reversed(self._size) if orientation.turned else self._size
        transfer = self._hdr_transfer(frame)
        if transfer is not None:
            picture = self._tone_mapped(frame, height, width, transfer)
        elif _has_alpha(frame) and self._alpha is not Alpha.IGNORED:
            # Composited before scaling: the colour of invisible pixels must not bleed into their neighbours.
            rgba = self._reformatted(frame, frame.height, frame.width, "rgba")
            is_opaque = self._alpha is Alpha.UNSURE and not rgba[..., 3].any()
            picture = np.ascontiguousarray(rgba[..., :3]) if is_opaque else _over_black(rgba)
            picture = self._reformatted(av.VideoFrame.from_ndarray(picture, format="rgb24"), height, width, "rgb24")
        else:
            picture = self._reformatted(frame, height, width, "rgb24")
        return np.ascontiguousarray(orientation.apply(picture), np.uint8)

    def _shown_size(self, frame: av.VideoFrame, orientation: "_Orientation") -> tuple[int, int]:
        height, width = frame.height, max(1, round(frame.width * self._pixel_aspect))
        if max(height, width) > _MAX_SHOWN_SIDE:
            raise FrameNotSupported(
                f"its pixels are {float(self._pixel_aspect):g} times as wide as high, which would make it "
                f"{width}x{height}; at most {_MAX_SHOWN_SIDE} are supported"
            )
        return (width, height) if orientation.turned else (height, width)

    def _reformatted(
        self, frame: av.VideoFrame, height: int, width: int, pixel_format: str, colorspace: Colorspace | None = None
    ) -> NDArray[Any]:
        picture = self._reformatter.reformat(
            frame, width, height, pixel_format, src_colorspace=colorspace, interpolation=_SCALING
        )
        return picture.to_ndarray()

    def _hdr_transfer(self, frame: av.VideoFrame) -> int | None:
        transfer = frame.color_trc
        has_dolby_vision = "DOVI_METADATA" in frame.side_data or self._codec_tag in _DOLBY_VISION_ONLY
        if has_dolby_vision and frame.colorspace == _UNSPECIFIED and transfer in (_UNSPECIFIED, _PQ):
            raise FrameNotSupported("it is HDR in Dolby Vision without a base that other players show (profile 5)")
        if transfer not in (_PQ, _HLG):
            return None
        if frame.colorspace in _UNKNOWN_HDR_MATRICES:
            name = "PQ" if transfer == _PQ else "HLG"
            raise FrameNotSupported(f"it is HDR ({name}) in {_UNKNOWN_HDR_MATRICES[frame.colorspace]}, not supported")
        return transfer

    def _tone_mapped(self, frame: av.VideoFrame, height: int, width: int, transfer: int) -> Frame:
        alpha = _has_alpha(frame)
        matrix = Colorspace.BT2020 if frame.colorspace == _UNSPECIFIED else None
        codes = self._reformatted(frame, height, width, "rgba64le" if alpha else "rgb48le", matrix)
        picture = np.empty((height, width, 3), np.uint8)
        tone_map = hdr_to_sdr(transfer, frame.color_primaries, white=65_535 if frame.format.is_rgb else _SWSCALE_WHITE)
        for top in range(0, height, _BANDS):
            picture[top : top + _BANDS] = tone_map(codes[top : top + _BANDS, :, :3])
        if alpha:
            return _over_black(np.dstack([picture, (codes[..., 3] >> 8).astype(np.uint8)]))
        return picture


def _has_alpha(frame: av.VideoFrame) -> bool:
    return bool(frame.format.has_palette or any(component.is_alpha for component in frame.format.components))


def _over_black(rgba: NDArray[np.uint8]) -> Frame:
    """Frames [H, W, 4] with straight alpha, composited over black: [H, W, 3]."""
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 128
    return ((product + (product >> 8)) >> 8).astype(np.uint8)  # the exact quotient by 255, rounded


# -- Orientation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Orientation:
    """How a stored frame is rotated or mirrored for display.

    Attributes:
        turned: height and width are swapped.
        apply: rotates or mirrors [H, W, 3].
    """

    turned: bool
    apply: Callable[[Frame], Frame]


def _orientation(frame: av.VideoFrame) -> _Orientation:
    """The orientation in a frame's display matrix, as in FFmpeg's autorotation: all eight, and any angle."""
    side_data = cast("Mapping[str, Any]", frame.side_data)
    try:
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32).astype(float)
    except KeyError:
        return _Orientation(False, lambda picture: picture)
    a, b, _, c, d, *_ = matrix
    columns = math.hypot(a, c), math.hypot(b, d)
    degrees = round(math.degrees(math.atan2(b / columns[1], a / columns[0]))) % 360 if all(columns) else 0
    match degrees:
        case 89 | 90 | 91:
            return _Orientation(True, _transpose if c > 0 else _turn_clockwise)
        case 179 | 180 | 181:
            down, across = (-1 if d < 0 else 1), (-1 if a < 0 else 1)
            return _Orientation(False, lambda picture: picture[::down, ::across])
        case 269 | 270 | 271:
            return _Orientation(True, _transpose_other_diagonal if c < 0 else _turn_counterclockwise)
        case 0 | 1 | 359:
            down = -1 if d < 0 else 1
            return _Orientation(False, lambda picture: picture[::down])
    return _Orientation(False, lambda picture: _rotate(picture, degrees))


def _transpose(picture: Frame) -> Frame:
    return picture.swapaxes(0, 1)


def _transpose_other_diagonal(picture: Frame) -> Frame:
    return picture[::-1, ::-1].swapaxes(0, 1)


def _turn_clockwise(picture: Frame) -> Frame:
    return np.rot90(picture, -1)


def _turn_counterclockwise(picture: Frame) -> Frame:
    return np.rot90(picture)


def _rotate(picture: Frame, degrees: float) -> Frame:
    """Rotate clockwise about the centre; the size stays, so corners are cut off or black."""
    return np.asarray(Image.fromarray(picture).rotate(-degrees, Image.Resampling.BILINEAR))


# -- HDR -----------------------------------------------------------------------------------------------------

_SWSCALE_WHITE = 65_280
"""White in the 16-bit RGB that swscale makes from YCbCr: 255/256 of the range."""

_TO_BT709 = {
    # Linear light of other primaries, all with white D65, in those of BT.709: ITU-R BT.2087, SMPTE EG 432-1.
    _BT709: np.eye(3, dtype=np.float32),
    _SMPTE432: np.array(
        [[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]], np.float32
    ),
}
_BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_TABLE_SIZE = 65_536
_TABLE_LIGHT = (np.arange(_TABLE_SIZE) / (_TABLE_SIZE - 1)) ** 2
_SDR_CODES = np.round(_TABLE_LIGHT ** (1 / _SDR_GAMMA) * 255).astype(np.uint8)
_HLG_GAIN = (_TABLE_LIGHT**0.2 * _HLG_PEAK_NITS / _REFERENCE_WHITE_NITS).astype(np.float32)
"""Gain of an HLG display by scene luminance: ITU-R BT.2100, table 5, with a gamma of 1.2."""
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)


def hdr_to_sdr(transfer: int, primaries: int, white: int = 65_535) -> Callable[[NDArray[np.uint16]], Frame]:
    """A conversion from HDR to SDR, for codes of non-linear RGB, uint16 [H, W, 3].

    Display light follows ITU-R BT.2100, with HLG on a display of 1000 nit. Reference white, 203 nit,
    becomes 247 of 255; light up to 85 % of it keeps its proportions, and highlights up to 1000 nit share the rest.
    Hue is preserved: the largest of the three primaries decides how much all of them are dimmed.

    Args:
        transfer: FFmpeg's number of PQ (16) or HLG (18).
        primaries: FFmpeg's number of the primaries; unknown ones are taken for BT.2020.
        white: code of a signal of 1.
    """
    signal = np.minimum(np.arange(65_536, dtype=np.float64) / white, 1)
    to_light = (_pq_light(signal) if transfer == _PQ else _hlg_scene_light(signal)).astype(np.float32)
    to_bt709 = _TO_BT709.get(primaries, _BT2020_TO_BT709).T.copy()

    def convert(codes: NDArray[np.uint16]) -> Frame:
        light = to_light[codes]
        if transfer == _HLG:
            light *= _HLG_GAIN[_indices(light @ _BT2020_LUMINANCE)][..., None]
        light = np.maximum(light @ to_bt709, 0)
        brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
        if brightest.max(initial=0) > _KNEE:
            light *= np.where(brightest > _KNEE, _roll_off(brightest) / np.maximum(brightest, _KNEE), 1)[..., None]
        picture: Frame = _SDR_CODES[_indices(light)]
        return picture

    return convert


def _indices(light: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Indices of light, 0 to 1, in the tables; by square root, for more resolution in the dark."""
    return (np.sqrt(light) * np.float32(_TABLE_SIZE - 1) + np.float32(0.5)).astype(np.uint16)


def _pq_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The EOTF of PQ (ITU-R BT.2100, table 4), in units of reference white."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    light: NDArray[np.float64] = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * (
        10_000 / _REFERENCE_WHITE_NITS
    )
    return light


def _hlg_scene_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse OETF of HLG (ITU-R BT.2100, table 5), 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _roll_off(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reinhard's curve above the knee: slope 1 at the knee, and 1 from the peak on."""
    peak = (_HLG_PEAK_NITS / _REFERENCE_WHITE_NITS - _KNEE) / (1 - _KNEE)
    above = np.clip((light - _KNEE) / (1 - _KNEE), 0, peak)
    return _KNEE + (1 - _KNEE) * (above * (1 + above / peak**2) / (1 + above))  # type: ignore[no-any-return]
