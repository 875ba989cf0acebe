"""Perceptual colour differences."""

from __future__ import annotations

import numpy as np

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)  # D65
_EPSILON = (6 / 29) ** 3


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 255], `[..., 3]`, to CIE L*a*b* under D65: float32, L* in [0, 100].

    Euclidean distances are the CIE 1976 colour difference; about 2 is just noticeable.
    """
    encoded = np.clip(np.asarray(rgb, dtype=np.float32), 0, 255) / 255.0
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    ratio = linear @ (_TO_XYZ.T / _WHITE).astype(np.float32)
    f = np.where(ratio > _EPSILON, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)
