"""One user's taste as a Gaussian: MAP fit, Laplace covariance, honest predictions, and the best next question.

A head describes a user by a vector a ``[R]`` with prior N(mu, S) and says for each pair the margin d(a), positive
where the first item is preferred, P(first) = sigmoid(d). With answers y, weights w and J = dd/da:

    a_hat = argmin  - sum_p w_p [y_p log sigmoid(d_p) + (1 - y_p) log sigmoid(-d_p)] + 1/2 (a - mu)' S^-1 (a - mu)
    C     = (S^-1 + sum_p w_p sigmoid(d_p) sigmoid(-d_p) J_p' J_p)^-1                          (Laplace, Gauss-Newton)

For a pair with margin m = d(a_hat) and variance v = J C J', P(first) = sigmoid(m / sqrt(1 + pi v / 8)) (MacKay's
approximation of the average over a), and an answer is expected to teach 1/2 log(1 + p (1 - p) v) nats.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.personal.evidence import Evidence
from reward_models.personal.records import PreferencePairs

MAX_ITERATIONS = 100
TOLERANCE = 1e-9


class UserModel(Protocol):
    """What a head offers; vectors are float64."""

    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean ``[R]`` and covariance ``[R, R]`` of the population."""

    def margins(self, pairs: PreferencePairs, code: Tensor) -> Tensor:
        """``[P]`` margins of a user with vector `code` ``[R]``."""

    def jacobian(self, pairs: PreferencePairs, code: Tensor) -> Tensor:
        """``[P, R]`` derivatives of the margins by `code`."""


@dataclass(frozen=True)
class UserPosterior:
    """What is known of one user.

    Attributes:
        name: of the user.
        mean: ``[R]``, the MAP estimate.
        covariance: ``[R, R]``, Laplace.
        certainty: in [0, 1): share of the population's spread that the answers removed, ``1 - tr(S^-1 C) / R``. It
            is 0 without pairs, and 0 where R = 0.
        consistency: share of (weighted) decided answers that the fit reproduces; NaN without any.
        answers: comparisons given, before merging.
        notes: what was odd about them.
    """

    name: str
    mean: Tensor
    covariance: Tensor
    certainty: float
    consistency: float
    answers: int
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """What to tell the user, a few lines."""
        head = f"{self.name}: {self.answers} answers, certainty {self.certainty:.2f}"
        if not math.isnan(self.consistency):
            head += f", the fit agrees with {self.consistency:.0%} of them"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Prediction:
    """Of P pairs, for one user, each ``[P]`` float64.

    Attributes:
        margin: d(a_hat), positive where the first is preferred.
        deviation: standard deviation of the margin over what is not known of the user.
        probability: that the first is preferred, averaged over what is not known.
    """

    margin: Tensor
    deviation: Tensor
    probability: Tensor

    def confidence(self) -> Tensor:
        """``[P]`` in [0.5, 1]: probability that the sign of the margin is the user's, ``Phi(|m| / sd)``."""
        ratio = self.margin.abs() / self.deviation.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.special.ndtr(ratio)


@dataclass(frozen=True)
class Question:
    """The pair to ask next.

    Attributes:
        index: its row among the candidates.
        gains: ``[P]`` expected information of every candidate in nats; -inf where excluded.
    """

    index: int
    gains: Tensor


def fit_posterior(model: UserModel, evidence: Evidence) -> UserPosterior:
    """MAP by damped Gauss-Newton (plain Newton where margins are linear), then the Laplace covariance."""
    pairs, weight = evidence.pairs, evidence.weight
    mean, covariance = model.prior()
    precision = torch.linalg.inv(covariance)
    code, loss = mean.clone(), _loss(model, evidence, mean, mean, precision)
    for _ in range(MAX_ITERATIONS):
        margins, jacobian = model.margins(pairs, code), model.jacobian(pairs, code)
        gradient = jacobian.T @ (weight * (torch.sigmoid(margins) - pairs.label)) + precision @ (code - mean)
        step = torch.linalg.solve(_curvature(margins, jacobian, weight, precision), gradient)
        moved = False
        for halving in range(30):
            candidate = code - step / 2**halving
            value = _loss(model, evidence, candidate, mean, precision)
            if value < loss:
                moved = loss - value > TOLERANCE * (1 + abs(loss))
                code, loss = candidate, value
                break
        if not moved:
            break
    margins, jacobian = model.margins(pairs, code), model.jacobian(pairs, code)
    laplace = torch.linalg.inv(_curvature(margins, jacobian, weight, precision))
    removed = 1 - torch.trace(precision @ laplace).item() / len(code) if len(code) else 0.0
    return UserPosterior(
        evidence.pairs.users[0],
        code,
        laplace,
        max(0.0, removed),
        _consistency(margins, pairs.label, weight),
        evidence.answers,
        evidence.notes,
    )


def predict(model: UserModel, user: UserPosterior, pairs: PreferencePairs) -> Prediction:
    """Margins of `pairs` for `user`, with what is not known of the user taken into account."""
    margin = model.margins(pairs, user.mean)
    jacobian = model.jacobian(pairs, user.mean)
    variance = torch.einsum("pi,ij,pj->p", jacobian, user.covariance, jacobian).clamp_min(0)
    return Prediction(margin, variance.sqrt(), torch.sigmoid(margin / (1 + math.pi * variance / 8).sqrt()))


def choose_pair(
    model: UserModel, user: UserPosterior, candidates: PreferencePairs, asked: Collection[int] = ()
) -> Question:
    """The candidate whose answer is expected to teach most; labels of the candidates are not read.

    Args:
        model: the head.
        user: what is known so far.
        candidates: pairs that could be shown.
        asked: rows of `candidates` not to choose.

    Raises:
        RewardModelError: no candidate is left.
    """
    if len(set(asked)) >= len(candidates):
        raise RewardModelError("there is no pair left to ask", found=f"{len(candidates)} candidates, all asked")
    prediction = predict(model, user, candidates)
    p = prediction.probability
    gains = 0.5 * torch.log1p(p * (1 - p) * prediction.deviation.square())
    gains[torch.tensor(sorted(set(asked)), dtype=torch.long)] = -math.inf
    return Question(int(gains.argmax()), gains)


def _loss(model: UserModel, evidence: Evidence, code: Tensor, mean: Tensor, precision: Tensor) -> float:
    margins, label = model.margins(evidence.pairs, code), evidence.pairs.label
    cross_entropy = F.softplus(margins) - label * margins
    away = code - mean
    return ((evidence.weight * cross_entropy).sum() + 0.5 * away @ precision @ away).item()


def _curvature(margins: Tensor, jacobian: Tensor, weight: Tensor, precision: Tensor) -> Tensor:
    slope = weight * torch.sigmoid(margins) * torch.sigmoid(-margins)
    return precision + jacobian.T @ (slope[:, None] * jacobian)


def _consistency(margins: Tensor, label: Tensor, weight: Tensor) -> float:
    decided = weight * (label != 0.5)
    if decided.sum() == 0:
        return math.nan
    right = torch.sign(margins) == torch.sign(label - 0.5)
    return ((decided * right).sum() / decided.sum()).item()
