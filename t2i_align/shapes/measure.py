"""Measuring pictures: what is the ground, where is the figure, and what does it look like.

Nothing here knows a caption. All measurements come from pixels, work on any RGB picture, and are graded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from PIL import Image

from .colour import rgb_to_lab
from .render import OUTLINES, RING_HOLE, TEXTURE_PERIOD, figure_mask, second_tone
from .segment import bounding_box, ends, fit_ground, segment
from .world import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES

TEMPLATE_SIZE = 28  # samples per side of a normalised figure
TEMPLATE_EXTENT = 1.15  # half side of the normalised square, in figure radii
TEMPLATE_SCALES = (0.92, 0.96, 1.0, 1.04, 1.08)
DISTANCE_CAP = 60.0  # colour differences beyond this are equally wrong


@dataclass
class Measurements:
    """Of N pictures; lengths in pixels, colour differences in CIE 1976 units.

    Attributes:
        peak: `[N]` contrast of the most conspicuous pixels with the ground.
        contrast: `[N]` mean contrast of the figure with the ground.
        share: `[N]` fraction of the foreground that belongs to the one figure, in [0, 1].
        centre: `[N, 2]` middle of the figure's bounding box (x, y).
        radius: `[N]` half of the bounding box's longer side.
        margin: `[N]` distance of the bounding box from the nearest border.
        shape_iou: `[N, 8]` best soft intersection over union with each ideal shape, in [0, 1].
        edge_width: `[N]` width of the transition at the contour, in pixels; about 0.7 for an ideal render.
        colour_distance: `[N, 8]` mean colour difference to each palette colour, either tone of it.
        tone_deviation: `[N]` standard deviation of the position between the two tones, in [0, about 0.5].
        stripe_energy, dot_energy: `[N]` strength of either texture, about 1 for an ideal render.
        background_distance: `[N, 6]` colour difference of the ground to each background.
        unevenness: `[N]` colour difference between the ground's two ends.
        roughness: `[N]` mean colour difference of the ground from its plane.
    """

    peak: np.ndarray
    contrast: np.ndarray
    share: np.ndarray
    centre: np.ndarray
    radius: np.ndarray
    margin: np.ndarray
    shape_iou: np.ndarray
    edge_width: np.ndarray
    colour_distance: np.ndarray
    tone_deviation: np.ndarray
    stripe_energy: np.ndarray
    dot_energy: np.ndarray
    background_distance: np.ndarray
    unevenness: np.ndarray
    roughness: np.ndarray


def to_array(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of any size and mode as float32 `[N, 64, 64, 3]` in [0, 255]."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    fitted = (image.convert("RGB") for image in images)
    fitted = (image if image.size == size else image.resize(size, Image.Resampling.LANCZOS) for image in fitted)
    return np.stack([np.asarray(image, dtype=np.float32) for image in fitted])


def measure(images: Sequence[Image.Image], chunk: int = 128) -> Measurements:
    """Measure `images`, of which there must be at least one."""
    parts = [_measure(to_array(images[i : i + chunk])) for i in range(0, len(images), chunk)]
    names = [field.name for field in fields(Measurements)]
    return Measurements(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _measure(rgb: np.ndarray) -> Measurements:
    ground = fit_ground(rgb)
    lab, ground_lab = rgb_to_lab(rgb), rgb_to_lab(ground)
    difference = np.linalg.norm(lab - ground_lab, axis=-1)
    figure, peak, share, roughness = segment(difference)
    centre, radius, margin = bounding_box(figure > 0.5)
    iou = _shape_iou(figure, centre, radius)
    interior = _interior(figure)
    count = np.maximum(interior.sum(axis=(1, 2)), 1)
    brightest, unevenness = ends(ground)
    distance, nearest = _colours(lab, brightest, interior, count)
    deviation, stripes, dots = _texture(rgb, brightest, nearest, interior, count, centre)
    return Measurements(
        peak=peak,
        contrast=(difference * interior).sum(axis=(1, 2)) / count,
        share=share,
        centre=centre,
        radius=radius,
        margin=margin,
        shape_iou=iou,
        edge_width=(4 * figure * (1 - figure)).sum(axis=(1, 2)) / (_perimeters()[iou.argmax(axis=1)] * radius),
        colour_distance=distance,
        tone_deviation=deviation,
        stripe_energy=stripes,
        dot_energy=dots,
        background_distance=np.linalg.norm(rgb_to_lab(brightest)[:, None] - _background_lab()[None], axis=-1),
        unevenness=unevenness,
        roughness=roughness,
    )


@cache
def _templates() -> np.ndarray:
    """Ideal shapes in normalised squares, float32 `[8, scales, 28 * 28]`."""
    middle, unit = TEMPLATE_SIZE / 2, TEMPLATE_SIZE / 2 / TEMPLATE_EXTENT
    masks = [
        [figure_mask(shape, (middle, middle), unit * scale, TEMPLATE_SIZE) for scale in TEMPLATE_SCALES]
        for shape in SHAPES
    ]
    return np.array(masks, dtype=np.float32).reshape(len(SHAPES), len(TEMPLATE_SCALES), -1)


def _shape_iou(figure: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Best soft IoU over the template scales, `[N, 8]`."""
    crops = _normalised(figure, centre, radius)
    templates = _templates()
    best = np.zeros((len(figure), len(SHAPES)), dtype=np.float32)
    for s in range(len(SHAPES)):
        for template in templates[s]:
            both = np.minimum(crops, template).sum(axis=1)
            iou = both / (crops.sum(axis=1) + template.sum() - both)
            best[:, s] = np.maximum(best[:, s], iou)
    return best


