"""Links that read a label per item: how sure the preference is, or that it is a tie."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from t2i_align.objectives.links.base import Link
from t2i_align.objectives.logits.base import Terms
from t2i_align.objectives.types import PairErrors


class SoftLabel(Link):
    """Cross-entropy with the probability p that the winner is preferred; a tie pulls z to 0."""

    formula = "p sp(-z) + (1-p) sp(z), p = labels"
    paper = "cDPO with a label per item"
    asks = frozenset({"item"})
    reads = frozenset({"labels"})
    name: Literal["soft_label"] = "soft_label"

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        preferred = inputs.required("labels").to(terms.logit)
        return preferred * softplus(-terms.logit) + (1 - preferred) * softplus(terms.logit)


class Ternary(Link):
    """A tie is a third outcome with a probability of its own (Rao-Kupper), not half a win.

    P(win) = s(z - a), P(loss) = s(-z - a), P(tie) = (exp(2a) - 1) s(z - a) s(-z - a); they sum to 1. A label
    p in between is spread over the two nearest outcomes, so 1 is a win, 1/2 a tie, 0 a loss.
    """

    formula = "win: sp(a - z); tie: sp(a - z) + sp(a + z) - log(exp(2a) - 1)"
    paper = "TODO, arXiv 2411.02442; DPO-RK, arXiv 2409.17431"
    asks = frozenset({"item"})
    reads = frozenset({"labels"})
    models_ties = True
    name: Literal["ternary"] = "ternary"
    tie_width: float = Field(
        default=0.5, gt=0, description="a in logit units; half of the range of z that reads as a tie"
    )

    def __call__(self, terms: Terms, inputs: PairErrors) -> Tensor:
        preferred = inputs.required("labels").to(terms.logit)
        win, loss = softplus(self.tie_width - terms.logit), softplus(self.tie_width + terms.logit)
        tie = win + loss - math.log(math.expm1(2.0 * self.tie_width))
        certain = (2.0 * preferred - 1.0).abs()
        decided = win.where(preferred >= 0.5, loss)
        return certain * decided + (1.0 - certain) * tie
