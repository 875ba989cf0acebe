"""What a link is: from logits (or rewards) to a loss per item."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.objectives.logits.base import Terms
from t2i_align.objectives.types import PairErrors


class Link(Choice):
    """Base of the slot. ``asks`` must be among what the logit ``provides``.

    ============== =====================================================================================
    logit          z, elementwise: works on pairs, groups and ranked lists
    item           one z per item, so that per-item labels apply
    rewards        reward of each side against the reference
    margins        policy and reference margins apart
    halves         logits of two half groups
    likelihoods    positive errors without a reference, unscaled
    samples        rewards of single images with their own labels
    nothing        no preference term
    ============== =====================================================================================
    """

    asks: ClassVar[frozenset[str]] = frozenset({"logit"})
    models_ties: ClassVar[bool] = False  # ties must be among the data
    least_batch: ClassVar[int] = 1  # items, over all processes, that a statistic of the batch needs

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        """Loss with the shape of ``terms.logit``."""
        raise NotImplementedError

    def metrics(self, terms: Terms, inputs: PairErrors) -> dict[str, Tensor]:
        """Extra things to log, detached; none by default."""
        return {}
