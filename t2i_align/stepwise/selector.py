"""Which candidates make a pair: the best against the worst, where their gap exceeds a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ThresholdSchedule = Literal["constant", "sigma", "variance", "linear"]


@dataclass(frozen=True, eq=False)
class Selection:
    """One possible pair per state; every tensor ``[N]``.

    Attributes:
        winner, loser: indices of the best and the worst of K candidates (long).
        score_winner, score_loser: their scores, as logits.
        gap: softmax of the two scores, best minus worst: ``tanh((S_w - S_l) / 2)`` in [0, 1].
        threshold: what the gap must exceed.
        accepted: whether it does (bool).
    """

    winner: Tensor
    loser: Tensor
    score_winner: Tensor
    score_loser: Tensor
    gap: Tensor
    threshold: Tensor
    accepted: Tensor


def select(scores: Tensor, threshold: float | Tensor) -> Selection:
    """The extremes of K candidates.

    Args:
        scores: ``[K, N]`` in logit units: sigmoid(S_a - S_b) is the probability that a is preferred.
        threshold: a number or ``[N]``, on the softmax gap; 0 accepts everything but exact ties, 1 nothing.
    """
    best, winner = scores.float().max(0)
    worst, loser = scores.float().min(0)
    gap = torch.tanh((best - worst) / 2)
    limit = torch.as_tensor(threshold, dtype=gap.dtype, device=gap.device).expand_as(gap)
    return Selection(winner, loser, best, worst, gap, limit, gap > limit)


def thresholds(schedule: ThresholdSchedule, low: float, high: float | None, parents: Tensor, sigmas: Tensor) -> Tensor:
    """Threshold of every sampler step, ``[S]`` float64.

    ``low + (high - low) f`` with f in [0, 1] by min-max over the steps: of sigma, of sigma squared, or of the
    timestep. Late steps, whose candidates differ little, so get lower thresholds. Steps without noise (sigma
    0) are never branched and do not count.

    Args:
        schedule: constant (every step ``low``), sigma, variance or linear.
        low, high: threshold where f is 0 and 1; ``high`` is not read by a constant schedule.
        parents: ``[S]`` timesteps of the grid.
        sigmas: ``[S]`` standard deviations of its steps.
    """
    if schedule == "constant":
        return torch.full(parents.shape, low, dtype=torch.float64)
    if high is None:
        raise ValueError(f"schedule {schedule!r} needs an upper threshold")
    values = {"sigma": sigmas, "variance": sigmas.square(), "linear": parents}[schedule].double()
    noisy = values[sigmas > 0]
    span = noisy.max() - noisy.min()
    share = (values - noisy.min()) / span if span > 0 else torch.ones_like(values)
    return low + (high - low) * share.clamp(0.0, 1.0)
