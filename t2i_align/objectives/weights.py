"""The weight slot, :data:`WEIGHTS`: how much each item counts. Weights from the data multiply on top of
it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.objectives.types import PairErrors


class Weight(Choice):
    """Base of the slot."""

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


WEIGHTS: dict[str, type[Weight]] = {"none": NoWeight}
