"""Do the scorers agree that the model became better? Rank correlations, contradictions, proxy against held-out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from t2i_align.evaluation import statistics
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.statistics import Estimate

Score = tuple[str, str]
"""(scorer, dimension)"""

FOLLOWING: tuple[Score, ...] = (("oracle", "semantic"), ("clip_score", "overall"), ("mps:semantics", "overall"))
AESTHETIC: tuple[Score, ...] = (("oracle", "aesthetic"), ("aesthetic", "overall"), ("mps:aesthetic", "overall"))
"""Scores that are about prompt-following or about beauty alone; the first one at hand is used."""


@dataclass(frozen=True)
class Agreement:
    """How the scores' per-prompt gains of one model over the baseline go together.

    Attributes:
        scores: (scorer, dimension) of the rows and columns.
        correlation: Spearman's rank correlation of the per-prompt gains, ``[S, S]``; NaN where a score never changed.
        gains: mean gain of each score in standard deviations of the baseline's per-prompt scores.
        proxy: the score the model was trained on, where it was named.
        contradicted: of the prompts that the proxy says were won, the share that most held-out scores say were lost.
        gap: the proxy's standardised gain minus the mean of the held-out ones, with its interval over prompts.
        following, aesthetics: standardised gains of prompt-following and of beauty, where there are such scores.
    """

    scores: tuple[Score, ...]
    correlation: np.ndarray
    gains: tuple[Estimate, ...]
    proxy: Score | None = None
    contradicted: float | None = None
    gap: Estimate | None = None
    following: Estimate | None = None
    aesthetics: Estimate | None = None


def agreement(evaluation: Evaluation, model: str, proxy: Score | None = None) -> Agreement:
    """Compare the scores' gains of ``model`` over the baseline.

    Args:
        proxy: the score that the model was trained on; held-out are all scores of other scorers, or, where there is one
            scorer only, its other dimensions.
    """
    scores = evaluation.scores.dimensions
    gains = {score: standardised_gain(evaluation, model, score) for score in scores}
    estimates = {score: _mean(evaluation, values) for score, values in gains.items()}
    contradicted, gap = None, None
    held_out = [score for score in scores if proxy is not None and score[0] != proxy[0]] or [
        score for score in scores if proxy is not None and score != proxy
    ]
    if proxy is not None and held_out:
        others = np.stack([gains[score] for score in held_out])
        won = gains[proxy] > 0
        if won.any():
            contradicted = float(((others < 0).mean(axis=0) > 0.5)[won].mean())
        gap = _mean(evaluation, gains[proxy] - np.nanmean(others, axis=0))
    return Agreement(
        scores=scores,
        correlation=np.array([[spearman(gains[a], gains[b]) for b in scores] for a in scores]),
        gains=tuple(estimates.values()),
        proxy=proxy,
        contradicted=contradicted,
        gap=gap,
        following=next((estimates[score] for score in FOLLOWING if score in estimates), None),
        aesthetics=next((estimates[score] for score in AESTHETIC if score in estimates), None),
    )


def standardised_gain(evaluation: Evaluation, model: str, score: Score) -> np.ndarray:
    """Per-prompt mean of ``score(model) - score(baseline)`` in standard deviations of the baseline's prompts: ``[n]``.

    Scales of scorers differ by orders of magnitude; this makes gains comparable. NaN where a prompt has no pair.
    """
    after, before = evaluation.scores.matrix(model, *score), evaluation.scores.matrix(evaluation.baseline, *score)
    spread = float(np.nanstd(before))
    difference = after - before
    counts = (~np.isnan(difference)).sum(axis=1)
    means = np.where(counts > 0, np.nansum(difference, axis=1) / np.maximum(counts, 1), np.nan)
    return means / spread if spread > 0 else means


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation over the entries that both have; NaN where one of them never changes."""
    both = ~(np.isnan(first) | np.isnan(second))
    a, b = rankdata(first[both]), rankdata(second[both])
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _mean(evaluation: Evaluation, values: np.ndarray) -> Estimate:
    return statistics.mean(values, confidence=evaluation.confidence, replicates=evaluation.replicates)
