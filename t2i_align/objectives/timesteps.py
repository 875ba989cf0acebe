"""The timestep slot, :data:`TIMESTEPS`: which noise levels are trained, and how much each counts.

A draw is addressed: a function of (seed, epoch, item id, draw) and of nothing else.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.base import Choice
from t2i_align.objectives.timestep_weights import NoTimestepWeight, Weighting
from t2i_align.objectives.types import PairErrors
from t2i_align.randomness import addressed_uniform

NonNegative = Annotated[float, Field(ge=0)]
Step = Annotated[int, Field(ge=0)]


class Timestep(Choice):
    """Base of the slot."""

    weighting: Weighting = Field(default_factory=NoTimestepWeight, description="weight of the errors by noise level")

    @property
    def needs(self) -> frozenset[str]:
        return self.weighting.needs

    def pick(self, uniform: float, num_timesteps: int) -> int:
        """The timestep in 0 .. T-1 that one number in [0, 1) stands for."""
        raise NotImplementedError

    def drawn(self, num_timesteps: int) -> list[int]:
        """The timesteps that can come up, in order."""
        return list(range(num_timesteps))

    def check_range(self, num_timesteps: int) -> None:
        """Raise UserError when the choice names timesteps the schedule does not have."""

    def sample(
        self,
        ids: Sequence[str | int],
        epoch: int | Sequence[int],
        draw: int,
        seed: int,
        num_timesteps: int = 1000,
    ) -> Tensor:
        """Long ``[B]`` of timesteps, one per item; ``epoch`` is one number or one per item."""
        self.check_range(num_timesteps)
        epochs = [epoch] * len(ids) if isinstance(epoch, int) else epoch
        uniforms = [addressed_uniform(seed, "timestep", e, item, draw) for item, e in zip(ids, epochs, strict=True)]
        return torch.tensor([self.pick(u, num_timesteps) for u in uniforms], dtype=torch.long)

    def weights(self, inputs: PairErrors) -> Tensor | None:
        """Factor on the errors of each item, ``[B]`` or None."""
        return self.weighting(inputs)


class Uniform(Timestep):
    """Every training timestep alike."""

    formula = "t ~ U{0 .. T-1}"
    paper = "DDPM, arXiv 2006.11239"
    name: Literal["uniform"] = "uniform"

    def pick(self, uniform: float, num_timesteps: int) -> int:
        return int(uniform * num_timesteps)


class Range(Timestep):
    """Only part of the schedule."""

    formula = "t ~ U{low .. high-1}"
    paper = "-"
    name: Literal["range"] = "range"
    low: Step = Field(default=0, description="first timestep")
    high: int = Field(default=1000, ge=1, description="first timestep left out")

    @model_validator(mode="after")
    def _not_empty(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low}, high={self.high}")
        return self

    def drawn(self, num_timesteps: int) -> list[int]:
        return list(range(self.low, min(self.high, num_timesteps)))

    def check_range(self, num_timesteps: int) -> None:
        _require_at_most("range", self.high, num_timesteps)

    def pick(self, uniform: float, num_timesteps: int) -> int:
        return self.low + int(uniform * (self.high - self.low))


class Listed(Timestep):
    """A few timesteps, such as those a distilled model samples with."""

    formula = "t ~ Cat(timesteps, probabilities)"
    paper = "Diffusion-DPO's SDXL-Turbo recipe, arXiv 2311.12908"
    name: Literal["listed"] = "listed"
    timesteps: tuple[Step, ...] = Field(
        default=(249, 499, 749, 999), min_length=1, description="timesteps to draw from"
    )
    probabilities: tuple[NonNegative, ...] | None = Field(
        default=None, description="relative frequency of each; null: alike"
    )

    @model_validator(mode="after")
    def _one_each(self) -> Listed:
        if self.probabilities is not None and len(self.probabilities) != len(self.timesteps):
            raise ValueError(f"give one probability per timestep: {len(self.timesteps)}, got {len(self.probabilities)}")
        if self.probabilities is not None:
            _require_positive_sum(self.probabilities)
        return self

    def drawn(self, num_timesteps: int) -> list[int]:
        frequency = self.probabilities or (1.0,) * len(self.timesteps)
        return sorted({t for t, share in zip(self.timesteps, frequency, strict=True) if share > 0})

    def check_range(self, num_timesteps: int) -> None:
        _require_at_most("listed", max(self.timesteps) + 1, num_timesteps)

    def pick(self, uniform: float, num_timesteps: int) -> int:
        return self.timesteps[_categorical(uniform, self.probabilities or (1.0,) * len(self.timesteps))[0]]


class Binned(Timestep):
    """A piecewise constant distribution over equal bins, from low noise to high; fixed, or learned
    elsewhere."""

    formula = "bin ~ Cat(probabilities), t uniform inside the bin"
    paper = "-"
    name: Literal["binned"] = "binned"
    probabilities: tuple[NonNegative, ...] = Field(
        default=(1.0,), min_length=1, description="relative frequency of each bin"
    )

    @model_validator(mode="after")
    def _positive(self) -> Binned:
        _require_positive_sum(self.probabilities)
        return self

    def drawn(self, num_timesteps: int) -> list[int]:
        bins = len(self.probabilities)
        positive = [number for number, share in enumerate(self.probabilities) if share > 0]
        edges = [(number / bins * num_timesteps, (number + 1) / bins * num_timesteps) for number in positive]
        return sorted({t for low, high in edges for t in range(int(low), math.ceil(high))})

    def check_range(self, num_timesteps: int) -> None:
        _require_at_most("binned", len(self.probabilities), num_timesteps)

    def pick(self, uniform: float, num_timesteps: int) -> int:
        index, inside = _categorical(uniform, self.probabilities)
        return int((index + inside) / len(self.probabilities) * num_timesteps)


class Geometric(Timestep):
    """Oversamples noisy timesteps: each bin is drawn ``gamma`` times as often as the noisier one before
    it."""

    formula = "bin i from the noisy end ~ Cat(gamma^i), t uniform inside the bin"
    paper = "Rethinking DPO in diffusion models, arXiv 2505.18736 (number of bins not stated there)"
    name: Literal["geometric"] = "geometric"
    gamma: float = Field(default=0.9, gt=0, le=1, description="ratio of neighbouring bins; 1 is uniform")
    bins: int = Field(default=20, ge=1, description="number of equal bins")

    def check_range(self, num_timesteps: int) -> None:
        _require_at_most("geometric", self.bins, num_timesteps)

    def pick(self, uniform: float, num_timesteps: int) -> int:
        index, inside = _categorical(uniform, tuple(self.gamma**i for i in reversed(range(self.bins))))
        return int((index + inside) / self.bins * num_timesteps)


def _categorical(uniform: float, weights: Sequence[float]) -> tuple[int, float]:
    """Index drawn in proportion to ``weights``, and where in [0, 1) inside that entry the number fell."""
    edges = list(accumulate(weights))
    point = uniform * edges[-1]
    index = min(bisect_right(edges, point), len(weights) - 1)
    start = edges[index - 1] if index else 0.0
    return index, min((point - start) / weights[index], 1.0 - 2**-53) if weights[index] > 0 else 0.0


def _require_at_most(name: str, last: int, num_timesteps: int) -> None:
    if last > num_timesteps:
        raise UserError(
            f"timestep choice {name!r} asks for more timesteps than the model's schedule has",
            found=f"{last}, while the schedule has {num_timesteps}",
            fix=f"stay within 0 .. {num_timesteps - 1}",
        )


def _require_positive_sum(probabilities: Sequence[float]) -> None:
    if sum(probabilities) <= 0:
        raise ValueError("at least one probability must be positive")


TIMESTEPS: dict[str, type[Timestep]] = {
    "uniform": Uniform,
    "range": Range,
    "listed": Listed,
    "binned": Binned,
    "geometric": Geometric,
}
