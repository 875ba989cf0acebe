"""Accuracy and calibration of pair probabilities; numpy in, numbers out.

`probability_a` [N] is the predicted probability that a is preferred, `label_a` [N] the label (0.5 = tie).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE_THRESHOLDS = tuple(np.linspace(0, 1, 11).round(1).tolist())


def tie_credits(probability_a: ArrayLike, label_a: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Pick-a-Pic's credit per pair, [N].

    The prediction is a tie if |p_a - p_b| <= threshold. Credit 1 if prediction and label agree, 0.5 if exactly one of
    them is a tie, else 0. Soft labels count as the side they lean to.
    """
    p, label = np.asarray(probability_a, dtype=np.float64), np.asarray(label_a, dtype=np.float64)
    predicted = np.where(np.abs(2 * p - 1) <= threshold, 0.0, np.sign(2 * p - 1))
    actual = np.sign(2 * label - 1)
    return np.where(predicted == actual, 1.0, np.where((predicted == 0) | (actual == 0), 0.5, 0.0))


def tie_accuracy(probability_a: ArrayLike, label_a: ArrayLike, threshold: float) -> float:
    """Mean of `tie_credits`; the paper's 70.5 % is this number with the threshold chosen on validation pairs."""
    credits = tie_credits(probability_a, label_a, threshold)
    return float(credits.mean()) if len(credits) else float("nan")


def best_tie_threshold(
    probability_a: ArrayLike, label_a: ArrayLike, thresholds: Sequence[float] = TIE_THRESHOLDS
) -> float:
    """The threshold with the best `tie_accuracy`, the smallest of equals; choose it on validation pairs only."""
    return max(thresholds, key=lambda threshold: (tie_accuracy(probability_a, label_a, threshold), -threshold))


def untied_accuracy(probability_a: ArrayLike, label_a: ArrayLike) -> float:
    """Share of untied pairs whose preferred side has the larger probability; an exact 0.5 counts half."""
    p, label = np.asarray(probability_a, dtype=np.float64), np.asarray(label_a, dtype=np.float64)
    untied = label != 0.5
    agreement = np.sign(2 * p[untied] - 1) * np.sign(2 * label[untied] - 1)
    return float((agreement + 1).mean() / 2) if untied.any() else float("nan")


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose predicted probability falls into one interval."""

    lower: float
    upper: float
    count: int
    predicted: float
    observed: float


def reliability_curve(probability_a: ArrayLike, label_a: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Predicted against observed preference in equal-width bins of [0, 1]; empty bins are left out.

    Every pair enters twice, as (p, label) and (1 - p, 1 - label): which picture is called a carries no information,
    and the curve becomes symmetric about (0.5, 0.5).
    """
    p, label = np.asarray(probability_a, dtype=np.float64), np.asarray(label_a, dtype=np.float64)
    p, label = np.concatenate([p, 1 - p]), np.concatenate([label, 1 - label])
    index = np.minimum((p * bins).astype(int), bins - 1)
    curve = []
    for bin_index in range(bins):
        inside = index == bin_index
        if inside.any():
            means = float(p[inside].mean()), float(label[inside].mean())
            curve.append(ReliabilityBin(bin_index / bins, (bin_index + 1) / bins, int(inside.sum()), *means))
    return curve


def expected_calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """ECE = sum_k (n_k / n) |observed_k - predicted_k|."""
    total = sum(part.count for part in curve)
    if not total:
        return float("nan")
    return sum(part.count * abs(part.observed - part.predicted) for part in curve) / total


def pair_report(probability_a: ArrayLike, label_a: ArrayLike) -> dict[str, Any]:
    """All of the above as one JSON-ready dictionary; `tie_threshold` is chosen on these very pairs."""
    p, label = np.asarray(probability_a, dtype=np.float64), np.asarray(label_a, dtype=np.float64)
    curve = reliability_curve(p, label)
    threshold = best_tie_threshold(p, label) if len(p) else 0.0
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    log_loss = -(label * np.log(clipped) + (1 - label) * np.log(1 - clipped))
    return {
        "pairs": len(p),
        "untied_pairs": int((label != 0.5).sum()),
        "accuracy": untied_accuracy(p, label),
        "tie_threshold": threshold,
        "tie_accuracy": tie_accuracy(p, label, threshold),
        "log_loss": float(log_loss.mean()) if len(p) else float("nan"),
        "expected_calibration_error": expected_calibration_error(curve),
        "reliability": [asdict(part) for part in curve],
    }
