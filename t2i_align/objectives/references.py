"""The reference slot, :data:`REFERENCES`: which policy the rewards are measured against.

How the initial model is held in memory (adapters switched off, or a frozen copy) is the model section's
business.
"""

from __future__ import annotations

from typing import Literal

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


REFERENCES: dict[str, type[Reference]] = {"none": NoReference, "initial": Initial}
