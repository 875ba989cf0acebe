"""Links with a statistic of the whole batch, over every process: ``inputs.gather`` brings the others' values.

With P processes of B items each item's loss and the mean gradient are those of one process with P * B items.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from t2i_align.objectives.links.base import Link
from t2i_align.objectives.logits.base import Terms
from t2i_align.objectives.types import PairErrors


class Kto(Link):
    """Prospect theory on single images: utility of the reward over a reference point, which carries no
    gradient.

    For ``items: pair`` a pair's loss is the mean of its two images'. A paired batch does not equal DPO: only
    the directions of the gradients agree.
    """

    formula = "w_y (1 - U(y (u - u0))), u0 = max(0, batch mean of u)"
    paper = "Diffusion-KTO, arXiv 2404.04465"
    asks = frozenset({"samples"})
    name: Literal["kto"] = "kto"
    utility: Literal["sigmoid", "loss_averse", "risk_seeking_1", "risk_seeking_2", "risk_seeking_3"] = Field(
        default="sigmoid",
        description="U: s(a), -sp(-a), y sp(a y), y exp(a y/100) - 1, sp(a) for a = y (u - u0)",
    )
    reference_point: Literal["batch", "class_means", "zero"] = Field(
        default="batch", description="u0: clamped mean of the batch, mean of the two classes' means, or 0"
    )
    desirable_weight: float = Field(default=1.0, ge=0, description="w for y = +1")
    undesirable_weight: float = Field(default=1.0, ge=0, description="w for y = -1")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        rewards, labels = _samples(terms, inputs)
        signs = 2.0 * labels - 1.0
        advantage = signs * (rewards - self.reference(terms, inputs))
        weights = labels * self.desirable_weight + (1.0 - labels) * self.undesirable_weight
        losses = weights * (1.0 - self._utility(advantage, signs))
        return losses.reshape(-1, inputs.batch_size).mean(0)

    def _utility(self, advantage: Tensor, signs: Tensor) -> Tensor:
        if self.utility == "sigmoid":
            return torch.sigmoid(advantage)
        if self.utility == "loss_averse":
            return -softplus(-advantage)
        if self.utility == "risk_seeking_1":
            return signs * softplus(signs * advantage)
        if self.utility == "risk_seeking_2":
            return signs * torch.exp(signs * advantage / 100.0) - 1.0
        return softplus(advantage)

    def reference(self, terms: Terms, inputs: PairErrors) -> Tensor:
        """u0, a scalar without gradient, the same on every process."""
        rewards, labels = _samples(terms, inputs)
        rewards, labels = inputs.over_processes(rewards), inputs.over_processes(labels)
        if self.reference_point == "zero":
            return torch.zeros_like(rewards[0])
        if self.reference_point == "batch":
            return rewards.mean().clamp(min=0.0)
        means = [(rewards * side).sum() / (side.sum() + 1e-6) for side in (labels, 1.0 - labels)]
        return 0.5 * (means[0] + means[1])

    def metrics(self, terms: Terms, inputs: PairErrors) -> dict[str, Tensor]:
        rewards, labels = _samples(terms, inputs)
        with torch.no_grad():
            point = self.reference(terms, inputs)
            right = 0.5 * (torch.sign((2.0 * labels - 1.0) * (rewards - point)) + 1.0)
        accuracy = right.reshape(-1, inputs.batch_size).mean(0)
        extra = {"reference_point": point, "utility_accuracy": accuracy}
        return extra if terms.loser is not None else extra | {"implicit_accuracy": accuracy}


def _samples(terms: Terms, inputs: PairErrors) -> tuple[Tensor, Tensor]:
    """Rewards and labels of single images: ``[B]``, or ``[2B]`` with the winners first."""
    if terms.winner is None:
        raise ValueError("this link needs rewards of single images")
    if terms.loser is None:
        return terms.winner, inputs.required("labels").to(terms.winner)
    ones = torch.ones_like(terms.winner)
    return torch.cat([terms.winner, terms.loser]), torch.cat([ones, torch.zeros_like(ones)])


class Aot(Link):
    """Compares distributions: the policy's margins, sorted, against the reference's margins, sorted."""

    formula = "(1-q) sp(-v) + q sp(v), v = policy margin - reference margin of equal rank"
    paper = "AOT, arXiv 2406.05882 (paired)"
    asks = frozenset({"margins"})
    least_batch = 2
    name: Literal["aot"] = "aot"
    label_smoothing: float = Field(default=0.0, ge=0, le=0.5, description="q")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        if terms.policy_margin is None or terms.reference_margin is None:
            raise ValueError("aot needs the policy's and the reference's margins apart")
        matched = _of_equal_rank(terms.policy_margin, terms.reference_margin, inputs)
        return _smoothed(terms.policy_margin - matched, self.label_smoothing)


class AotUnpaired(Link):
    """Compares distributions: the winners' rewards, sorted, against the losers' rewards, sorted."""

    formula = "(1-q) sp(-v) + q sp(v), v = winner's reward - loser's reward of equal rank"
    paper = "AOT, arXiv 2406.05882 (unpaired)"
    asks = frozenset({"margins"})
    least_batch = 2
    name: Literal["aot_unpaired"] = "aot_unpaired"
    label_smoothing: float = Field(default=0.0, ge=0, le=0.5, description="q")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        winner, loser = terms.winner, terms.loser
        if winner is None or loser is None:
            raise ValueError("aot_unpaired needs the rewards of both sides")
        loss = _smoothed(winner - _of_equal_rank(winner, loser, inputs), self.label_smoothing)
        # A loser's partner may be on another process: a term of value 0 gives each loser its gradient here.
        partner = _of_equal_rank(loser, winner, inputs)
        for_loser = _smoothed(partner - loser, self.label_smoothing)
        return loss + for_loser - for_loser.detach()


def _of_equal_rank(values: Tensor, others: Tensor, inputs: PairErrors) -> Tensor:
    """For each of this process's ``values`` the one of ``others`` with the same rank in the global batch,
    detached."""
    all_values, all_others = inputs.over_processes(values), inputs.over_processes(others)
    matched = torch.empty_like(all_others)
    matched[all_values.argsort(stable=True)] = all_others.sort().values
    if inputs.gather is None:
        return matched
    start = inputs.process_index * values.shape[0]
    return matched[start : start + values.shape[0]]


def _smoothed(v: Tensor, q: float) -> Tensor:
    return (1 - q) * softplus(-v) + q * softplus(v)
