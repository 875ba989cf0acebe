"""Objectives published for language models, carried over by reading log p as -e/2 (mean error e).

Under that reading beta is the beta of the original loss, and u = k (r - e) with k = beta/2 is its implicit
reward.
"""

from __future__ import annotations

from t2i_align.objectives.anchors import WinnerError
from t2i_align.objectives.links.batch import Aot, AotUnpaired
from t2i_align.objectives.links.labels import Ternary
from t2i_align.objectives.links.likelihood import Odds
from t2i_align.objectives.links.pairwise import Discopop, Exo, Hinge, Robust, Smoothed, Softplus, Square
from t2i_align.objectives.links.sides import ApoDown, ApoZero, Bco, Nca, SppoHard
from t2i_align.objectives.logits.pairwise import Full, MultiObjective, Shifted
from t2i_align.objectives.logits.reference_free import Likelihood, ReferenceFree
from t2i_align.objectives.presets.base import Preset
from t2i_align.objectives.weights import AdaptiveMargin

# fmt: off
LANGUAGE_PRESETS: dict[str, Preset] = {
    "ipo": Preset(
        Full(), Square(),
        formula="(z - m)^2, m = k/(2 tau)", paper="IPO, arXiv 2310.12036", at_init="m^2",
        note="Written in logit units: k^2 times the paper's loss, same minimiser h = 1/(2 tau) = m/k.",
    ),
    "hinge": Preset(
        Full(), Hinge(),
        formula="max(0, 1 - z)", paper="SLiC-HF, arXiv 2305.10425", at_init="1",
        note="Satisfied pairs stop pulling.",
    ),
    "cdpo": Preset(
        Full(), Smoothed(),
        formula="(1-q) sp(-z) + q sp(z)", paper="cDPO (E. Mitchell, 2023)", at_init="log 2",
        note="For noisy labels; the margin stops at log((1-q)/q).",
    ),
    "rdpo": Preset(
        Full(), Robust(),
        formula="[(1-q) sp(-z) - q sp(z)] / (1-2q)", paper="rDPO, arXiv 2403.00409", at_init="log 2",
        note="Unbiased when labels flip with probability q; unbounded below, so the loss may be negative.",
    ),
    "orpo": Preset(
        Likelihood(), Odds(), anchor=WinnerError(),
        formula="e_w + b sp(-[lo(e_w) - lo(e_l)]), lo(u) = -log(exp(s u) - 1)",
        paper="ORPO, arXiv 2403.07691", at_init="e_w + b log 2 where e_w = e_l",
        note="The diffusers ORPO script has the sign of the odds term reversed; this has not.",
    ),
    "cpo": Preset(
        ReferenceFree(), Softplus(), anchor=WinnerError(),
        formula="sp(k (e_w - e_l)) + c e_w", paper="CPO, arXiv 2401.08417",
        at_init="log 2 + c e_w where e_w = e_l", note="No reference: nothing bounds the drift.",
    ),
    "simpo": Preset(
        ReferenceFree(gamma=0.5), Softplus(),
        formula="sp(k (e_w - e_l) + gamma)", paper="SimPO, arXiv 2405.14734",
        at_init="sp(gamma) where e_w = e_l",
        note="How hard an image is to denoise does not cancel, as it does against a reference.",
    ),
    "alphapo": Preset(
        ReferenceFree(gamma=0.5, alpha=0.25), Softplus(),
        formula="sp(gamma - beta [g(-e_w/2) - g(-e_l/2)]), g(x) = (1 - exp(-alpha x))/alpha",
        paper="AlphaPO, arXiv 2501.03884", at_init="sp(gamma) where e_w = e_l",
        note="SimPO on a bent reward scale.",
    ),
    "dpo_shift": Preset(
        Shifted(), Softplus(),
        formula="sp(-k [(r_w - e_w) - lam (r_l - e_l)])", paper="DPO-Shift, arXiv 2502.07599",
        at_init="log 2", note="When d_w rises while the margin grows: the loser pulls lam times as hard.",
    ),
    "madpo": Preset(
        Full(), Softplus(), weight=AdaptiveMargin(),
        formula="w(margin) sp(-z)", paper="after MADPO, arXiv 2510.05342 (form of the weight is ours)",
        at_init="weight * log 2", note="Hard pairs count more: the opposite hypothesis to gapo's.",
    ),
    "modpo": Preset(
        MultiObjective(preference_weight=0.8), Softplus(),
        formula="sp(-[k h - sum_j w_j margin_j] / w_0)", paper="MODPO, arXiv 2310.03708",
        at_init="sp(sum_j w_j margin_j / w_0)",
        note="Several rewards: logit: {margin_weights: {aesthetic: 0.1, clip: 0.1}}.",
    ),
    "ternary": Preset(
        Full(), Ternary(),
        formula="win: sp(a - z); tie: sp(a - z) + sp(a + z) - log(exp(2a) - 1)",
        paper="TODO, arXiv 2411.02442; DPO-RK, arXiv 2409.17431",
        at_init="win: sp(a); tie: 2 sp(a) - log(exp(2a) - 1)",
        note="Learns from ties: use data.ties: soft.",
    ),
    "exo": Preset(
        Full(), Exo(),
        formula="s(z) [log s(z) - log(1-q)] + s(-z) [log s(-z) - log q]", paper="EXO, arXiv 2402.00856",
        at_init="-log 2 - log(q (1-q))/2", note="Reverse KL to the smoothed label.",
    ),
    "nca": Preset(
        Full(), Nca(),
        formula="sp(-u_w) + [sp(u_w) + sp(u_l)]/2", paper="NCA, arXiv 2402.05369", at_init="2 log 2",
        note="Holds the winner's own reward up.",
    ),
    "bco": Preset(
        Full(), Bco(),
        formula="sp(-u_w) + sp(u_l)", paper="BCO, arXiv 2404.04656", at_init="2 log 2",
        note="Reference point 0, without the running mean.",
    ),
    "apo_zero": Preset(
        Full(), ApoZero(),
        formula="s(-u_w) + s(u_l)", paper="APO, arXiv 2408.06266", at_init="1",
        note="For winners better than what the model makes.",
    ),
    "apo_down": Preset(
        Full(), ApoDown(),
        formula="s(u_w) + s(-z)", paper="APO, arXiv 2408.06266", at_init="1",
        note="For winners worse than what the model makes: at the start only the loser is pushed.",
    ),
    "sppo_hard": Preset(
        Full(), SppoHard(),
        formula="(u_w - 1/2)^2 + (u_l + 1/2)^2", paper="SPPO, arXiv 2405.00675", at_init="1/2",
        note="In logit units: beta^2 times trl's value.",
    ),
    "discopop": Preset(
        Full(), Discopop(),
        formula="(1-b) sp(-z) + b exp(-z), b = s(z / temperature)", paper="DiscoPOP, arXiv 2406.08414",
        at_init="(1 + log 2)/2",
        note="At its published temperature the slope at z = 0 has the wrong sign: it starts by lowering z.",
    ),
    "aot": Preset(
        Full(), Aot(),
        formula="sp(-v), v = policy margin - reference margin of equal rank",
        paper="AOT, arXiv 2406.05882 (paired)", at_init="log 2", note="Sorts the global batch.",
    ),
    "aot_unpaired": Preset(
        Full(), AotUnpaired(),
        formula="sp(-v), v = u_w - u_l of equal rank", paper="AOT, arXiv 2406.05882 (unpaired)",
        at_init="log 2", note="Sorts the global batch; who was compared with whom is not used.",
    ),
}
# fmt: on
