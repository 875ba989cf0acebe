"""Accuracy for new users against the number of pairs they answered, beside the pooled head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reward_models.agreement import Estimate
from reward_models.errors import RewardModelError
from reward_models.personal.files import PersonalHead
from reward_models.personal.posterior import UserPosterior, choose_pair
from reward_models.personal.records import PreferencePairs


@dataclass(frozen=True)
class FewShotCurve:
    """Mean over users of the accuracy on their test pairs, with 95 % bootstrap intervals over users.

    Attributes:
        shots: numbers of pairs.
        accuracy: per number of pairs.
        gain: the same minus the pooled head's accuracy, paired by user; empty without a pooled head.
        certainty: mean over users, per number of pairs.
        pooled: accuracy of the pooled head, or None.
        users: how many were measured.
    """

    shots: tuple[int, ...]
    accuracy: tuple[Estimate, ...]
    gain: tuple[Estimate, ...]
    certainty: tuple[float, ...]
    pooled: Estimate | None
    users: int

    def table(self) -> str:
        """Markdown."""
        rows = [f"{self.users} users; pooled head {self.pooled or 'not given'}", ""]
        rows += ["| pairs | accuracy | gain over pooled | certainty |", "| --- | --- | --- | --- |"]
        for number, shots in enumerate(self.shots):
            gain = str(self.gain[number]) if self.gain else "–"
            rows.append(f"| {shots} | {self.accuracy[number]} | {gain} | {self.certainty[number]:.2f} |")
        return "\n".join(rows) + "\n"


def few_shot_curve(
    head: PersonalHead,
    support: Mapping[str, PreferencePairs],
    test: Mapping[str, PreferencePairs],
    shots: Sequence[int] = (0, 1, 2, 4, 8, 16, 32),
    pooled: PersonalHead | None = None,
    active: bool = False,
    seed: int = 0,
) -> FewShotCurve:
    """Fit each user on the first n support pairs and measure on the test pairs.

    Args:
        head: trained on other users.
        support: pairs to learn from, per user, in the order in which they are asked.
        test: pairs to measure on, of the same users; keep their items apart from those of `support`.
        shots: numbers n; 0 is the population's taste.
        pooled: the baseline.
        active: let `choose_pair` pick the next support pair instead of taking them in order.
        seed: of the bootstrap.

    Raises:
        RewardModelError: users that differ between support and test, or too few support pairs.
    """
    if not support or set(support) != set(test):
        raise RewardModelError("support and test need the same users", found=f"{len(support)} and {len(test)} users")
    fewest = min(len(pairs) for pairs in support.values())
    if max(shots) > fewest:
        raise RewardModelError("a user has too few support pairs", found=f"{fewest}, asked for {max(shots)}")
    right, certain = np.zeros((len(support), len(shots))), np.zeros((len(support), len(shots)))
    base = np.zeros(len(support))
    for row, name in enumerate(sorted(support)):
        order = _asked(head, support[name], max(shots)) if active else list(range(max(shots)))
        for column, count in enumerate(shots):
            user = head.fit_user(support[name].select(torch.tensor(order[:count], dtype=torch.long)))
            right[row, column], certain[row, column] = accuracy(head, user, test[name]), user.certainty
        if pooled is not None:
            base[row] = accuracy(pooled, pooled.fit_user(support[name].select(torch.arange(0))), test[name])
    draws = np.random.default_rng(seed).integers(len(support), size=(2000, len(support)))
    estimates = tuple(_estimate(right[:, column], draws) for column in range(len(shots)))
    gains = (
        tuple(_estimate(right[:, column] - base, draws) for column in range(len(shots))) if pooled is not None else ()
    )
    certainty = tuple(float(value) for value in certain.mean(0))
    return FewShotCurve(
        tuple(shots), estimates, gains, certainty, _estimate(base, draws) if pooled is not None else None, len(support)
    )


def accuracy(head: PersonalHead, user: UserPosterior, pairs: PreferencePairs) -> float:
    """Share of decided pairs that the head orders as labelled; margins of exactly 0 count half."""
    decided = pairs.select(pairs.label != 0.5)
    if len(decided) == 0:
        raise RewardModelError("accuracy needs decided pairs", found=f"{len(pairs)} pairs, all ties")
    agreement = torch.sign(head.margins(decided, user.mean)) * torch.sign(decided.label - 0.5)
    return ((agreement + 1) / 2).mean().item()


def _asked(head: PersonalHead, candidates: PreferencePairs, count: int) -> list[int]:
    """Rows of `candidates` in the order of active choice, each after the answers to those before."""
    order: list[int] = []
    for _ in range(count):
        user = head.fit_user(candidates.select(torch.tensor(order, dtype=torch.long)))
        order.append(choose_pair(head, user, candidates, order).index)
    return order


def _estimate(values: np.ndarray, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))
