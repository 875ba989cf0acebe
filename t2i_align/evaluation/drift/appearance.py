"""Colour and detail of single pictures, without any model."""

from __future__ import annotations

import numpy as np
from PIL import Image

MEASURES = ("saturation", "brightness", "contrast", "sharpness", "colourfulness", "clipped")
_LUMA = np.array([0.299, 0.587, 0.114])


def appearance(image: Image.Image) -> dict[str, float]:
    """Colour and detail of a picture; paired differences of these show a drift of style.

    Returns:
        saturation: mean S of HSV, ``(max - min) / max`` of the channels, in [0, 1].
        brightness: mean luma, in [0, 1].
        contrast: standard deviation of the luma.
        sharpness: variance of the luma's Laplacian (four neighbours), in units of 1e-3.
        colourfulness: ``sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)`` with ``rg = R - G`` and
            ``yb = (R + G) / 2 - B`` (Hasler and Suesstrunk, 2003).
        clipped: share of channel values at 0 or 255.
    """
    values = np.asarray(image.convert("RGB"))
    pixels = values.astype(np.float64) / 255.0
    highest, lowest = pixels.max(axis=-1), pixels.min(axis=-1)
    luma = pixels @ _LUMA
    red_green = pixels[..., 0] - pixels[..., 1]
    yellow_blue = (pixels[..., 0] + pixels[..., 1]) / 2 - pixels[..., 2]
    spread = np.sqrt(red_green.var() + yellow_blue.var())
    offset = np.sqrt(red_green.mean() ** 2 + yellow_blue.mean() ** 2)
    return {
        "saturation": float(((highest - lowest) / np.maximum(highest, 1e-6)).mean()),
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "sharpness": 1e3 * float(_laplacian(luma).var()) if min(luma.shape) > 2 else 0.0,
        "colourfulness": float(spread + 0.3 * offset),
        "clipped": float(((values == 0) | (values == 255)).mean()),
    }


def _laplacian(luma: np.ndarray) -> np.ndarray:
    inner = luma[1:-1, 1:-1]
    return luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
