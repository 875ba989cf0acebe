"""The anchor slot, :data:`ANCHORS`: what is added to the preference term of each item."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.objectives.types import PairErrors


class Anchor(Choice):
    """Base of the slot."""

    def __call__(self, inputs: PairErrors, layout: str) -> Tensor | None:
        """``[B]`` term, or None for nothing. ``layout`` is that of the record, see :class:`PairErrors`."""
        raise NotImplementedError


class NoAnchor(Anchor):
    """Nothing."""

    formula = "0"
    paper = "-"
    name: Literal["none"] = "none"

    def __call__(self, inputs: PairErrors, layout: str) -> None:
        return None


class WinnerError(Anchor):
    """Denoise the winner well: supervised fine-tuning on the preferred picture.

    Of a group every winner counts, of a ranked list the best picture, of a labelled picture its label's share: none
    that is not preferred.
    """

    formula = "c e_w"
    paper = "CPO, arXiv 2401.08417; MaPO, arXiv 2406.06424"
    name: Literal["winner"] = "winner"
    coefficient: float = Field(default=1.0, gt=0, description="c, weight of the winner's error")

    def __call__(self, inputs: PairErrors, layout: str) -> Tensor:
        errors = inputs.policy_winner
        if layout == "ranked":
            best = inputs.required("scores").argmax(1, keepdim=True)
            winners = errors.gather(1, best)[:, 0]
        elif layout == "labelled":
            winners = inputs.required("labels").to(errors) * errors
        else:
            winners = errors.reshape(inputs.batch_size, -1).mean(-1)
        return self.coefficient * winners


ANCHORS: dict[str, type[Anchor]] = {"none": NoAnchor, "winner": WinnerError}
