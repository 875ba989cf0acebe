"""Links on the two rewards apart, u_w = k (r_w - e_w) and u_l = k (r_l - e_l); z = u_w - u_l, s = sigmoid.

They say where each side should go, not only how far apart the two should be.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from t2i_align.errors import UserError
from t2i_align.objectives.links.base import Link
from t2i_align.objectives.logits.base import Terms
from t2i_align.objectives.types import PairErrors


class SideLink(Link):
    """Base: hands the two rewards to :meth:`loss`."""

    asks = frozenset({"rewards"})

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        if terms.winner is None or terms.loser is None:
            raise ValueError("this link needs the rewards of both sides")
        return self.loss(terms.winner, terms.loser)

    def loss(self, winner: Tensor, loser: Tensor) -> Tensor:
        """Loss from the two rewards, elementwise."""
        raise NotImplementedError


class Nca(SideLink):
    """Noise contrastive alignment: raises the winner's own reward, not only the difference."""

    formula = "sp(-u_w) + [sp(u_w) + sp(u_l)]/2"
    paper = "NCA, arXiv 2402.05369"
    name: Literal["nca"] = "nca"

    def loss(self, winner: Tensor, loser: Tensor) -> Tensor:
        return softplus(-winner) + 0.5 * (softplus(winner) + softplus(loser))


class Bco(SideLink):
    """Two binary classifications; the reference point is 0, without a running mean."""

    formula = "sp(-u_w) + sp(u_l)"
    paper = "BCO, arXiv 2404.04656"
    name: Literal["bco"] = "bco"

    def loss(self, winner: Tensor, loser: Tensor) -> Tensor:
        return softplus(-winner) + softplus(loser)


class ApoZero(SideLink):
    """Winner up, loser down: for winners better than what the model makes."""

    formula = "s(-u_w) + s(u_l)"
    paper = "APO, arXiv 2408.06266"
    name: Literal["apo_zero"] = "apo_zero"

    def loss(self, winner: Tensor, loser: Tensor) -> Tensor:
        return torch.sigmoid(-winner) + torch.sigmoid(loser)


class ApoDown(SideLink):
    """Both down, the loser more: for winners worse than what the model makes."""

    formula = "s(u_w) + s(-z)"
    paper = "APO, arXiv 2408.06266"
    name: Literal["apo_down"] = "apo_down"

    def loss(self, winner: Tensor, loser: Tensor) -> Tensor:
        return torch.sigmoid(winner) + torch.sigmoid(loser - winner)


class SppoHard(SideLink):
    """Regression of each side to its share of a game's value; in logit units, beta^2 times trl's."""

    formula = "(u_w - 1/2)^2 + (u_l + 1/2)^2"
    paper = "SPPO, arXiv 2405.00675"
    name: Literal["sppo_hard"] = "sppo_hard"

    def loss(self, winner: Tensor, loser: Tensor) -> Tensor:
        return (winner - 0.5).square() + (loser + 0.5).square()


class UnbiasedSquare(Link):
    """IPO on groups without the bias of squaring a mean: the product of two independent half groups."""

    formula = "(z_1 - m)(z_2 - m), z_1 and z_2 from two half groups"
    paper = "mIPO, arXiv 2410.12138 (estimator derived here)"
    asks = frozenset({"halves"})
    name: Literal["unbiased_square"] = "unbiased_square"
    target: float = Field(default=0.5, gt=0, description="m in logit units")

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        if terms.halves is None:
            size = inputs.policy_winner.shape[-1]
            raise UserError("link 'unbiased_square' halves each group", f"groups of {size}", "use an even size")
        return (terms.halves - self.target).prod(-1)
