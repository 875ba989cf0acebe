"""How much annotators disagree: Krippendorff's alpha and what lies behind it.

Ratings are a matrix ``[annotators, units]`` with NaN where somebody was not asked. For preferences a unit is a pair
of pictures and a rating the probability that the first is preferred (1, 0.5, 0).

    alpha = 1 - D_o / D_e,
    D_o   = 1 / n           sum_{c,k} o_ck    delta(c, k)^2
    D_e   = 1 / (n (n - 1)) sum_{c,k} n_c n_k delta(c, k)^2

o_ck are coincidences: each unit with m >= 2 ratings adds every ordered pair of them with weight 1 / (m - 1); n_c are
the margins of o and n its total. delta is 0 or 1 (nominal), the difference (interval), or the number of ratings
between the two ranks (ordinal). 1 is full agreement, 0 what chance gives, below 0 systematic disagreement.
(K. Krippendorff, Content Analysis, chapter on reliability.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_models.agreement import Estimate
from reward_models.errors import RewardModelError

Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Disagreement:
    """Result of `disagreement`.

    Attributes:
        alpha: Krippendorff's, with a 95 % interval by resampling units; NaN where nobody's ratings vary.
        units: units with two ratings or more.
        ratings: ratings of those units.
        agreement: share of equal ratings among all pairs of annotators of one unit.
        split_units: share of units on which not all ratings are equal.
        with_others: ``[annotators]`` each one's share of ratings equal to the majority of the others; units whose
            others have no single majority are left out, NaN where none remains.
    """

    alpha: Estimate
    units: int
    ratings: int
    agreement: float
    split_units: float
    with_others: Floats

    def summary(self) -> str:
        """One line."""
        return (
            f"alpha {self.alpha} on {self.units} units with {self.ratings} ratings; two annotators agree on "
            f"{self.agreement:.0%}, {self.split_units:.0%} of the units are disputed"
        )


def ratings_matrix(
    annotators: Sequence[str], units: Sequence[str], values: ArrayLike
) -> tuple[Floats, list[str], list[str]]:
    """Rows (annotator, unit, value) as a matrix ``[annotators, units]``, with the names of both axes.

    Raises:
        RewardModelError: lengths that differ, or two ratings of one unit by one annotator.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(annotators) == len(units) == len(numbers):
        raise RewardModelError(
            "every rating needs an annotator and a unit", f"{len(annotators)}, {len(units)} and {len(numbers)} rows"
        )
    rows, columns = list(dict.fromkeys(annotators)), list(dict.fromkeys(units))
    row, column = {name: i for i, name in enumerate(rows)}, {name: i for i, name in enumerate(columns)}
    matrix = np.full((len(rows), len(columns)), np.nan)
    for annotator, unit, value in zip(annotators, units, numbers, strict=True):
        place = row[annotator], column[unit]
        if not np.isnan(matrix[place]):
            raise RewardModelError(
                "an annotator rated one unit twice", f"{annotator}, {unit}", "keep one of the two, or name two units"
            )
        matrix[place] = value
    return matrix, rows, columns


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal") -> float:
    """Alpha of ratings ``[annotators, units]``; NaN where all ratings are equal (chance explains everything).

    Raises:
        RewardModelError: no unit with two ratings.
    """
    codes, values = _pairable(ratings)
    return _alpha(_coincidences(codes, len(values)).sum(0), values, level)


def disagreement(
    ratings: ArrayLike, level: Level = "nominal", replicates: int = 1000, seed: int = 0, mirrored: bool = False
) -> Disagreement:
    """All statistics of ratings ``[annotators, units]``.

    Args:
        ratings: NaN where missing.
        level: of measurement.
        replicates: of the bootstrap over units.
        seed: of the bootstrap.
        mirrored: which picture of a pair is the first is arbitrary: every unit counts with its ratings r and with
            1 - r, so that alpha does not depend on the sides.

    Raises:
        RewardModelError: no unit with two ratings.
    """
    matrix = np.asarray(ratings, dtype=np.float64)
    codes, values = _pairable(np.hstack([matrix, 1 - matrix]) if mirrored else matrix)
    per_unit = _coincidences(codes, len(values))
    if mirrored:
        units = len(per_unit) // 2
        per_unit, codes = (per_unit[:units] + per_unit[units:]) / 2, codes[:, :units]
    counts = np.random.default_rng(seed).multinomial(
        len(per_unit), np.full(len(per_unit), 1 / len(per_unit)), replicates
    )
    resampled = [_alpha(np.tensordot(count, per_unit, 1), values, level) for count in counts]
    finite = np.array([value for value in resampled if not np.isnan(value)])
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    alpha = _alpha(per_unit.sum(0), values, level)
    held = (codes >= 0).sum(0)
    alike = np.trace(per_unit, axis1=1, axis2=2) * (held - 1)
    return Disagreement(
        Estimate(alpha, float(low), float(high)),
        len(per_unit),
        int(held.sum()),
        float(alike.sum() / (held * (held - 1)).sum()),
        float((alike < held * (held - 1)).mean()),
        _with_others(matrix, codes, len(values)),
    )


def _pairable(ratings: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Codes ``[annotators, units]`` (-1 missing) of the units with two ratings or more, and their values."""
    matrix = np.asarray(ratings, dtype=np.float64)
    if matrix.ndim != 2 or np.isinf(matrix).any():
        raise RewardModelError("ratings must be a matrix of finite numbers or NaN", f"shape {matrix.shape}")
    matrix = matrix[:, (~np.isnan(matrix)).sum(0) >= 2]
    if matrix.shape[1] == 0:
        raise RewardModelError(
            "no unit has two ratings", fix="disagreement needs the same pairs shown to several annotators"
        )
    values, inverse = np.unique(matrix[~np.isnan(matrix)], return_inverse=True)
    codes = np.full(matrix.shape, -1, dtype=np.int64)
    codes[~np.isnan(matrix)] = inverse
    return codes, values


def _coincidences(codes: NDArray[np.int64], values: int) -> Floats:
    """``[units, V, V]``."""
    counts = np.stack([(codes == value).sum(0) for value in range(values)], axis=1).astype(np.float64)
    ordered = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(values)
    ordered[:, diagonal, diagonal] -= counts
    return ordered / (counts.sum(1) - 1)[:, None, None]


def _alpha(coincidences: Floats, values: Floats, level: Level) -> float:
    margins = coincidences.sum(0)
    total = margins.sum()
    distance = _squared_distance(margins, values, level)
    expected = (np.outer(margins, margins) * distance).sum() / (total - 1)
    return float(1 - (coincidences * distance).sum() / expected) if expected > 0 else float("nan")


def _squared_distance(margins: Floats, values: Floats, level: Level) -> Floats:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    # Ordinal: ratings up to the middle of each rank; differences count those between, and half of both ends.
    middle = np.cumsum(margins) - margins / 2
    return (middle[:, None] - middle[None, :]) ** 2


def _with_others(ratings: Floats, codes: NDArray[np.int64], values: int) -> Floats:
    counts = np.stack([(codes == value).sum(0) for value in range(values)])
    shares = np.full(len(ratings), np.nan)
    for row in range(len(codes)):
        asked = np.flatnonzero(codes[row] >= 0)
        others = counts[:, asked].copy()
        others[codes[row, asked], np.arange(len(asked))] -= 1
        best = others.max(0)
        clear = (others == best).sum(0) == 1
        if clear.any():
            shares[row] = (others.argmax(0) == codes[row, asked])[clear].mean()
    return shares
