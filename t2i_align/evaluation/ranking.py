"""Bradley-Terry strengths of three or more models from their paired scores, with bootstrap intervals.

``P(i beats j) = sigmoid(theta_i - theta_j)``; a tie is half a win for each side. Displayed on the Elo scale
``400 / ln(10) * theta + 1000`` with the baseline anchored at 1000, because only differences are identified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from t2i_align.evaluation.statistics import REPLICATES, Estimate, paired_outcomes

ELO_SCALE = 400.0 / math.log(10.0)
ELO_ANCHOR = 1000.0


def bradley_terry(wins: np.ndarray, pseudo_wins: float = 0.5, iterations: int = 50) -> np.ndarray:
    """Maximum-likelihood strengths, mean zero, by Newton's method.

    Args:
        wins: ``[..., M, M]``; entry (i, j) counts wins of i over j, ties as half. Leading axes are separate
            problems.
        pseudo_wins: wins added on both sides of every pair that was compared; keeps the strength of a model
            that only wins finite.

    Returns:
        ``[..., M]`` natural-log strengths.

    Raises:
        ValueError: the comparisons do not connect all models, so no common scale exists.
    """
    wins = np.asarray(wins, dtype=np.float64)
    compared = (wins + np.swapaxes(wins, -1, -2)) > 0
    _require_connected(compared.reshape(-1, *compared.shape[-2:]).any(axis=0))
    wins = wins + pseudo_wins * compared
    totals = wins + np.swapaxes(wins, -1, -2)
    models = wins.shape[-1]
    theta = np.zeros(wins.shape[:-1])
    for _ in range(iterations):
        chance = 1.0 / (1.0 + np.exp(theta[..., None, :] - theta[..., :, None]))
        gradient = (wins - totals * chance).sum(axis=-1)
        curvature = totals * chance * (1.0 - chance)
        # Laplacian of the comparison graph; adding 1/M everywhere fixes the free constant at mean zero, and
        # the tiny diagonal covers a resample in which some model happens not to be compared at all.
        hessian = np.eye(models) * (curvature.sum(axis=-1)[..., None] + 1e-9) - curvature + 1.0 / models
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        theta = theta + np.clip(step, -2.0, 2.0)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return theta - theta.mean(axis=-1, keepdims=True)


def elo(
    scores: Mapping[str, np.ndarray],
    baseline: str,
    *,
    tolerance: float = 0.0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
    users: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """Elo-scale strengths with percentile bootstrap intervals over prompts, or over users where they are given.

    Args:
        scores: model name -> ``[n, k]`` scores, paired across models; NaN where missing.
        baseline: the model anchored at 1000.
        users: ``[n]`` labels of the people that the prompts belong to.

    Returns:
        name -> Estimate, in the order given; the baseline's interval has no width by construction.
    """
    names = list(scores)
    per_prompt = _wins_per_prompt([np.asarray(scores[name], dtype=np.float64) for name in names], tolerance)
    n = len(per_prompt)
    flat = per_prompt.reshape(n, -1)
    if users is not None:
        _, person = np.unique(users, return_inverse=True)
        flat = np.stack([np.bincount(person, weights=column) for column in flat.T], axis=1)
    units = len(flat)
    draws = np.random.default_rng(seed).multinomial(units, np.full(units, 1.0 / units), size=replicates)
    resampled = (draws @ flat).reshape(replicates, len(names), len(names))
    point = bradley_terry(per_prompt.sum(axis=0))
    spread = bradley_terry(resampled)
    anchor = names.index(baseline)
    point = ELO_ANCHOR + ELO_SCALE * (point - point[anchor])
    spread = ELO_ANCHOR + ELO_SCALE * (spread - spread[:, anchor : anchor + 1])
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(spread, [tail, 100.0 - tail], axis=0)
    return {
        name: Estimate(float(point[i]), float(low[i]), float(high[i]), n, confidence, None if users is None else units)
        for i, name in enumerate(names)
    }


def _wins_per_prompt(scores: list[np.ndarray], tolerance: float) -> np.ndarray:
    """``[n, M, M]``: mean outcome of each ordered pair of models per prompt, 0 where it was not compared."""
    n, models = len(scores[0]), len(scores)
    wins = np.zeros((n, models, models))
    for i, j in combinations(range(models), 2):
        outcomes = paired_outcomes(scores[i], scores[j], tolerance).reshape(n, -1)
        usable = ~np.isnan(outcomes)
        count = np.maximum(usable.sum(axis=1), 1)
        wins[:, i, j] = np.where(usable, outcomes, 0.0).sum(axis=1) / count
        wins[:, j, i] = np.where(usable, 1.0 - outcomes, 0.0).sum(axis=1) / count
    return wins


def _require_connected(compared: np.ndarray) -> None:
    reached, frontier = {0}, [0]
    while frontier:
        for other in np.flatnonzero(compared[frontier.pop()]):
            if int(other) not in reached:
                reached.add(int(other))
                frontier.append(int(other))
    if len(reached) < len(compared):
        missing = sorted(set(range(len(compared))) - reached)
        raise ValueError(f"models {missing} were never compared with the others, directly or indirectly")
