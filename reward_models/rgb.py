"""From any kind of picture to upright RGB of 8 bits, by one rule for each kind.

=====================================  ==========================================================================
kind                                   rule
=====================================  ==========================================================================
orientation in EXIF (or XMP)           applied; a block that cannot be read says nothing
transparency of any form               composited on white: alpha, premultiplied alpha, palette, transparent colour
16 bits per channel                    the high byte, as Pillow itself reads 16-bit colour: 25700 = 0x6464 is 100
integers of 32 bits                    in memory 16-bit values, refused outside [0, 65535]; in a TIFF refused
floating point                         round(255 v) for values in [0, 1]; refused outside, and with NaN
1 bit, grey, palette, CMYK, YCbCr ...  Pillow's conversion; CMYK is R = (255 - C)(255 - K) / 255
colour profiles                        ignored: training pipelines and the scorers' authors never read them
=====================================  ==========================================================================

Pillow's own ``convert("RGB")`` clips 16-bit grey to white and floats to black, drops alpha, and loses the transparent
colour of 16-bit pictures and of grey ones below 8 bits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from reward_models.errors import RewardModelError

BACKGROUND = (255, 255, 255)
# From the value of EXIF's orientation tag to what makes the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A transparent colour in the values that the pixels have: one number, or one per channel.
ColourKey: TypeAlias = "tuple[int, ...] | None"


def is_plain(image: Image.Image) -> bool:
    """Whether the picture is upright, opaque RGB of 8 bits already, and says nothing else of itself."""
    return type(image) is Image.Image and image.mode == "RGB" and not image.info and not image.getexif()


def colour_key(image: Image.Image) -> ColourKey:
    """The transparent colour of a picture that is not loaded yet, in the values its pixels will have.

    Pillow spreads grey of 2 and 4 bits over 8 and keeps the high byte of 16-bit colour, but leaves the transparent
    colour as the file has it. Alpha and palettes are no transparent colour, and 1-bit grey is right already.
    """
    key, raws = image.info.get("transparency"), _raw_modes(image)
    if isinstance(key, tuple) and image.mode == "RGB":
        return tuple(value >> 8 for value in key) if any(raw.endswith(";16B") for raw in raws) else key
    if isinstance(key, int) and image.mode in ("L", "I;16"):
        bits = next((int(raw[2:]) for raw in raws if raw in ("L;2", "L;4")), 8)
        return (key * 255 // (2**bits - 1) if image.mode == "L" else key,)
    return None


def to_rgb(image: Image.Image, key: ColourKey = None) -> Image.Image:
    """Upright RGB by the table of this module, without metadata that could be applied again.

    Args:
        image: loaded.
        key: its `colour_key`.

    Raises:
        RewardModelError: 32-bit integers or floating point numbers whose white is not known.
    """
    turn = UPRIGHT.get(_orientation(image))
    rgb = _on_white(image, key)
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}
    return rgb


def _raw_modes(image: Image.Image) -> list[str]:
    """How the file holds its pixels; nothing for pictures that are loaded or were never in a file."""
    raws: list[Any] = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(raw[0] if isinstance(raw, tuple) and raw else raw) for raw in raws]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:  # EXIF of a hundred makers; Pillow names no set of errors, and pixels are none the worse
        return 1


def _on_white(image: Image.Image, key: ColourKey) -> Image.Image:
    if key is not None:
        return _without_colour(image, key)
    if image.mode == "La":  # Pillow knows only this way out of premultiplied grey
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return _opaque(image)


def _without_colour(image: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """White where the picture has the transparent colour."""
    pixels = np.asarray(image)
    found = (pixels.reshape(*pixels.shape[:2], -1) == key).all(-1)
    rgb = np.array(_opaque(image))
    rgb[found] = BACKGROUND
    return Image.fromarray(rgb)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image))).convert("RGB")
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] of 16-bit grey."""
    values = np.asarray(image, dtype=np.int64)
    low, high = int(values.min()), int(values.max())
    if image.mode == "I" and (image.format == "TIFF" or low < 0 or high > 0xFFFF):
        raise RewardModelError(
            "a picture of 32-bit integers does not say what white is",
            found=f"values from {low} to {high}",
            fix="save it with 8 or 16 bits",
        )
    return (values >> 8).astype(np.uint8)


def _scaled(values: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of floating point grey in [0, 1]."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN compares as false
        raise RewardModelError(
            "a picture of floating point numbers must lie in [0, 1]",
            found="NaN among its values" if np.isnan(low) else f"values from {low:g} to {high:g}",
            fix="scale it, or save it with 8 or 16 bits",
        )
    return np.floor(values.astype(np.float64) * 255 + 0.5).astype(np.uint8)
