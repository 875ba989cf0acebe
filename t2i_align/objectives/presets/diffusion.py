"""Objectives published for diffusion models.

Notation: e, r policy and reference errors, d = e - r, h = d_l - d_w, k = beta/2, z = k h, sp(u) = log(1 +
exp(u)).
"""

from __future__ import annotations

from t2i_align.objectives.anchors import WinnerError
from t2i_align.objectives.latents import IndependentNoise
from t2i_align.objectives.links.batch import Kto
from t2i_align.objectives.links.likelihood import Bounded, BoundedPower
from t2i_align.objectives.links.pairwise import NoLink, Softplus, Square
from t2i_align.objectives.logits.grouped import GroupMean, PerSample, Ranked
from t2i_align.objectives.logits.pairwise import Full
from t2i_align.objectives.logits.reference_free import Likelihood, NoLogit
from t2i_align.objectives.presets.base import Preset
from t2i_align.objectives.weights import Curriculum, Gain, Rarity

# fmt: off
DIFFUSION_PRESETS: dict[str, Preset] = {
    "sft": Preset(
        NoLogit(), NoLink(), anchor=WinnerError(),
        formula="e_w", paper="supervised fine-tuning on preferred images", at_init="e_w",
        note="The control every preference method must beat.",
    ),
    "dpo": Preset(
        Full(), Softplus(),
        formula="sp(-z)", paper="Diffusion-DPO, arXiv 2311.12908", at_init="log 2",
        note="Published: beta 2000 to 5000, 2048 pairs a step, AdamW on SD1.5 and Adafactor on SDXL.",
    ),
    "mapo": Preset(
        Likelihood(), Bounded(), anchor=WinnerError(),
        formula="e_w + b sp(-T [q(e_w) - q(e_l)]), q(u) = s u / (exp(s u) - 1)",
        paper="MaPO, arXiv 2406.06424 (released code)", at_init="e_w + b log 2 where e_w = e_l",
        note="No reference pass. At its defaults the margin term outweighs the winner's error about 12 to 1.",
    ),
    "mapo_paper": Preset(
        Likelihood(), BoundedPower(), anchor=WinnerError(),
        formula="e_w + (1/b) sp(-[phi(e_w) - phi(e_l)]), phi(u) = (u / (exp(u) - 1))^b",
        paper="MaPO, arXiv 2406.06424v2", at_init="e_w + (log 2)/b where e_w = e_l",
        note="Not the released code's weighting: here the winner's error outweighs the margin term.",
    ),
    "kto": Preset(
        PerSample(), Kto(), latents=IndependentNoise(),
        formula="w_y (1 - s(y (u - u0))), u = beta (r - e), u0 = max(0, batch mean of u)",
        paper="Diffusion-KTO, arXiv 2404.04465", at_init="w_y / 2",
        note="beta has no factor 1/2. u0 is a batch statistic: use large batches. "
             "logit: {items: labelled} takes single labelled images instead of pairs.",
    ),
    "rankdpo": Preset(
        Ranked(), Softplus(), latents=IndependentNoise(),
        formula="sum over pairs of Delta_ij sp(-z_ij), Delta_ij = |2^s_i - 2^s_j| |1/D_i - 1/D_j|",
        paper="RankDPO, arXiv 2410.18013", at_init="log 2 sum Delta_ij",
        note="K images a prompt with scores in [0, 1]; K passes serve K (K-1)/2 pairs.",
    ),
    "mdpo": Preset(
        GroupMean(), Softplus(),
        formula="sp(-z), z from group means", paper="mDPO, arXiv 2410.12138", at_init="log 2",
        note="M winners and M losers a prompt; the mean inside the logistic biases it for small M.",
    ),
    "mipo": Preset(
        GroupMean(), Square(),
        formula="(z - m)^2, z from group means", paper="mIPO, arXiv 2410.12138", at_init="m^2",
        note="link: unbiased_square removes the bias of squaring a mean, for even M.",
    ),
    "gapo": Preset(
        Full(), Softplus(), weight=Gain(),
        formula="(2^score_w - 2^score_l) sp(-z)", paper="GAPO (AniSora), arXiv 2504.10044",
        at_init="weight * log 2",
        note="Scores in [0, 1]. Near ties weigh little: weight: {normalize: true} keeps the loss's scale.",
    ),
    "video_dpo_weight": Preset(
        Full(), Softplus(), weight=Rarity(),
        formula="(0.72 / frequency)^a sp(-z)", paper="VideoDPO, arXiv 2412.14167 (released code)",
        at_init="weight * log 2", note="Pairs with rare scores count more; the published run had a = 0.",
    ),
    "curriculum": Preset(
        Full(), Softplus(), weight=Curriculum(),
        formula="1[difficulty < (stage + 1)/stages] sp(-z)",
        paper="Curriculum DPO, arXiv 2405.13637; Curry-DPO", at_init="log 2, or 0 before a pair's stage",
        note="Pairs of later stages weigh 0 until their stage begins.",
    ),
}
# fmt: on
