"""The weight slot, :data:`WEIGHTS`: how much each item counts. Weights from the data multiply on top.

``adaptive_margin`` favours hard pairs, ``gain`` clear ones: opposite hypotheses about what is worth learning
from.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.objectives.types import PairErrors

ALL_LAYOUTS = frozenset({"pair", "single", "labelled", "group", "ranked"})


class Weight(Choice):
    """Base of the slot. ``layouts`` are the input layouts the weight is defined on."""

    layouts: ClassVar[frozenset[str]] = ALL_LAYOUTS

    @property
    def least_batch(self) -> int:
        """Items, over all processes, that a statistic of the batch needs."""
        return 1

    def __call__(self, inputs: PairErrors) -> Tensor | None:
        """``[B]`` weights, or None for one everywhere."""
        raise NotImplementedError


class NoWeight(Weight):
    """Every item counts as its data weight says."""

    formula = "1"
    paper = "-"
    name: Literal["none"] = "none"

    def __call__(self, inputs: PairErrors) -> None:
        return None


class DataWeight(Weight):
    """Base of weights computed from the data; they can be divided by their mean over the global batch."""

    normalize: bool = Field(
        default=False,
        description="divide by the mean weight of the global batch, so that the loss keeps its scale",
    )

    @property
    def least_batch(self) -> int:
        return 2 if self.normalize else 1

    def __call__(self, inputs: PairErrors) -> Tensor:
        weights = self.raw(inputs)
        if not self.normalize:
            return weights
        mean = inputs.over_processes(weights).mean()
        return weights / mean.clamp(min=torch.finfo(weights.dtype).tiny)

    def raw(self, inputs: PairErrors) -> Tensor:
        """``[B]`` weights before normalisation."""
        raise NotImplementedError


class Confidence(DataWeight):
    """How far the label is from a tie."""

    formula = "|2p - 1|, p = labels"
    paper = "-"
    reads = frozenset({"labels"})
    layouts = frozenset({"pair", "single"})
    name: Literal["confidence"] = "confidence"

    def raw(self, inputs: PairErrors) -> Tensor:
        return (2.0 * inputs.required("labels") - 1.0).abs()


class Gain(DataWeight):
    """Difference of the exponential gains of the two scores: clear pairs count more. Scores are in [0, 1].

    A pair whose label contradicts its scores counts nothing: a negative weight would train the opposite, unboundedly.
    """

    formula = "max(0, base^score_w - base^score_l)"
    paper = "GAPO (AniSora), arXiv 2504.10044"
    reads = frozenset({"scores"})
    layouts = frozenset({"pair", "single"})
    name: Literal["gain"] = "gain"
    base: float = Field(default=2.0, gt=1, description="base of the gain")

    def raw(self, inputs: PairErrors) -> Tensor:
        gains = self.base ** inputs.required("scores")
        return (gains[:, 0] - gains[:, 1]).clamp(min=0.0)


class Rarity(DataWeight):
    """Pairs whose scores are rare in the data count more."""

    formula = "(numerator / frequency)^exponent"
    paper = "VideoDPO, arXiv 2412.14167 (released code)"
    reads = frozenset({"frequencies"})
    layouts = ALL_LAYOUTS - {"group", "ranked"}
    name: Literal["rarity"] = "rarity"
    numerator: float = Field(default=0.72, gt=0, description="frequency at which the weight is 1")
    exponent: float = Field(default=1.0, gt=0, description="sharpness")
    margin: str | None = Field(default=None, description="reward whose gap is counted where the data hold several")

    def raw(self, inputs: PairErrors) -> Tensor:
        return (self.numerator / inputs.required("frequencies")) ** self.exponent


class AdaptiveMargin(DataWeight):
    """A reward model's margin damps clear pairs and amplifies hard ones, within bounds.

    The paper's own weight function was not available to us; this is a stand-in with the properties it states.
    """

    formula = "clip(exp(-(margin - centre) / width), lowest, highest)"
    paper = "after MADPO, arXiv 2510.05342 (form of the weight is ours)"
    reads = frozenset({"margins"})
    layouts = ALL_LAYOUTS - {"group", "ranked"}
    name: Literal["adaptive_margin"] = "adaptive_margin"
    centre: float = Field(default=0.0, description="margin at which the weight is 1")
    width: float = Field(default=1.0, gt=0, description="margin over which the weight falls by a factor e")
    lowest: float = Field(default=0.5, gt=0, description="smallest weight")
    highest: float = Field(default=2.0, gt=0, description="largest weight; also the cap for contradicted labels")
    margin: str | None = Field(default=None, description="name of the margin where the data hold several")

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveMargin:
        if self.lowest > self.highest:
            raise ValueError(f"lowest must not exceed highest, got {self.lowest} and {self.highest}")
        return self

    def raw(self, inputs: PairErrors) -> Tensor:
        excess = (inputs.margin(self.margin) - self.centre) / self.width
        return torch.exp(-excess).clamp(self.lowest, self.highest)


class Curriculum(DataWeight):
    """Easy pairs first: stage by stage narrower reward gaps join in, and those seen before stay."""

    formula = "1 if difficulty < (stage + 1) / stages, else 0; stage by training progress"
    paper = "Curriculum DPO, arXiv 2405.13637; Curry-DPO"
    reads = frozenset({"difficulty", "max_steps"})
    layouts = ALL_LAYOUTS - {"group", "ranked"}
    name: Literal["curriculum"] = "curriculum"
    stages: int = Field(default=6, ge=1, description="number of equal shares of the data")
    until: float = Field(default=1.0, gt=0, le=1, description="share of the training budget the stages spread over")
    margin: str | None = Field(default=None, description="reward whose gap makes a pair easy, by name")

    def stage(self, step: int, max_steps: int) -> int:
        """Stage 0 .. stages-1 at an optimiser step."""
        progress = step / max(max_steps * self.until, 1.0)
        return min(int(progress * self.stages), self.stages - 1)

    def raw(self, inputs: PairErrors) -> Tensor:
        share = (self.stage(inputs.step, inputs.max_steps or 1) + 1) / self.stages
        difficulty = inputs.required("difficulty")
        return torch.ones_like(difficulty) if share >= 1.0 else (difficulty < share).to(difficulty)


class UserBalance(DataWeight):
    """Pairs of people who gave many count less, so that a few busy ones do not decide for all.

    At exponent 1 every user counts alike, however many pairs are theirs; towards 0 every pair does. The mean over the
    data is 1 at exponent 1, so the loss keeps its scale.
    """

    formula = "share^-exponent, share = pairs of the user / mean pairs of a user"
    paper = "-"
    reads = frozenset({"user_shares"})
    layouts = ALL_LAYOUTS - {"group", "ranked"}
    name: Literal["user_balance"] = "user_balance"
    exponent: float = Field(
        default=1.0, gt=0, le=1, description="1: every user alike; smaller: nearer to every pair alike"
    )

    def raw(self, inputs: PairErrors) -> Tensor:
        return inputs.required("user_shares") ** -self.exponent


WEIGHTS: dict[str, type[Weight]] = {
    "none": NoWeight,
    "confidence": Confidence,
    "gain": Gain,
    "rarity": Rarity,
    "adaptive_margin": AdaptiveMargin,
    "curriculum": Curriculum,
    "user_balance": UserBalance,
}
