"""The judge of the shapes world: how well a picture answers its caption, from the pixels, in three dimensions.

semantic
    The mean, over the attributes the caption asks for, of a graded score: 1 where the figure measures as asked, 0
    where it clearly measures as something else. A caption that asks for nothing asks for a figure.
aesthetic
    Contrast of figure and ground, times an even and clean ground, one figure and nothing else, and room between the
    figure and the border.
detail
    Sharpness of the contour against that of an ideal render, times the fit of the outline to an ideal shape.
overall
    0.5 semantic + 0.25 aesthetic + 0.25 detail.

All are in [0, 1], deterministic, and defined for any picture: a uniform one, or noise, scores low.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .measure import Measurements, measure
from .world import POSITIONS, SIZES, VALUES, parse_caption

DIMENSIONS = ("semantic", "aesthetic", "detail")
WEIGHTS = {"semantic": 0.5, "aesthetic": 0.25, "detail": 0.25}

SHAPE_TEMPERATURE = 0.035  # in intersection over union
COLOUR_TEMPERATURE = 4.0  # in colour differences
FULL_CONTRAST = 60.0  # colour difference from which contrast is perfect
IDEAL_EDGE_WIDTH = 0.9  # pixels; ideal renders lie below
BLURRED_EDGE_WIDTH = 2.6  # pixels; nothing sharp is left
FULL_MARGIN = 1.5  # pixels


class Oracle:
    """Scores pictures against captions. Holds no state; a class because every scorer is one."""

    name = "shapes-oracle"
    version = "1"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """Float32 `[N]` in [0, 1] for each of semantic, aesthetic, detail and overall.

        Raises:
            ValueError: `prompts` and `images` differ in length.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images")
        if not images:
            return {name: np.zeros(0, dtype=np.float32) for name in (*DIMENSIONS, "overall")}
        measured = measure(images)
        scores = {
            "semantic": semantic(measured, [parse_caption(prompt) for prompt in prompts]),
            "aesthetic": aesthetic(measured),
            "detail": detail(measured),
        }
        scores["overall"] = np.sum([weight * scores[name] for name, weight in WEIGHTS.items()], axis=0)
        return {name: values.astype(np.float32) for name, values in scores.items()}


def attribute_scores(m: Measurements) -> dict[str, np.ndarray]:
    """For every attribute, how much each of its values is the case: `[N, number of values]` in [0, 1]."""
    seen = presence(m)[:, None]
    positions, sizes = np.array(list(POSITIONS.values())), np.array(list(SIZES.values()))
    offset = np.linalg.norm(m.centre[:, None] - positions[None], axis=-1)
    misfit = np.abs(m.radius[:, None] - sizes[None])
    shape_quality = _ramp(m.shape_iou, 0.55, 0.85)
    varied = _ramp(m.tone_deviation, 0.10, 0.30)
    striped, dotted = m.stripe_energy**2, m.dot_energy**2
    share = striped / np.maximum(striped + dotted, 1e-6)
    pattern = varied * _ramp(np.maximum(m.stripe_energy, m.dot_energy), 0.1, 0.5)
    return {
        "shape": seen * shape_quality * _softmax(m.shape_iou / SHAPE_TEMPERATURE),
        "colour": seen * _bell(m.colour_distance, 6.0, 14.0) * _softmax(-m.colour_distance / COLOUR_TEMPERATURE),
        "size": seen * _bell(misfit, 0.9, 1.6),
        "texture": seen * np.stack([1 - varied, pattern * share, pattern * (1 - share)], axis=1),  # as in TEXTURES
        "position": seen * _bell(offset, 2.5, 4.0),
        "background": _bell(m.background_distance, 4.0, 9.0) * _softmax(-m.background_distance / COLOUR_TEMPERATURE),
    }


def semantic(m: Measurements, asked: Sequence[dict[str, str]]) -> np.ndarray:
    """Mean score `[N]` of the attributes asked of each picture."""
    scores, seen = attribute_scores(m), presence(m)
    result = np.empty(len(asked))
    for i, attributes in enumerate(asked):
        met = [scores[name][i, VALUES[name].index(value)] for name, value in attributes.items()]
        result[i] = np.mean(met) if met else seen[i]
    return result


def presence(m: Measurements) -> np.ndarray:
    """How much there is one coherent figure on a ground, `[N]`."""
    coherent = _ramp(m.shape_iou.max(axis=1), 0.45, 0.7) * _ramp(m.share, 0.3, 0.7)
    return _ramp(m.peak, 8.0, 20.0) * coherent * (1 - _ramp(m.edge_width, 4.0, 6.0))


def aesthetic(m: Measurements) -> np.ndarray:
    """Contrast, ground, tidiness and room, `[N]`."""
    contrast = np.sqrt(_ramp(m.contrast, 0.0, FULL_CONTRAST))
    ground = _bell(m.unevenness, 2.0, 16.0) * _bell(m.roughness, 1.5, 5.0)
    tidy = _ramp(m.share, 0.5, 0.98)
    room = 0.5 + 0.5 * _ramp(m.margin, 0.0, FULL_MARGIN)
    return contrast * ground * tidy * room * presence(m)


def detail(m: Measurements) -> np.ndarray:
    """Sharpness of the contour and fit of the outline, `[N]`."""
    sharp = 1 - _ramp(m.edge_width, IDEAL_EDGE_WIDTH, BLURRED_EDGE_WIDTH)
    fit = _ramp(m.shape_iou.max(axis=1), 0.5, 0.88)
    return sharp * fit * _ramp(m.peak, 8.0, 20.0)


def _ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 from `high`, linear between."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)


def _bell(error: np.ndarray, tolerance: float, width: float) -> np.ndarray:
    """1 up to `tolerance`, then a Gaussian fall of standard deviation `width` / sqrt 2."""
    return np.exp(-((np.maximum(error - tolerance, 0.0) / width) ** 2))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
