"""Decoding pictures from anywhere without trusting them.

A picture may be a PIL image, a path, encoded bytes or an array. Whatever goes wrong with it (zero bytes, a truncated
JPEG, a decompression bomb, an exotic format) ends in one `RewardModelError`, so that a batch job can count it and go
on. EXIF orientation is not applied and alpha is not composited: none of the official scorers does either, and their
numbers are the contract (see `reward_models.preprocess`).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from reward_models.errors import RewardModelError

ImageSource: TypeAlias = "Image.Image | np.ndarray | bytes | bytearray | str | PathLike[str]"

# Raster formats only: PIL also opens EPS by running Ghostscript, and rarely used decoders are attack surface.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000
# A picture 1 pixel high and 50,000 wide would be resized to 224 x 11,200,000 before the centre crop.
MAX_ASPECT = 200

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


def decode_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a fully decoded PIL image in its own mode (first frame of an animation).

    Args:
        source: PIL image, path, encoded bytes, or uint8 array of shape [H, W], [H, W, 3] or [H, W, 4].
        max_pixels: refuse larger pictures from their header, before any pixel is decoded.

    Raises:
        RewardModelError: the picture is missing, empty, truncated, too large, too thin or of an unknown
            format.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
    elif isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    elif isinstance(source, (bytes, bytearray, str, PathLike)):
        return _from_encoded(source, max_pixels)
    else:
        raise RewardModelError(
            "cannot read an image from this object",
            found=type(source).__name__,
            fix="pass a PIL image, a path, encoded bytes or a uint8 array [H, W, 3]",
        )
    check_size(image.width, image.height, max_pixels, "image")
    return image


def check_size(width: int, height: int, max_pixels: int, where: str) -> None:
    """Raise for a picture whose decoding or resizing would need an unreasonable amount of memory."""
    if width < 1 or height < 1:
        raise RewardModelError("the image has no pixels", found=f"{where}: {width} x {height}")
    if width * height > max_pixels:
        raise RewardModelError(
            "the image is too large to decode safely",
            found=f"{where}: {width} x {height} = {width * height:,} pixels, the limit is {max_pixels:,}",
            fix="downscale it first",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RewardModelError(
            "the image is too thin to score",
            found=f"{where}: {width} x {height}, the limit is {MAX_ASPECT}:1",
            fix="crop it first",
        )


def _from_pil(image: Image.Image, max_pixels: int) -> Image.Image:
    check_size(image.width, image.height, max_pixels, "image")
    try:
        image.load()  # a picture from Image.open is still undecoded
    except _DECODER_ERRORS as error:
        raise RewardModelError("the image cannot be decoded", found=f"{type(error).__name__}: {error}") from error
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise RewardModelError(
            "an image array must be uint8 with shape [H, W], [H, W, 3] or [H, W, 4]",
            found=f"{array.dtype} {tuple(array.shape)}",
            fix="for float pixels in [0, 1] use score_tensor, which is differentiable",
        )
    return Image.fromarray(array)


def _from_encoded(source: bytes | bytearray | str | PathLike[str], max_pixels: int) -> Image.Image:
    where = "encoded bytes" if isinstance(source, (bytes, bytearray)) else str(source)
    data = bytes(source) if isinstance(source, (bytes, bytearray)) else _read(Path(source))
    if not data:
        raise RewardModelError("the image is empty", found=f"{where}: 0 bytes", fix="write the file again")
    try:
        with warnings.catch_warnings():
            # Our own limit below decides about large pictures; PIL's softer warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            check_size(image.width, image.height, max_pixels, where)
            image.load()
    except RewardModelError:
        raise
    except Image.DecompressionBombError as error:
        raise RewardModelError(
            "the image is too large to decode safely", found=f"{where}: {error}", fix="downscale it first"
        ) from error
    except _DECODER_ERRORS as error:
        raise RewardModelError(
            "the image cannot be decoded",
            found=f"{where}: {type(error).__name__}: {error}",
            fix=f"the file is damaged or not one of {', '.join(FORMATS)}; write it again or leave it out",
        ) from error
    return image


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RewardModelError("the image file cannot be read", found=f"{path}: {error.strerror}") from error
