"""Links on bare errors, read as negative log-likelihoods: no reference, and a scale of their own."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from t2i_align.objectives.links.base import Link
from t2i_align.objectives.logits.base import Terms
from t2i_align.objectives.types import PairErrors

# Below this, u/(exp(u)-1) - 1 is summed as a series: the quotient rounds to 1 and loses what T multiplies.
SERIES_BELOW = 0.5


def bounded_minus_one(u: Tensor) -> Tensor:
    """u / (exp(u) - 1) - 1 for u >= 0: 0 at 0, decreasing to -1. Absolute error near u * 1e-8 in float32 for
    u < 1/2.

    The series is sum_n B_n u^n / n! with the Bernoulli numbers B_n; its next term is below 2e-13 at u = 1/2.
    """
    small = torch.where(u < SERIES_BELOW, u, torch.zeros_like(u))
    large = torch.where(u < SERIES_BELOW, torch.ones_like(u), u)
    v = small * small
    even = 1 / 12 + v * (-1 / 720 + v * (1 / 30240 + v * (-1 / 1209600 + v / 47900160)))
    return torch.where(u < SERIES_BELOW, -small / 2 + v * even, large / torch.expm1(large) - 1)


class Bounded(Link):
    """MaPO as released: the margin of bounded scores, times T, under a logistic loss."""

    formula = "b sp(-T [q(e_w) - q(e_l)]), q(u) = s u / (exp(s u) - 1)"
    paper = "MaPO, arXiv 2406.06424 (released code)"
    asks = frozenset({"likelihoods"})
    name: Literal["bounded"] = "bounded"
    beta: float = Field(default=0.1, gt=0, description="b, weight of the margin term (beta_mapo)")
    snr_value: float = Field(default=0.5, gt=0, description="s, scale of the error inside q")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return self.beta * softplus(-self.margin(inputs))

    def margin(self, inputs: PairErrors) -> Tensor:
        """T [q(e_w) - q(e_l)], ``[B]``; T is the number of training timesteps."""
        scores = [bounded_minus_one(self.snr_value * e) for e in (inputs.e_w, inputs.e_l)]
        return inputs.num_timesteps * (scores[0] - scores[1])

    def metrics(self, terms: Terms, inputs: PairErrors) -> dict[str, Tensor]:
        return {"logit": self.margin(inputs).detach()}


class BoundedPower(Link):
    """MaPO as in the second version of the paper: the exponent inside cancels the factor outside."""

    formula = "(1/b) sp(-[phi(e_w) - phi(e_l)]), phi(u) = (u / (exp(u) - 1))^b"
    paper = "MaPO, arXiv 2406.06424v2"
    asks = frozenset({"likelihoods"})
    name: Literal["bounded_power"] = "bounded_power"
    beta: float = Field(
        default=8.0, gt=0, description="b; the paper's best grows with the mismatch to the data, 8 to 1024"
    )

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return softplus(-self.margin(inputs)) / self.beta

    def margin(self, inputs: PairErrors) -> Tensor:
        """phi(e_w) - phi(e_l), ``[B]``."""
        logs = [self.beta * torch.log1p(bounded_minus_one(e)) for e in (inputs.e_w, inputs.e_l)]
        return torch.expm1(logs[0]) - torch.expm1(logs[1])

    def metrics(self, terms: Terms, inputs: PairErrors) -> dict[str, Tensor]:
        return {"logit": self.margin(inputs).detach()}


class Odds(Link):
    """Ratio of odds p/(1-p), p = exp(-s e): the winner's must exceed the loser's."""

    formula = "b sp(-[lo(e_w) - lo(e_l)]), lo(u) = -log(exp(s u) - 1)"
    paper = "ORPO, arXiv 2403.07691"
    asks = frozenset({"likelihoods"})
    name: Literal["odds"] = "odds"
    beta: float = Field(default=0.1, gt=0, description="b, weight of the odds-ratio term")
    error_scale: float = Field(
        default=1.0, gt=0, description="s, nats per unit of mean squared error; 1/2 reads log p = -e/2"
    )

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return self.beta * softplus(-self.margin(inputs))

    def margin(self, inputs: PairErrors) -> Tensor:
        """lo(e_w) - lo(e_l), ``[B]``."""
        winner, loser = (torch.log(torch.expm1(self.error_scale * e)) for e in (inputs.e_w, inputs.e_l))
        return loser - winner

    def metrics(self, terms: Terms, inputs: PairErrors) -> dict[str, Tensor]:
        return {"logit": self.margin(inputs).detach()}
