"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_align.objectives.anchors import Anchor, NoAnchor
from t2i_align.objectives.error_metrics import ErrorMetric, PredictionError
from t2i_align.objectives.latents import Latents, SharedNoise
from t2i_align.objectives.links import Link
from t2i_align.objectives.logits import Logit
from t2i_align.objectives.references import Reference
from t2i_align.objectives.timesteps import Timestep, Uniform
from t2i_align.objectives.weights import NoWeight, Weight


@dataclass(frozen=True)
class Preset:
    """A named tuple of choices. Without a reference of its own it follows from the logit: initial if needed, else none.

    ``needs`` are demands on the data that no choice makes. ``at_init`` is the loss at policy == reference, in words;
    ``note`` says when to use it or what to mind.
    """

    logit: Logit
    link: Link
    formula: str
    paper: str
    at_init: str
    note: str = ""
    latents: Latents = SharedNoise()
    error: ErrorMetric = PredictionError()
    timestep: Timestep = Uniform()
    weight: Weight = NoWeight()
    anchor: Anchor = NoAnchor()
    reference: Reference | None = None
    needs: frozenset[str] = frozenset()
