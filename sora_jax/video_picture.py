"""From a stored frame to the picture that is shown: upright, in square pixels, RGB."""

import struct

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

MAX_PIXELS = 1 << 28  # in one frame: 16384 x 16384
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_ACCURATE = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND


def displayed(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """Height and width of the picture, where stored pixels are `pixel_aspect` wide and 1 high."""
    height, width = frame.height, max(1, round(frame.width * pixel_aspect))
    return (width, height) if _orientation(frame)[0] else (height, width)


def resized(frame: av.VideoFrame, size: tuple[int, int], scaler: VideoReformatter) -> np.ndarray:
    """The picture at a size (height, width), transparent pixels on black: uint8 [H, W, 3].

    By area averages where it shrinks, cubically where it grows. `scaler` keeps what it prepared for
    frames alike.
    """
    transposed, flip_rows, flip_columns = _orientation(frame)
    height, width = size[::-1] if transposed else size
    smaller = height <= frame.height and width <= frame.width
    kernel = Interpolation.AREA if smaller else Interpolation.BICUBIC
    limited_grey = frame.format.name.startswith("gray") and frame.color_range == ColorRange.MPEG
    if frame.format.has_palette or any(part.is_alpha for part in frame.format.components):
        with_alpha = rgba(frame, scaler)  # at full size, or hidden colours would bleed into edges
        rgb = (with_alpha[..., :3] * with_alpha[..., 3:] + 127) // 255
        frame = av.VideoFrame.from_ndarray(rgb.astype(np.uint8))
    rgb = scaler.reformat(
        frame,
        width,
        height,
        "rgb24",
        src_colorspace=_matrix(frame),
        interpolation=kernel | _ACCURATE,
    ).to_ndarray()
    if limited_grey:  # swscale takes all grey as full range
        rgb = np.clip(np.rint((rgb - 16.0) * (255 / 219)), 0, 255).astype(np.uint8)
    if transposed:
        rgb = rgb.swapaxes(0, 1)
    return rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def rgba(frame: av.VideoFrame, scaler: VideoReformatter) -> np.ndarray:
    """The stored pixels as they lie, with alpha: uint16 [H, W, 4] of 0 to 255."""
    # Without the accurate flags swscale leaves the last column of an odd width undefined.
    options = {"interpolation": Interpolation.BICUBIC | _ACCURATE}
    options["src_colorspace"] = _matrix(frame)
    return scaler.reformat(frame, format="rgba", **options).to_ndarray().astype(np.uint16)


def _matrix(frame: av.VideoFrame) -> Colorspace | None:
    """The YUV matrix where the file names none: as players do, by size. None leaves the named."""
    if frame.format.is_rgb or frame.format.has_palette or frame.colorspace != _UNSPECIFIED:
        return None
    high_definition = frame.width >= 1280 or frame.height > 576
    return Colorspace.ITU709 if high_definition else Colorspace.ITU601


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transposed, then rows flipped, columns flipped): how the stored picture is shown."""
    try:
        stored = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18.1 fails on side data it has no name for, such as the Exif block of a photograph.
        # The angle can still be had; a mirror image, which cameras hardly ever write, cannot.
        quarters = round(frame.rotation / 90) % 4
        return quarters % 2 == 1, quarters in (1, 2), quarters in (2, 3)
    if stored is None:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(stored))
    # The stored point (x, y) is shown at (a x + c y, b x + d y).
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0
