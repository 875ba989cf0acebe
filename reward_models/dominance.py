"""Keeping only the pairs on which several scorers agree: LPO's MPCF and VisionReward's MPO, as one rule.

With G_k = s_k(winner) - s_k(loser) the gap of scorer k, a pair with a winner is kept iff

    G_k >= -slack_k for every k,   and, for a strict rule, G_k > 0 for at least one k.

A labelled tie is kept iff |G_k| <= band_k for every k, if the rule has bands. MPO is slack 0 and strict (Pareto
dominance: irreflexive, antisymmetric, transitive). MPCF relaxes one axis: its published strategy 2 is slack 0.5 on
the LAION aesthetic score, 0 on CLIP ViT-H/14 and on VQAScore, not strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_models.errors import RewardModelError


@dataclass(frozen=True)
class DominanceRule:
    """Slack per scorer; band per scorer for ties.

    Attributes:
        slack: by how much the winner may lose on each scorer, in that scorer's units; its keys name the scorers.
        strict: demand a positive gap on at least one scorer.
        tie_band: largest |gap| of a kept tie per scorer; empty drops every tie.
    """

    slack: Mapping[str, float]
    strict: bool = False
    tie_band: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.slack:
            raise RewardModelError("a dominance rule needs at least one scorer")
        if any(not value >= 0 for value in [*self.slack.values(), *self.tie_band.values()]):
            raise RewardModelError("slack and tie_band must be at least 0")
        if self.tie_band and set(self.tie_band) != set(self.slack):
            raise RewardModelError(
                "tie_band must name the scorers of slack", found=f"{sorted(self.tie_band)} and {sorted(self.slack)}"
            )


def mpo_rule(names: list[str]) -> DominanceRule:
    """VisionReward's rule: the winner is at least as good on every scorer and better on one."""
    return DominanceRule(dict.fromkeys(names, 0.0), strict=True)


# LPO's published thresholds. The CLIP score there is the bare cosine of ViT-H/14, so use weight=1, prefix="".
MPCF = {
    strategy: DominanceRule(
        {"aesthetic": slack, "clip_score": 0.0, "vqa_score": 0.0},
        tie_band={"aesthetic": 0.2, "clip_score": 0.03, "vqa_score": 0.07},
    )
    for strategy, slack in {1: 0.0, 2: 0.5, 3: 1.0}.items()
}


def dominance_mask(
    scores_a: Mapping[str, ArrayLike], scores_b: Mapping[str, ArrayLike], label_a: ArrayLike, rule: DominanceRule
) -> NDArray[np.bool_]:
    """Which pairs to keep, bool [N].

    Args:
        scores_a, scores_b: scores [N] of both pictures by scorer name; at least those of the rule.
        label_a: probability that a is preferred [N]; above 0.5 a is the winner, 0.5 is a tie.
        rule: what to demand. A pair with a NaN score is dropped.

    Raises:
        RewardModelError: a scorer of the rule has no scores, or a length differs.
    """
    sign = np.sign(2 * np.asarray(label_a, dtype=np.float64) - 1)
    keep = np.ones(sign.shape, dtype=bool)
    better = np.zeros(sign.shape, dtype=bool)
    keep_tie = np.full(sign.shape, bool(rule.tie_band))
    for name, slack in rule.slack.items():
        difference = _difference(scores_a, scores_b, name, sign.shape)
        gap = sign * difference
        keep &= gap >= -slack
        better |= gap > 0
        keep_tie &= np.abs(difference) <= rule.tie_band.get(name, 0.0)
    if rule.strict:
        keep &= better
    return np.where(sign == 0, keep_tie, keep)


def _difference(
    scores_a: Mapping[str, ArrayLike], scores_b: Mapping[str, ArrayLike], name: str, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    if name not in scores_a or name not in scores_b:
        raise RewardModelError(
            f"the rule needs scores of '{name}'", found=f"scores of {sorted(scores_a)}", fix="score the pairs with it"
        )
    a, b = np.asarray(scores_a[name], dtype=np.float64), np.asarray(scores_b[name], dtype=np.float64)
    if a.shape != shape or b.shape != shape:
        raise RewardModelError(f"scores of '{name}' must be one per pair", found=f"{a.shape}, {b.shape} for {shape}")
    return a - b
