"""Paired statistics for comparing two generators on the same prompts and seeds.

Everything here is a pure function of numpy arrays. The unit of inference is the prompt: several pictures of
one prompt are averaged before anything is resampled, because they are not independent evidence. Scores are
arrays ``[n]`` or ``[n, k]`` (n prompts, k seeds per prompt); NaN marks a picture that could not be scored,
and a pair with a NaN on either side is left out.

Where prompts belong to users, the users are resampled, each with all of their prompts: one person's prompts are no
independent evidence about people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

REPLICATES = 4000
"""Default bootstrap replicates: the Monte Carlo error of a 2.5 % quantile is then a few % of the width."""

_CHUNK = 4_000_000  # numbers drawn at once: bounds memory at about 64 MB


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the point estimate.
        low, high: ends of the interval.
        n: prompts behind it.
        confidence: nominal coverage, e.g. 0.95.
        users: people behind it, who were resampled; None where prompts were.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95
    users: int | None = None

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside the closed interval."""
        return not self.low <= value <= self.high

    @property
    def interval(self) -> list[float]:
        """``[low, high]``, for JSON."""
        return [self.low, self.high]


def per_prompt(values: np.ndarray) -> np.ndarray:
    """Average over the seeds of each prompt, ignoring NaN: ``[n]`` or ``[n, k]`` -> ``[m]`` with m <= n.

    Prompts without any usable value are dropped.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    usable = ~np.isnan(values)
    counts = usable.sum(axis=1)
    sums = np.where(usable, values, 0.0).sum(axis=1)
    return sums[counts > 0] / counts[counts > 0]


def paired_outcomes(scores: np.ndarray, baseline: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """Outcome of every pair: 1 win, 0.5 tie, 0 loss, NaN where either score is missing.

    Args:
        scores, baseline: same shape, paired element by element.
        tolerance: differences up to this size count as ties.

    Raises:
        ValueError: the shapes differ (the scores are then not paired).
    """
    scores, baseline = np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if scores.shape != baseline.shape:
        raise ValueError(f"paired scores must have one shape, got {scores.shape} and {baseline.shape}")
    difference = scores - baseline
    outcomes = 0.5 + 0.5 * np.sign(np.where(np.abs(difference) <= tolerance, 0.0, difference))
    return np.where(np.isnan(difference), np.nan, outcomes)


def usable_users(values: np.ndarray, users: np.ndarray | None) -> np.ndarray | None:
    """``[m]``: the users of the prompts that ``per_prompt`` keeps, as numbers from 0; None where there are none.

    Args:
        values: ``[n]`` or ``[n, k]``.
        users: ``[n]`` labels.
    """
    if users is None:
        return None
    values = np.asarray(values, dtype=np.float64)
    kept = ~np.isnan(values.reshape(len(values), -1)).all(axis=1)
    return np.unique(np.asarray(users)[kept], return_inverse=True)[1]


def bootstrap_means_over_users(
    values: np.ndarray, users: np.ndarray, replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Means of ``values [n]`` when users are drawn with replacement, each with all of their prompts.

    Args:
        users: ``[n]`` numbers from 0, see ``usable_users``.
    """
    sums, counts = np.bincount(users, weights=values), np.bincount(users)
    draws = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=replicates)
    return (draws @ sums) / (draws @ counts)


