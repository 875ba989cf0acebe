"""How well scorers agree with labels and with each other, with intervals.

Everything works on pairs: `margins[k]` [N] is score_a - score_b of scorer k, `label_a` [N] the label (0.5 = tie).
Statements about one pair: a margin of exactly 0 is a predicted tie. Accuracy with ties gives credit 1 for agreement,
0.5 if exactly one of the two is a tie, 0 otherwise (Pick-a-Pic's rule at threshold 0); untied accuracy leaves
labelled ties out. Kendall's tau-b compares the order of margins. Bootstrap intervals resample groups (prompts), since
pairs of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_models.errors import RewardModelError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Agreement:
    """Result of `agree`.

    Attributes:
        names: scorers, in the order of the matrices.
        pairs, untied_pairs, groups: what it was measured on.
        accuracy: per scorer, with ties as stated above.
        untied_accuracy: per scorer, labelled ties left out.
        tau: per scorer, Kendall's tau-b between margin and label.
        between_accuracy, between_tau: [K, K], scorers against each other.
    """

    names: list[str]
    pairs: int
    untied_pairs: int
    groups: int
    accuracy: dict[str, Estimate]
    untied_accuracy: dict[str, Estimate]
    tau: dict[str, Estimate]
    between_accuracy: Floats
    between_tau: Floats

    def table(self) -> str:
        """Markdown table of the agreement with the labels."""
        head = f"{self.pairs} pairs, {self.untied_pairs} untied, {self.groups} prompts; 95 % bootstrap over prompts\n\n"
        rows = ["| scorer | accuracy (ties half) | accuracy (untied) | Kendall tau-b |", "| --- | --- | --- | --- |"]
        for name in self.names:
            rows.append(f"| {name} | {self.accuracy[name]} | {self.untied_accuracy[name]} | {self.tau[name]} |")
        return head + "\n".join(rows) + "\n"

    def heat_map(self, path: str | Path) -> None:
        """Picture of the scorers' agreement with each other: accuracy and tau side by side."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 + 1.6 * len(self.names), 1.5 + 0.7 * len(self.names)), layout="constrained")
        panels = (
            ("share of pairs ordered alike", self.between_accuracy, 0.0),
            ("Kendall tau-b", self.between_tau, -1.0),
        )
        for number, (title, matrix, low) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, 2, number)
            axes.imshow(matrix, vmin=low, vmax=1.0, cmap="viridis" if low == 0 else "RdBu_r")
            axes.set_title(title)
            axes.set_xticks(range(len(self.names)), self.names, rotation=45, ha="right")
            axes.set_yticks(range(len(self.names)), self.names)
            for row, column in np.ndindex(matrix.shape):
                shade = "black" if (low == 0) == (matrix[row, column] > 0.6) else "white"
                axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color=shade)
        figure.savefig(path, dpi=150)


def agree(
    margins: Mapping[str, ArrayLike],
    label_a: ArrayLike,
    groups: Sequence[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement of scorers with labels and with each other.

    Args:
        margins: score_a - score_b [N] by scorer name, all finite.
        label_a: probability that a is preferred [N]; soft labels count as the side they lean to.
        groups: what to resample, usually the prompt of each pair; None resamples pairs.
        replicates: bootstrap replicates.
        seed: of the bootstrap.
    """
    names = list(margins)
    values = {name: np.asarray(margin, dtype=np.float64) for name, margin in margins.items()}
    sign = np.sign(2 * np.asarray(label_a, dtype=np.float64) - 1)
    for name, margin in values.items():
        if margin.shape != sign.shape or not np.isfinite(margin).all():
            raise RewardModelError(
                "margins must be finite and one per pair", found=f"{name}: {margin.shape} for {sign.shape} labels"
            )
    if not names or len(sign) == 0:
        raise RewardModelError("agreement needs at least one scorer and one pair")
    _, group = np.unique(np.arange(len(sign)) if groups is None else np.asarray(groups), return_inverse=True)
    draws = _draws(int(group.max()) + 1, replicates, seed)
    untied = sign != 0
    credit = {name: _credits(np.sign(margin), sign) for name, margin in values.items()}
    return Agreement(
        names,
        len(sign),
        int(untied.sum()),
        int(group.max()) + 1,
        {name: _mean_estimate(credit[name], group, draws) for name in names},
        {name: _mean_estimate(credit[name][untied], group[untied], draws) for name in names},
        {name: _tau_estimate(values[name], sign, group, draws) for name in names},
        np.array([[_credits(np.sign(values[a]), np.sign(values[b])).mean() for b in names] for a in names]),
        np.array([[_tau(values[a], values[b]) for b in names] for a in names]),
    )


def _credits(first: Floats, second: Floats) -> Floats:
    return np.where(first == second, 1.0, np.where((first == 0) | (second == 0), 0.5, 0.0))


def _draws(groups: int, replicates: int, seed: int) -> NDArray[np.int64]:
    """How often each group is drawn in each replicate, [R, G]."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=replicates)


def _mean_estimate(values: Floats, group: NDArray[np.int64], draws: NDArray[np.int64]) -> Estimate:
    """Mean with its interval: a replicate is a ratio of group sums, so no row is ever copied."""
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    groups = draws.shape[1]
    sums, counts = np.bincount(group, values, groups), np.bincount(group, minlength=groups)
    drawn = draws @ counts
    means = (draws @ sums)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def _tau(first: Floats, second: Floats) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)


def _tau_estimate(margin: Floats, sign: Floats, group: NDArray[np.int64], draws: NDArray[np.int64]) -> Estimate:
    members = [np.flatnonzero(group == number) for number in range(draws.shape[1])]
    taus = []
    for draw in draws:
        rows = np.concatenate([np.tile(members[number], draw[number]) for number in np.flatnonzero(draw)])
        taus.append(_tau(margin[rows], sign[rows]))
    low, high = np.nanquantile(taus, [0.025, 0.975]) if not np.isnan(taus).all() else (np.nan, np.nan)
    return Estimate(_tau(margin, sign), float(low), float(high))


def rank_accuracy(predicted_ranks: ArrayLike, true_ranks: ArrayLike) -> float:
    """HPD v2's ranking accuracy of one prompt: 1 - (pairs ranked strictly the opposite way) / (n (n - 1) / 2).

    Ranks count from 0 = best; equal ranks, predicted or true, are never wrong. Average over prompts.
    """
    predicted, true = np.asarray(predicted_ranks), np.asarray(true_ranks)
    first, second = np.triu_indices(len(true), 1)
    opposite = (predicted[first] - predicted[second]) * (true[first] - true[second]) < 0
    return float(1 - opposite.mean()) if len(first) else float("nan")


def scores_to_ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Ranks from scores, 0 = highest; equal scores share the lowest rank of theirs."""
    values = np.asarray(scores)
    return np.array([(values > value).sum() for value in values], dtype=np.int64)


def strict_pair_accuracy(scores: ArrayLike, true_ranks: ArrayLike) -> tuple[int, int]:
    """ImageReward's test: (right, all) over the pairs whose true ranks differ; equal scores are wrong.

    HPS averages right / all over prompts, MPS adds both up over all prompts first.
    """
    values, true = np.asarray(scores), np.asarray(true_ranks)
    first, second = np.triu_indices(len(true), 1)
    differ = true[first] != true[second]
    right = (values[first] - values[second]) * (true[first] - true[second]) < 0
    return int((right & differ).sum()), int(differ.sum())
