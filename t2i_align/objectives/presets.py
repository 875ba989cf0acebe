"""The presets, :data:`PRESETS`: published objectives as tuples of slot choices.

Notation: e, r policy and reference errors, h = (r_w - e_w) - (r_l - e_l), z = k h, k = beta/2, sp(u) = log(1
+ exp(u)).
"""

from __future__ import annotations

from dataclasses import dataclass

from t2i_align.objectives.anchors import Anchor, NoAnchor, WinnerError
from t2i_align.objectives.error_metrics import ErrorMetric, PredictionError
from t2i_align.objectives.latents import Latents, SharedNoise
from t2i_align.objectives.links import Link
from t2i_align.objectives.links.likelihood import Bounded, BoundedPower
from t2i_align.objectives.links.pairwise import NoLink, Softplus
from t2i_align.objectives.logits import Logit
from t2i_align.objectives.logits.pairwise import Full
from t2i_align.objectives.logits.reference_free import Likelihood, NoLogit
from t2i_align.objectives.timesteps import Timestep, Uniform
from t2i_align.objectives.weights import NoWeight, Weight


@dataclass(frozen=True)
class Preset:
    """A named tuple of choices. The reference follows from the logit: initial where it is needed, else none.

    ``at_init`` is the loss at policy == reference, in words; ``note`` says when to use it or what to mind.
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


# fmt: off
PRESETS: dict[str, Preset] = {
    "sft": Preset(
        NoLogit(), NoLink(), anchor=WinnerError(),
        formula="e_w", paper="supervised fine-tuning on preferred images", at_init="e_w",
        note="The control every preference method must beat.",
    ),
    "dpo": Preset(
        Full(), Softplus(),
        formula="sp(-z)", paper="Diffusion-DPO, arXiv 2311.12908", at_init="log 2",
        note="Published: beta 2000 to 5000; AdamW on SD1.5, Adafactor on SDXL, 2048 pairs a step.",
    ),
    "mapo": Preset(
        Likelihood(), Bounded(), anchor=WinnerError(),
        formula="e_w + b sp(-T [q(e_w) - q(e_l)]), q(u) = s u / (exp(s u) - 1)",
        paper="MaPO, arXiv 2406.06424 (released code)", at_init="e_w + b log 2 where e_w = e_l",
        note="No reference pass. The margin term outweighs the winner's error about 12 to 1 at its defaults.",
    ),
    "mapo_paper": Preset(
        Likelihood(), BoundedPower(), anchor=WinnerError(),
        formula="e_w + (1/b) sp(-[phi(e_w) - phi(e_l)]), phi(u) = (u / (exp(u) - 1))^b",
        paper="MaPO, arXiv 2406.06424v2", at_init="e_w + (log 2)/b where e_w = e_l",
        note="Weighted unlike the released code: here the winner's error outweighs the margin term.",
    ),
}
# fmt: on