def bootstrap_means(values: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Means of ``replicates`` samples of n drawn from ``values [n]`` with replacement -> ``[replicates]``.

    The resampled mean depends only on how often each distinct value is drawn, so a few distinct values
    (wins, ties, losses) are drawn as one multinomial; this is the same distribution and hundreds of times
    faster.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("cannot resample no prompts")
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    if 8 * len(distinct) <= n:
        return generator.multinomial(n, counts / n, size=replicates) @ distinct / n
    rows = max(1, _CHUNK // n)
    sizes = [min(rows, replicates - start) for start in range(0, replicates, rows)]
    return np.concatenate([values[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


def mean(
    values: np.ndarray,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
    users: np.ndarray | None = None,
) -> Estimate:
    """Mean over prompts with a percentile bootstrap interval.

    Args:
        values: ``[n]`` or ``[n, k]`` scores; seeds are averaged within the prompt first.
        users: ``[n]`` labels of the people that the prompts belong to; they are resampled then.

    Raises:
        ValueError: no usable value.
    """
    prompts, people = per_prompt(values), usable_users(values, users)
    if len(prompts) == 0:
        raise ValueError("no usable score")
    tail = 50.0 * (1.0 - confidence)
    if people is None:
        resampled = bootstrap_means(prompts, replicates, seed)
    else:
        resampled = bootstrap_means_over_users(prompts, people, replicates, seed)
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    count = None if people is None else int(people.max()) + 1
    return Estimate(float(prompts.mean()), float(low), float(high), len(prompts), confidence, count)


def mean_difference(scores: np.ndarray, baseline: np.ndarray, **options) -> Estimate:
    """Mean paired difference ``scores - baseline`` with interval; options as for ``mean``."""
    return mean(np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64), **options)


def win_rate(
    scores: np.ndarray,
    baseline: np.ndarray,
    *,
    tolerance: float = 0.0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
    users: np.ndarray | None = None,
) -> Estimate:
    """Paired win rate, ties as half, with a bootstrap interval over prompts, or over users where they are given.

    ``W = 1/n sum_i mean_k [ 1(a_ik > b_ik + d) + 1/2 1(|a_ik - b_ik| <= d) ]`` with d = ``tolerance``.

    When every prompt (or every user) has the same outcome the bootstrap has no spread and would claim certainty from
    any number of them; Wilson's interval is used then.

    Raises:
        ValueError: shapes differ, or no pair is usable.
    """
    pairs = paired_outcomes(scores, baseline, tolerance)
    estimate = mean(pairs, confidence=confidence, replicates=replicates, seed=seed, users=users)
    if estimate.low == estimate.high:
        count = estimate.users or estimate.n
        low, high = wilson(estimate.value * count, count, confidence)
        return replace(estimate, low=low, high=high)
    return estimate


def only_value(values: np.ndarray) -> float | None:
    """The value that all usable entries share; None where they differ, or where there is none.

    Differences up to a millionth of the largest are the rounding of a network in float32.
    """
    usable = values[~np.isnan(values)]
    if len(usable) == 0 or float(np.ptp(usable)) > 1e-6 * float(np.abs(usable).max()):
        return None
    return float(usable[0])


def tie_share(scores: np.ndarray, baseline: np.ndarray, tolerance: float = 0.0) -> float:
    """Share of usable pairs that tie."""
    outcomes = paired_outcomes(scores, baseline, tolerance)
    return float((outcomes[~np.isnan(outcomes)] == 0.5).mean())


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Centre ``(p + z^2/2n) / (1 + z^2/n)``, half-width ``z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)``.
    """
    if n <= 0:
        raise ValueError("Wilson's interval needs at least one trial")
    z = _z(confidence)
    p = successes / n
    scale = 1.0 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_flip_p_value(
    differences: np.ndarray, draws: int = 20_000, seed: int = 0, users: np.ndarray | None = None
) -> float:
    """Two-sided randomisation test that per-prompt ``differences [n]`` (or ``[n, k]``) are symmetric about
    zero.

    Under the null the sign of every prompt's difference is a fair coin. For win rates pass ``outcomes -
    0.5``. The observed arrangement counts as one of the draws, so the value is never below ``1 / (draws +
    1)``. With ``users [n]`` the signs of all prompts of a user are one coin.
    """
    prompts, people = per_prompt(differences), usable_users(differences, users)
    if people is not None:
        prompts = np.bincount(people, weights=prompts)
    size = np.abs(prompts)
    observed = abs(float(prompts.sum()))
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(size[size > 0], return_counts=True)
    totals = np.zeros(draws)
    for magnitude, count in zip(distinct, counts, strict=True):  # sum of `count` signs is 2 Binomial - count
        totals += magnitude * (2.0 * generator.binomial(count, 0.5, size=draws) - count)
    extreme = np.count_nonzero(np.abs(totals) >= observed - 1e-9)
    return float((extreme + 1) / (draws + 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the order given: ``max_{j<=i} min(1, (m - j + 1) p_(j))``."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def minimum_detectable_win_rate(n: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """Smallest win rate W > 0.5 that n tie-free prompts separate from 0.5 with the given power.

    Solves ``sqrt(n) (W - 1/2) = z_a / 2 + z_b sqrt(W (1 - W))`` for W; with d = W - 1/2 it is a quadratic
    in d. Ties make the outcomes less variable, so the figure is then on the safe side. Returns 1.0 when
    even a clean sweep could not be told from chance.
    """
    half, z_power = 0.5 * _z(confidence), float(norm.ppf(power))
    leading = n + z_power**2
    discriminant = half * half * n - leading * (half * half - 0.25 * z_power**2)
    difference = (half * math.sqrt(n) + math.sqrt(max(discriminant, 0.0))) / leading
    return min(1.0, 0.5 + difference)


def minimum_detectable_difference(
    differences: np.ndarray, confidence: float = 0.95, power: float = 0.8, users: np.ndarray | None = None
) -> float:
    """Smallest mean paired difference that this many prompts, or users, detect: ``(z_a + z_b) sd / sqrt(n)``.

    Args:
        differences: ``[n]`` or ``[n, k]`` paired differences, from which the standard deviation is taken.
        users: ``[n]`` labels; the means of users are what varies then.
    """
    prompts, people = per_prompt(differences), usable_users(differences, users)
    if people is not None:
        prompts = np.bincount(people, weights=prompts) / np.bincount(people)
    if len(prompts) < 2:
        return math.inf
    return float((_z(confidence) + norm.ppf(power)) * prompts.std(ddof=1) / math.sqrt(len(prompts)))


def _z(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return float(norm.ppf(0.5 + 0.5 * confidence))
