"""Splitting pictures into ground and figure, by contrast alone."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from .colour import rgb_to_lab
from .world import IMAGE_SIZE

FRAME = 2  # pixels at the border that are taken for ground
OUTLIER = 30.0  # distance in RGB from a first fit beyond which a pixel of the frame is not ground
PEAK_PIXELS = 40  # the most conspicuous pixels, about half of the smallest figure
MIN_CONTRAST = 6.0  # colour difference below which nothing is seen


@cache
def _plane() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Basis `[64, 64, 3]` of planes, which pixels are frame `[64, 64]`, and the frame's pseudo-inverse."""
    x = (np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5) / IMAGE_SIZE - 0.5
    basis = np.stack([np.ones((IMAGE_SIZE, IMAGE_SIZE), np.float32), *np.meshgrid(x, x)], axis=-1)
    frame = np.ones((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    return basis, frame, np.linalg.pinv(basis[frame]).astype(np.float32)


def fit_ground(rgb: np.ndarray) -> np.ndarray:
    """The plane through the frame's colours, `[N, 64, 64, 3]`; pixels far from a first fit count as the median."""
    basis, frame, inverse = _plane()
    border = rgb[:, frame]
    fitted = np.einsum("pk,nkc->npc", basis[frame], np.einsum("kp,npc->nkc", inverse, border))
    middle = np.median(border, axis=1, keepdims=True)
    outlier = np.linalg.norm(border - fitted, axis=-1, keepdims=True) > OUTLIER
    steady = np.where(outlier, middle, border)
    plane = np.einsum("kp,npc->nkc", inverse, steady)
    return np.clip(np.einsum("hwk,nkc->nhwc", basis, plane), 0, 255)


def ends(ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour of the ground's brightest corner `[N, 3]`, and how far the darkest corner differs from it `[N]`."""
    corners = ground[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    lightness = corners.sum(axis=-1)
    rows = np.arange(len(ground))
    brightest, darkest = corners[rows, lightness.argmax(axis=1)], corners[rows, lightness.argmin(axis=1)]
    return brightest, np.linalg.norm(rgb_to_lab(brightest) - rgb_to_lab(darkest), axis=-1)


def segment(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split pictures by their contrast with the ground, `[N, 64, 64]`.

    Returns the figure's coverage `[N, 64, 64]` in [0, 1], and per picture the peak contrast, the figure's share of
    the foreground, and the mean contrast of what is neither figure nor near it. The figure is the largest connected
    part of the foreground.
    """
    flat = difference.reshape(len(difference), -1)
    peak = np.partition(flat, -PEAK_PIXELS, axis=1)[:, -PEAK_PIXELS:].mean(axis=1)
    split = [_segment_one(picture, max(0.4 * top, MIN_CONTRAST)) for picture, top in zip(difference, peak, strict=True)]
    figure, share, roughness = (np.array(column, dtype=np.float32) for column in zip(*split, strict=True))
    return figure, peak, share, roughness


def _segment_one(picture: np.ndarray, threshold: float) -> tuple[np.ndarray, float, float]:
    conspicuous = picture[picture > threshold]
    if not len(conspicuous):
        return np.zeros_like(picture), 0.0, float(picture.mean())
    level = np.percentile(conspicuous, 30)  # the contrast of the figure's fainter tone
    foreground = picture > max(0.5 * level, MIN_CONTRAST / 2)
    labels, _ = ndimage.label(foreground)
    sizes = np.bincount(labels.ravel())[1:]
    own = labels == 1 + sizes.argmax()
    near = ndimage.binary_dilation(own, iterations=3)
    figure = np.clip(picture / level, 0, 1) * (near & (own | ~foreground))
    rest = picture[~near]
    return figure, sizes.max() / sizes.sum(), float(rest.mean() if len(rest) else picture.mean())


def bounding_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre `[N, 2]`, half of the longer side `[N]` and distance to the border `[N]` of each mask."""
    edges = []
    for axis in (1, 2):  # columns (x), then rows (y)
        line: np.ndarray = np.any(mask, axis=axis)
        some = np.any(line, axis=1)
        low = np.where(some, line.argmax(axis=1), IMAGE_SIZE // 2)
        high = np.where(some, IMAGE_SIZE - line[:, ::-1].argmax(axis=1), IMAGE_SIZE // 2 + 1)
        edges.append((low, high))
    (left, right), (top, bottom) = edges
    centre = np.stack([(left + right) / 2, (top + bottom) / 2], axis=1).astype(np.float32)
    radius = np.maximum(right - left, bottom - top).astype(np.float32) / 2
    margin = np.min([left, top, IMAGE_SIZE - right, IMAGE_SIZE - bottom], axis=0).astype(np.float32)
    return centre, radius, margin
