"""Logits that need no reference policy."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i_align.objectives.logits.base import Logit, Terms
from t2i_align.objectives.types import PairErrors


class ReferenceFree(Logit):
    """Rewards without a reference, with a target margin (SimPO) and an optional bent scale (AlphaPO)."""

    formula = "z = beta [g(-e_w/2) - g(-e_l/2)] - gamma, g(x) = x, or (1 - exp(-alpha x))/alpha"
    paper = "CPO, arXiv 2401.08417; SimPO, arXiv 2405.14734; AlphaPO, arXiv 2501.03884"
    needs_reference = False
    name: Literal["reference_free"] = "reference_free"
    beta: float = Field(default=2000.0, gt=0, description="k = beta/2 on mean errors")
    gamma: float = Field(default=0.0, ge=0, description="target margin in logit units")
    alpha: float = Field(default=0.0, description="bend of the reward scale; 0 is linear")

    def __call__(self, inputs: PairErrors) -> Terms:
        winner, loser = (self._reward(error) for error in (inputs.e_w, inputs.e_l))
        return Terms(winner - loser - self.gamma, winner, loser)

    def _reward(self, error: Tensor) -> Tensor:
        if self.alpha == 0.0:
            return -self.scale * error
        return -self.beta * torch.expm1(self.alpha * error / 2.0) / self.alpha


class Likelihood(Logit):
    """The bare errors, read as negative log-likelihoods, for links that bring their own scale."""

    formula = "z = e_l - e_w"
    paper = "-"
    needs_reference = False
    provides = frozenset({"likelihoods"})  # not the logit: without k a hinge or a logistic loss would not see it
    name: Literal["likelihood"] = "likelihood"

    def __call__(self, inputs: PairErrors) -> Terms:
        return Terms(inputs.e_l - inputs.e_w, -inputs.e_w, -inputs.e_l)


class NoLogit(Logit):
    """No preference at all: only the anchor trains."""

    formula = "no preference term"
    paper = "-"
    layout = "single"
    needs_reference = False
    provides = frozenset({"nothing"})
    name: Literal["none"] = "none"

    def __call__(self, inputs: PairErrors) -> Terms:
        return Terms(torch.zeros_like(inputs.e_w))
