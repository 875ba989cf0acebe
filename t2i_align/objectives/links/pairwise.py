"""Links that are functions of the logit z alone, element by element. sp(u) = log(1 + exp(u))."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu, softplus

from t2i_align.objectives.links.base import Link
from t2i_align.objectives.logits.base import Terms
from t2i_align.objectives.types import PairErrors


class Softplus(Link):
    """The logistic (Bradley-Terry) loss of DPO."""

    formula = "sp(-z) = -log sigmoid(z)"
    paper = "DPO, arXiv 2305.18290"
    name: Literal["softplus"] = "softplus"

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return softplus(-terms.logit)


class Smoothed(Link):
    """Labels are taken to be wrong with probability q; the best z is finite, log((1-q)/q)."""

    formula = "(1-q) sp(-z) + q sp(z)"
    paper = "cDPO (conservative DPO, E. Mitchell 2023)"
    name: Literal["smoothed"] = "smoothed"
    label_smoothing: float = Field(default=0.1, ge=0, le=0.5, description="q, assumed share of wrong labels")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        q = self.label_smoothing
        return (1 - q) * softplus(-terms.logit) + q * softplus(terms.logit)


class Robust(Link):
    """Unbiased under label flips: its mean over flips with probability q is DPO's loss. Unbounded below."""

    formula = "[(1-q) sp(-z) - q sp(z)] / (1-2q)"
    paper = "rDPO, arXiv 2403.00409"
    name: Literal["robust"] = "robust"
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5, description="q, probability that a label was flipped")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        q = self.label_smoothing
        return ((1 - q) * softplus(-terms.logit) - q * softplus(terms.logit)) / (1 - 2 * q)


class Square(Link):
    """IPO's regression to a target margin, written in z so that its gradients have the scale of the other
    links."""

    formula = "(z - m)^2, m = k/(2 tau); k^2 times (h - 1/(2 tau))^2"
    paper = "IPO, arXiv 2310.12036"
    name: Literal["square"] = "square"
    target: float = Field(default=0.5, gt=0, description="m in logit units; 1/2 is IPO with tau = k")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return (terms.logit - self.target).square()


class Hinge(Link):
    """A satisfied pair gets no gradient."""

    formula = "max(0, margin - z)"
    paper = "SLiC-HF, arXiv 2305.10425"
    name: Literal["hinge"] = "hinge"
    margin: float = Field(default=1.0, ge=0, description="logit beyond which a pair is satisfied")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return relu(self.margin - terms.logit)


class Exo(Link):
    """Reverse cross-entropy between the model's preference and the smoothed label."""

    formula = "s(z) [log s(z) - log(1-q)] + s(-z) [log s(-z) - log q]"
    paper = "EXO, arXiv 2402.00856"
    name: Literal["exo"] = "exo"
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5, description="q, must be positive: log q enters the loss")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        z, q = terms.logit, self.label_smoothing
        agree = torch.sigmoid(z) * (-softplus(-z) - math.log1p(-q))
        return agree + torch.sigmoid(-z) * (-softplus(z) - math.log(q))


class Discopop(Link):
    """The loss found by a search over programs: logistic and exponential, blended by how large z is."""

    formula = "(1-b) sp(-z) + b exp(-z), b = s(z / temperature)"
    paper = "DiscoPOP, arXiv 2406.08414"
    name: Literal["discopop"] = "discopop"
    temperature: float = Field(default=0.05, gt=0, description="width of the blend in logit units")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        z = terms.logit
        blend = torch.sigmoid(z / self.temperature)
        return (1 - blend) * softplus(-z) + blend * torch.exp(-z)


class NoLink(Link):
    """No preference term."""

    formula = "0"
    paper = "-"
    asks = frozenset({"nothing"})
    name: Literal["none"] = "none"

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        return terms.logit
