"""The logit slot: from errors to implicit rewards and the logit z of one preference.

Notation: e, r are policy and reference errors (means over all non-batch dimensions), d = e - r, and
``k = beta / 2`` is the multiplier of the published Diffusion-DPO code. An image's implicit reward is ``k (r -
e)``: positive when the policy denoises it better than the reference does. Under the reading log p = -e/2,
beta here is the beta of the language-model losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.objectives.types import PairErrors


@dataclass(frozen=True, eq=False)
class Terms:
    """What a link sees; every tensor ``[B]``, or ``[B, P]`` with P image pairs per item for ranked lists.

    Attributes:
        logit: z, the log-odds that the winner is preferred.
        winner, loser: implicit rewards of the two sides.
        policy_margin, reference_margin: k (e_l - e_w) and k (r_l - r_w), for losses that sort them apart.
        halves: ``[B, 2]`` logits of two disjoint half groups.
        pair_weights: ``[B, P]`` weight of each image pair of a ranked list.
    """

    logit: Tensor
    winner: Tensor | None = None
    loser: Tensor | None = None
    policy_margin: Tensor | None = None
    reference_margin: Tensor | None = None
    halves: Tensor | None = None
    pair_weights: Tensor | None = None


class Logit(Choice):
    """Base of the slot. ``provides`` names what links may ask for; ``layout`` is the input it works on."""

    layout: ClassVar[str] = "pair"
    needs_reference: ClassVar[bool] = True
    provides: ClassVar[frozenset[str]] = frozenset({"logit", "item"})

    @property
    def input_layout(self) -> str:
        """Layout of the record this configured choice works on."""
        return self.layout

    @property
    def scale(self) -> float:
        """k, what multiplies a mean squared error to give a reward; 1 where nothing does."""
        return getattr(self, "beta", 2.0) / 2.0

    def __call__(self, inputs: PairErrors) -> Terms:
        raise NotImplementedError

    def _rewards(self, inputs: PairErrors) -> tuple[Tensor, Tensor]:
        """Implicit rewards k (r - e) of the winner and of the loser."""
        return self.scale * (inputs.r_w - inputs.e_w), self.scale * (inputs.r_l - inputs.e_l)
