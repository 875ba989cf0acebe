"""The reference slot, :data:`REFERENCES`: which policy the rewards are measured against.

How the initial model is held in memory (adapters switched off, or a frozen copy) is the model section's
business.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2i_align.objectives.base import Choice


class Reference(Choice):
    """Base of the slot."""


class NoReference(Reference):
    """No reference pass is made."""

    formula = "-"
    paper = "-"
    name: Literal["none"] = "none"


class Initial(Reference):
    """The model the run started from, never updated."""

    formula = "r = error of the initial model"
    paper = "DPO, arXiv 2305.18290"
    name: Literal["initial"] = "initial"


class Guarded(Reference):
    """The policy itself of some steps ago, as long as it stays near the initial model.

    Every ``every`` optimiser steps the policy would become the reference. Its divergence from the initial model is
    estimated first, as how much worse it denoises the winners of the batch; once that exceeds ``limit`` the reference
    stays what it is for the rest of the run. The loss starts from its initial value after every update.
    """

    formula = "r = error of the policy some steps ago, while mean(e_w - error of the initial model) <= limit"
    paper = "Rethinking DPO in diffusion models, arXiv 2505.18736"
    name: Literal["guarded"] = "guarded"
    every: int = Field(default=32, ge=1, description="optimiser steps between updates; published 16 to 64")
    limit: float = Field(default=0.005, ge=0, description="largest divergence; published 0.005 (SD1.5), 0.002 (SDXL)")


class Moving(Reference):
    """An average that follows the policy, whatever the distance: copies of the policy are mixed in every so often.

    ``mix: 1`` replaces the reference (a hard update); ``every: 1`` with a small mix is an exponential moving average.
    Nothing bounds the drift from the initial model; ``guarded`` does.
    """

    formula = "r = error of an average R; every so many steps R <- mix * policy + (1 - mix) * R, initial model first"
    paper = "TR-DPO, arXiv 2404.09656"
    name: Literal["moving"] = "moving"
    every: int = Field(default=512, ge=1, description="optimiser steps between updates")
    mix: float = Field(default=0.6, gt=0, le=1, description="share of the policy in the new reference")


REFERENCES: dict[str, type[Reference]] = {
    "none": NoReference,
    "initial": Initial,
    "guarded": Guarded,
    "moving": Moving,
}
