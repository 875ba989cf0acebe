"""Logits over more than two images of one prompt."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i_align.objectives.logits.base import Logit, Terms
from t2i_align.objectives.types import PairErrors


class GroupMean(Logit):
    """Compares groups by their mean rewards, for preferences that hold between distributions of images."""

    formula = "z = k [mean_w(r - e) - mean_l(r - e)], means over groups of M"
    paper = "mDPO / mIPO, arXiv 2410.12138"
    layout = "group"
    provides = frozenset({"logit", "item", "rewards", "halves"})
    name: Literal["group_mean"] = "group_mean"
    beta: float = Field(default=5000.0, gt=0, description="k = beta/2 on mean errors")

    def __call__(self, inputs: PairErrors) -> Terms:
        winners, losers = self._rewards(inputs)
        winner, loser = winners.mean(-1), losers.mean(-1)
        return Terms(winner - loser, winner, loser, halves=_halves(winners - losers))


def _halves(margins: Tensor) -> Tensor | None:
    """``[B, 2]`` means over the first and second half of an even group ``[B, M]``; None when M is odd."""
    size = margins.shape[-1]
    return None if size % 2 else margins.unflatten(-1, (2, size // 2)).mean(-1)


class Ranked(Logit):
    """Every image pair of a ranked list, weighted by what swapping the two would cost in discounted gain."""

    formula = "z_ij = k [(r_i - e_i) - (r_j - e_j)], weight |2^s_i - 2^s_j| |1/D_i - 1/D_j|, D = log(1 + rank)"
    paper = "RankDPO, arXiv 2410.18013"
    layout = "ranked"
    reads = frozenset({"scores"})
    provides = frozenset({"logit", "rewards"})
    name: Literal["ranked"] = "ranked"
    beta: float = Field(default=5000.0, gt=0, description="k = beta/2 on mean errors")

    def __call__(self, inputs: PairErrors) -> Terms:
        scores = inputs.required("scores")
        rewards = self.scale * (inputs.r_w - inputs.e_w)
        first, second = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1, device=scores.device)
        first_wins = scores[:, first] >= scores[:, second]
        winner = torch.where(first_wins, rewards[:, first], rewards[:, second])
        loser = torch.where(first_wins, rewards[:, second], rewards[:, first])
        weights = discounted_gain_weights(scores).to(rewards)[:, first, second]
        return Terms(winner - loser, winner, loser, pair_weights=weights)


def discounted_gain_weights(scores: Tensor) -> Tensor:
    """``[B, K, K]`` symmetric weights |G_i - G_j| |1/D_i - 1/D_j| from scores ``[B, K]`` in [0, 1].

    G = 2^score - 1; D = log(1 + rank), natural, rank 1 for the highest score. Equal scores weigh 0, so how
    their ranks are broken does not matter between them.
    """
    ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1
    gain, discount = torch.exp2(scores) - 1.0, 1.0 / torch.log1p(ranks.to(scores))
    return _differences(gain) * _differences(discount)


def _differences(values: Tensor) -> Tensor:
    return (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()


class PerSample(Logit):
    """Rewards of single images, each desirable or not; pairs are taken as one of each."""

    formula = "u = beta (r - e) per image (beta on mean errors, no 1/2)"
    paper = "Diffusion-KTO, arXiv 2404.04465"
    provides = frozenset({"samples"})
    name: Literal["per_sample"] = "per_sample"
    beta: float = Field(default=5000.0, gt=0, description="multiplier of a mean error; no factor 1/2 here")
    items: Literal["pair", "labelled"] = Field(
        default="pair", description="pair: winner desirable, loser not; labelled: single images with labels"
    )

    @property
    def scale(self) -> float:
        return self.beta

    @property
    def input_layout(self) -> str:
        return self.items

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"labels"}) if self.items == "labelled" else frozenset()

    def __call__(self, inputs: PairErrors) -> Terms:
        if self.items == "labelled":
            reward = self.scale * (inputs.r_w - inputs.e_w)
            return Terms(reward, reward)
        winner, loser = self._rewards(inputs)
        return Terms(winner - loser, winner, loser)