def _normalised(figure: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Bilinear samples of the square around each figure, `[N, 28 * 28]`; 0 outside the picture."""
    steps = ((np.arange(TEMPLATE_SIZE) + 0.5) / TEMPLATE_SIZE * 2 - 1) * TEMPLATE_EXTENT
    padded = np.pad(figure, ((0, 0), (1, 1), (1, 1)))

    def neighbours(middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.clip(middle[:, None] + steps * radius[:, None] + 0.5, 0, IMAGE_SIZE + 0.99)
        low = at.astype(np.int64)
        return low, (at - low).astype(np.float32)

    (x, fx), (y, fy) = neighbours(centre[:, 0]), neighbours(centre[:, 1])
    rows = np.arange(len(figure))[:, None, None]
    x, fx, y, fy = x[:, None, :], fx[:, None, :], y[:, :, None], fy[:, :, None]
    top = padded[rows, y, x] * (1 - fx) + padded[rows, y, x + 1] * fx
    bottom = padded[rows, y + 1, x] * (1 - fx) + padded[rows, y + 1, x + 1] * fx
    return (top * (1 - fy) + bottom * fy).reshape(len(figure), -1)


@cache
def _perimeters() -> np.ndarray:
    """Contour length of each shape of radius 1, `[8]`."""
    lengths = [np.linalg.norm(np.roll(OUTLINES[s], -1, axis=0) - OUTLINES[s], axis=1).sum() for s in SHAPES]
    lengths[SHAPES.index("ring")] *= 1 + RING_HOLE
    return np.array(lengths, dtype=np.float32)


@cache
def _background_lab() -> np.ndarray:
    return rgb_to_lab(np.array(list(BACKGROUNDS.values())))


def _interior(figure: np.ndarray) -> np.ndarray:
    """Pixels well inside the figure; all that belong to it where it is too thin for that."""
    full = figure > 0.9
    shifted = [np.roll(full, step, axis=axis) for axis in (1, 2) for step in (-1, 1)]
    inside = full & np.logical_and.reduce(shifted)
    thin = inside.sum(axis=(1, 2)) < 12
    return np.where(thin[:, None, None], figure > 0.5, inside)


def _tones(brightest: np.ndarray) -> np.ndarray:
    """Both tones of each palette colour on each ground, RGB `[N, 8, 2, 3]`."""
    first = np.array(list(COLOURS.values()), dtype=np.float32)
    dark, light = ([second_tone(c, ground) for c in COLOURS.values()] for ground in ((0, 0, 0), (255, 255, 255)))
    on_light = (brightest.sum(axis=1) > 3 * 128)[:, None, None]
    second = np.where(on_light, np.array(light)[None], np.array(dark)[None])
    return np.stack([np.broadcast_to(first, second.shape), second], axis=2).astype(np.float32)


def _colours(
    lab: np.ndarray, brightest: np.ndarray, interior: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance of the interior to each palette colour `[N, 8]`, and the index of the nearest `[N]`."""
    tones = rgb_to_lab(_tones(brightest))
    distance = np.empty((len(lab), len(COLOURS)), dtype=np.float32)
    for i in range(len(lab)):
        inside = lab[i][interior[i]]
        to_tones = np.linalg.norm(inside[:, None, None] - tones[i][None], axis=-1)
        distance[i] = np.minimum(to_tones.min(axis=2), DISTANCE_CAP).sum(axis=0) / count[i]
    distance[interior.sum(axis=(1, 2)) == 0] = DISTANCE_CAP
    return distance, distance.argmin(axis=1)


# strength of the fundamental in an ideal render: a symmetric square wave, and discs on a square lattice
_IDEAL_STRIPES = 0.29
_IDEAL_DOTS = 0.165


def _texture(
    rgb: np.ndarray,
    brightest: np.ndarray,
    nearest: np.ndarray,
    interior: np.ndarray,
    count: np.ndarray,
    centre: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variation between the two tones inside the figure, and its Fourier components at the textures' frequencies."""
    pair = _tones(brightest)[np.arange(len(rgb)), nearest]
    axis = pair[:, 1] - pair[:, 0]
    along = np.einsum("nhwc,nc->nhw", rgb - pair[:, 0][:, None, None], axis)
    tone = np.clip(along / (axis**2).sum(axis=1)[:, None, None], -0.2, 1.2)
    mean = (tone * interior).sum(axis=(1, 2)) / count
    wave = (tone - mean[:, None, None]) * interior
    deviation = np.sqrt((wave**2).sum(axis=(1, 2)) / count)
    grid = np.arange(IMAGE_SIZE) + 0.5
    frequency = 2 * math.pi / TEXTURE_PERIOD
    across, down = np.exp(1j * frequency * grid), np.exp(1j * frequency / math.sqrt(2) * grid)
    stripes = np.abs(np.einsum("nhw,h,w->n", wave, down, down)) / count
    horizontal = np.abs(np.einsum("nhw,w->n", wave, across)) / count
    vertical = np.abs(np.einsum("nhw,h->n", wave, across)) / count
    return deviation, stripes / _IDEAL_STRIPES, np.minimum(horizontal, vertical) / _IDEAL_DOTS
