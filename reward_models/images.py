"""The one decoder of pictures, for training and for scorers: from anywhere, without trusting it.

A picture may be a PIL image, a path, encoded bytes or an array; it becomes upright RGB by the rules of
`reward_models.rgb`. Whatever goes wrong with it (zero bytes, a truncated JPEG, a decompression bomb, an exotic format)
ends in one `RewardModelError`, so that a batch job can count it and go on. Of an animation the first frame is taken.

The official scorers neither turn by EXIF nor composite alpha. `decoding="published"` repeats that: the picture as its
file holds it, in its own mode, with what their pipelines then make of it (see `reward_models.preprocess`).
"""

from __future__ import annotations

import io
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from reward_models.errors import RewardModelError, unknown_name
from reward_models.rgb import colour_key, is_plain, to_rgb

ImageSource: TypeAlias = "Image.Image | np.ndarray | bytes | bytearray | str | PathLike[str]"

SHOWN, PUBLISHED = "shown", "published"
DECODINGS = (SHOWN, PUBLISHED)
# Raster formats only: PIL also opens EPS by running Ghostscript, and rarely used decoders are attack surface.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64 * 1024**2  # 8192 x 8192; a small file can claim far more and exhaust memory when decoded
# A picture 1 pixel high and 50,000 wide would be resized to 224 x 11,200,000 before the centre crop.
MAX_ASPECT = 200

# What Pillow's decoders were seen to raise on damaged files; not MemoryError, which says nothing of the picture.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def decode_image(source: ImageSource, max_pixels: int = MAX_PIXELS, decoding: str = SHOWN) -> Image.Image:
    """Return a fully decoded picture that a scorer can take.

    Args:
        source: PIL image, path, encoded bytes, or uint8 array of shape [H, W], [H, W, 3] or [H, W, 4].
        max_pixels: refuse larger pictures from their header, before any pixel is decoded.
        decoding: `shown`, upright RGB as everybody sees the picture and as training does; or `published`, as the
            official scorers read it.

    Raises:
        RewardModelError: the picture is missing, empty, truncated, too large, too thin, of an unknown format, or of
            numbers without a known white.
    """
    if decoding not in DECODINGS:
        raise unknown_name("decoding", decoding, DECODINGS)
    image, where = _opened(source, max_pixels)
    check_size(image.width, image.height, max_pixels, where.removesuffix(": ") or "image")
    return _decoded(image, where, decoding)


def decode_rgb(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode_image` of a picture of any proportions: what training sees before it resizes and crops.

    Raises:
        RewardModelError: see `decode_image`.
    """
    image, where = _opened(source, max_pixels)
    return _decoded(image, where, SHOWN)


def _opened(source: ImageSource, max_pixels: int) -> tuple[Image.Image, str]:
    """An image whose pixels may be undecoded, and the name of its file, if it has one."""
    if isinstance(source, np.ndarray):
        image, where = _from_array(source), ""
    elif isinstance(source, Image.Image):
        image, where = source, ""
    elif isinstance(source, (bytes, bytearray, str, PathLike)):
        where = "" if isinstance(source, (bytes, bytearray)) else f"{source}: "
        data = bytes(source) if isinstance(source, (bytes, bytearray)) else _read(Path(source))
        image = _from_encoded(data, where)
    else:
        raise RewardModelError(
            "cannot read an image from this object",
            found=type(source).__name__,
            fix="pass a PIL image, a path, encoded bytes or a uint8 array [H, W, 3]",
        )
    _check_pixels(image.width, image.height, max_pixels, where)
    return image, where


def _decoded(image: Image.Image, where: str, decoding: str) -> Image.Image:
    try:
        key = colour_key(image) if decoding == SHOWN else None
        image.load()
        if decoding == PUBLISHED or is_plain(image):
            return image
        return to_rgb(image, key)
    except RewardModelError as error:
        raise RewardModelError(error.what, f"{where}{error.found}", error.fix) from error
    except _DECODER_ERRORS as error:
        raise _damaged(error, where) from error


def check_size(width: int, height: int, max_pixels: int, where: str) -> None:
    """Raise for a picture whose decoding or resizing would need an unreasonable amount of memory."""
    _check_pixels(width, height, max_pixels, f"{where}: ")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RewardModelError(
            "the image is too thin to score",
            found=f"{where}: {width} x {height}, the limit is {MAX_ASPECT}:1",
            fix="crop it first",
        )


def _check_pixels(width: int, height: int, max_pixels: int, where: str) -> None:
    if width < 1 or height < 1:
        raise RewardModelError("the image has no pixels", found=f"{where}{width} x {height}")
    if width * height > max_pixels:
        raise RewardModelError(
            "the image is too large to decode safely (a decompression bomb?)",
            found=f"{where}{width} x {height} = {width * height:,} pixels, the limit is {max_pixels:,}",
            fix="downscale it first",
        )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise RewardModelError(
            "an image array must be uint8 with shape [H, W], [H, W, 3] or [H, W, 4]",
            found=f"{array.dtype} {tuple(array.shape)}",
            fix="for float pixels in [0, 1] use score_tensor, which is differentiable",
        )
    return Image.fromarray(array)


def _from_encoded(data: bytes, where: str) -> Image.Image:
    if not data:
        raise RewardModelError("the image is empty", found=f"{where}0 bytes", fix="write the file again")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RewardModelError(
            "the image is too large to decode safely (a decompression bomb?)",
            found=f"{where}{error}",
            fix="downscale it first",
        ) from error
    except _DECODER_ERRORS as error:
        raise _damaged(error, where) from error


def _damaged(error: Exception, where: str) -> RewardModelError:
    reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return RewardModelError(
        "the image cannot be decoded",
        found=f"{where}{reason}",
        fix=f"the file is damaged or not one of {', '.join(FORMATS)}; write it again or leave it out",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RewardModelError("the image file cannot be read", found=f"{path}: {error.strerror}") from error
