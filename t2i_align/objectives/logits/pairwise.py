"""Logits of one pair against a reference."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import softplus

from t2i_align.objectives.logits.base import Logit, Terms
from t2i_align.objectives.types import PairErrors


class Full(Logit):
    """The Diffusion-DPO logit."""

    formula = "z = k [(r_w - e_w) - (r_l - e_l)], k = beta/2"
    paper = "Diffusion-DPO, arXiv 2311.12908"
    provides = frozenset({"logit", "item", "rewards", "margins"})
    name: Literal["full"] = "full"
    beta: float = Field(
        default=5000.0, gt=0, description="strength of the tie to the reference; k = beta/2 on mean errors"
    )

    def __call__(self, inputs: PairErrors) -> Terms:
        winner, loser = self._rewards(inputs)
        policy = self.scale * (inputs.e_l - inputs.e_w)
        reference = self.scale * (inputs.r_l - inputs.r_w)
        return Terms(winner - loser, winner, loser, policy, reference)


class Reversed(Logit):
    """The mirror of ``full``: trains a model of what people dislike, to be pushed away from at sampling."""

    formula = "z = -k [(r_w - e_w) - (r_l - e_l)]"
    paper = "Diffusion-NPO, arXiv 2505.11245"
    name: Literal["reversed"] = "reversed"
    beta: float = Field(default=5000.0, gt=0, description="k = beta/2 on mean errors")

    def __call__(self, inputs: PairErrors) -> Terms:
        winner, loser = self._rewards(inputs)
        return Terms(loser - winner, winner, loser)


class Shifted(Logit):
    """Counts the loser's reward less, so that pushing the loser away cannot pay for a worse winner."""

    formula = "z = k [(r_w - e_w) - lam (r_l - e_l)]"
    paper = "DPO-Shift, arXiv 2502.07599"
    name: Literal["shifted"] = "shifted"
    beta: float = Field(default=5000.0, gt=0, description="k = beta/2 on mean errors")
    lam: float = Field(default=0.75, gt=0, le=1, description="weight of the loser's reward; 1 is DPO")
    schedule: Literal["constant", "increase", "decrease"] = Field(
        default="constant", description="constant lam, or linear between lam and 1 over the training budget"
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.schedule == "constant" else frozenset({"max_steps"})

    def current(self, step: int, max_steps: int | None) -> float:
        """lam at an optimiser step."""
        if self.schedule == "constant" or max_steps is None:
            return self.lam
        progress = min(max(step / max(max_steps, 1), 0.0), 1.0)
        towards_one = progress if self.schedule == "increase" else 1.0 - progress
        return self.lam + (1.0 - self.lam) * towards_one

    def __call__(self, inputs: PairErrors) -> Terms:
        winner, loser = self._rewards(inputs)
        lam = self.current(inputs.step, inputs.max_steps)
        return Terms(winner - lam * loser, winner, loser)


class SmoothedByScore(Logit):
    """Scales the logit by how sure a reward model is; a pair it ranks the other way is turned round."""

    formula = "z = gamma (2p - 1) k h, p = sigmoid(margin / score_range)"
    paper = "SmPO-Diffusion, arXiv 2506.02698 (the logit alone)"
    reads = frozenset({"margins"})
    name: Literal["smoothed_by_score"] = "smoothed_by_score"
    beta: float = Field(default=2000.0, gt=0, description="k = beta/2 on mean errors")
    gamma: float = Field(default=10.0, gt=0, description="gain on the signed confidence 2p - 1")
    score_range: float = Field(default=1.0, gt=0, description="max - min of the reward model's scores over the data")
    margin: str | None = Field(default=None, description="name of the margin to use where the data hold several")

    def __call__(self, inputs: PairErrors) -> Terms:
        winner, loser = self._rewards(inputs)
        preferred = torch.sigmoid(inputs.margin(self.margin) / self.score_range)
        return Terms(self.gamma * (2.0 * preferred - 1.0) * (winner - loser), winner, loser)


class MultiObjective(Logit):
    """Trades the preference of the labels against other rewards' margins."""

    formula = "z = [k h - sum_j w_j margin_j] / w_0"
    paper = "MODPO, arXiv 2310.03708"
    reads = frozenset({"margins"})
    name: Literal["multi_objective"] = "multi_objective"
    beta: float = Field(default=5000.0, gt=0, description="k = beta/2 on mean errors")
    preference_weight: float = Field(default=1.0, gt=0, le=1, description="w_0, weight of the labels' preference")
    margin_weights: dict[str, float] = Field(
        default_factory=dict,
        description="w_j by margin name; empty needs exactly one margin, weighted 1 - w_0",
    )

    def __call__(self, inputs: PairErrors) -> Terms:
        winner, loser = self._rewards(inputs)
        weighted: list[tuple[str | None, float]] = list(self.margin_weights.items()) or [
            (None, 1.0 - self.preference_weight)
        ]
        others = torch.stack([weight * inputs.margin(name) for name, weight in weighted]).sum(0)
        return Terms((winner - loser - others) / self.preference_weight, winner, loser)


class Divergence(Logit):
    """Log-ratios bent by the f-divergence that ties policy to reference; reverse KL would be ``full``."""

    formula = "z = beta [f(c_w) - f(c_l)], c = (r - e)/2; f: -exp(-c), -sp(-c) or exp((a-1) c)/(a-1)"
    paper = "f-DPO, arXiv 2309.16240"
    name: Literal["divergence"] = "divergence"
    beta: float = Field(default=5000.0, gt=0, description="beta on log-ratios c = (r - e)/2, k = beta/2")
    divergence: Literal["forward_kl", "js", "alpha"] = Field(default="js", description="which f-divergence")
    alpha: float | None = Field(default=None, gt=0, lt=1, description="a, for divergence: alpha only")

    @model_validator(mode="after")
    def _alpha_where_read(self) -> Divergence:
        if (self.alpha is None) == (self.divergence == "alpha"):
            raise ValueError("give alpha with divergence: alpha, and with no other")
        return self

    def __call__(self, inputs: PairErrors) -> Terms:
        winner = self.beta * self._bend((inputs.r_w - inputs.e_w) / 2.0)
        loser = self.beta * self._bend((inputs.r_l - inputs.e_l) / 2.0)
        return Terms(winner - loser, winner, loser)

    def _bend(self, log_ratio: Tensor) -> Tensor:
        if self.alpha is not None:
            return torch.exp((self.alpha - 1.0) * log_ratio) / (self.alpha - 1.0)
        return -torch.exp(-log_ratio) if self.divergence == "forward_kl" else -softplus(-log_ratio)
