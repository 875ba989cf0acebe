"""From encoded bytes to an upright RGB picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64 * 1024**2  # 8192 x 8192; a small file can claim far more and exhaust memory when decoded
BACKGROUND = (255, 255, 255)
# What Pillow's decoders were seen to raise on damaged files; not MemoryError, which is ours to hear of.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, RuntimeError, struct.error, zlib.error)


class UndecodableImage(Exception):
    """A picture that cannot be used; the message is the reason. Whoever knows the row adds it."""


def decode(data: bytes) -> Image.Image:
    """Decode to RGB, upright by its EXIF orientation, transparency composited on white.

    Colour profiles are ignored. 16-bit grey is reduced to 8 bits.

    Raises:
        UndecodableImage: not a picture, truncated, or more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UndecodableImage(f"{width} x {height} pixels, more than {MAX_PIXELS} (decompression bomb)")
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"not a picture in a known format ({len(data)} bytes)") from error
    except Image.DecompressionBombError as error:
        raise UndecodableImage(f"decompression bomb: {error}") from error
    except DAMAGED as error:
        raise UndecodableImage(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    if image.mode.startswith("I"):  # Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
