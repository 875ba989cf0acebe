"""From scores to what preference objectives read: margins, soft labels, gains of ranked lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_models.errors import RewardModelError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairLabels:
    """Labels of N pairs by one scorer.

    Attributes:
        margin: score_a - score_b in the scorer's units.
        probability_a: sigmoid(preference_scale * margin), a soft label.
        label_a: 1, 0, or 0.5 where the scores are equal.
    """

    margin: Floats
    probability_a: Floats
    label_a: Floats


def label_pairs(scores_a: ArrayLike, scores_b: ArrayLike, preference_scale: float) -> PairLabels:
    """Label pairs by scores [N]; `preference_scale` is the scorer's (Bradley-Terry on its own logits)."""
    margin = np.asarray(scores_a, dtype=np.float64) - np.asarray(scores_b, dtype=np.float64)
    if not np.isfinite(margin).all():
        raise RewardModelError("scores must be finite", found=f"{int((~np.isfinite(margin)).sum())} are not")
    return PairLabels(margin, sigmoid(preference_scale * margin), (np.sign(margin) + 1) / 2)


def mean_probability(labels: Mapping[str, PairLabels], weights: Mapping[str, float] | None = None) -> Floats:
    """Soft label of several scorers: the weighted mean of their probabilities, [N]."""
    weights = dict.fromkeys(labels, 1.0) if weights is None else dict(weights)
    if set(weights) != set(labels) or sum(weights.values()) <= 0:
        raise RewardModelError("give one weight per scorer, not all zero", found=f"{weights} for {sorted(labels)}")
    total = sum(weights.values())
    return np.sum([weights[name] / total * labels[name].probability_a for name in labels], axis=0)


def rank_gains(scores: Sequence[ArrayLike]) -> Floats:
    """RankDPO's phi of k pictures by J judges: wins_i / (J (k - 1)), in [0, 1]; an equal score is half a win.

    Args:
        scores: J rows of k scores of the pictures of one prompt.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise RewardModelError("ranks need finite scores [judges, pictures >= 2]", found=str(table.shape))
    wins = (np.sign(table[:, :, None] - table[:, None, :]) + 1) / 2
    opponents = table.shape[1] - 1
    return (wins.sum(axis=(0, 2)) - 0.5 * len(table)) / (len(table) * opponents)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))
