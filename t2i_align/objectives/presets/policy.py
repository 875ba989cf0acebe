"""Objectives published for diffusion models that change more than the loss: captions, features, latents, reference."""

from __future__ import annotations

from t2i_align.objectives.anchors import WinnerError
from t2i_align.objectives.error_metrics import CleanError, PerceptualError
from t2i_align.objectives.latents import DdimInversion, PolicyRollout, TruncatedRollout
from t2i_align.objectives.links.pairwise import Hinge, NoLink, Softplus
from t2i_align.objectives.logits.pairwise import Full, Reversed, SmoothedByScore
from t2i_align.objectives.logits.reference_free import NoLogit, ReferenceFree
from t2i_align.objectives.presets.base import Preset
from t2i_align.objectives.references import Guarded
from t2i_align.objectives.timestep_weights import NoiseLevel
from t2i_align.objectives.timesteps import Geometric

# fmt: off
POLICY_PRESETS: dict[str, Preset] = {
    "dcpo": Preset(
        Full(beta=500.0), Softplus(), needs=frozenset({"captions"}),
        formula="sp(-z), e_w and r_w under the winner's caption, e_l and r_l under the loser's",
        paper="DCPO, arXiv 2502.06023", at_init="log 2",
        note="Needs a caption per picture: caption_1 in the data, or data.loser_captions: medium.",
    ),
    "ncp_dpo": Preset(
        Full(), Softplus(), error=PerceptualError(),
        formula="sp(-z), errors in the features of the frozen initial denoiser",
        paper="NCP, arXiv 2406.17636", at_init="log 2",
        note="error: {normalise: false} is the paper's scale, thousands of times smaller: raise beta with it.",
    ),
    "ncp_cpo": Preset(
        ReferenceFree(), Softplus(), error=PerceptualError(), anchor=WinnerError(),
        formula="sp(k (e_w - e_l)) + c e_w, errors in features", paper="NCP, arXiv 2406.17636",
        at_init="log 2 + c e_w where e_w = e_l", note="No reference pass.",
    ),
    "ncp_sft": Preset(
        NoLogit(), NoLink(), error=PerceptualError(), anchor=WinnerError(),
        formula="e_w, in features", paper="NCP, arXiv 2406.17636", at_init="e_w",
    ),
    "inpo": Preset(
        Full(beta=2000.0), Softplus(), latents=DdimInversion(steps=10, eta=0.1),
        formula="sp(-z) on latents from DDIM inversion", paper="DDIM-InPO, arXiv 2503.18454", at_init="log 2",
        note="Up to 10 passes without gradients a step. Published from a fine-tuned SD1.5, 400 steps of 1024 pairs.",
    ),
    "smpo": Preset(
        SmoothedByScore(), Softplus(), latents=DdimInversion(steps=5, renoise=1),
        formula="sp(-gamma (2p - 1) z), p from a reward's margin, on latents from corrected DDIM inversion",
        paper="SmPO-Diffusion, arXiv 2506.02698", at_init="log 2",
        note="Published for PickScore's cosine: logit: {score_range: 0.1666}. SDXL used 10 inversion steps.",
    ),
    "dro": Preset(
        Full(beta=2.0), Hinge(margin=0.001), latents=PolicyRollout(),
        formula="max(0, d_w - d_p + m), d_p on states of the model's own sampling",
        paper="Diffusion-DRO, arXiv 2510.18353", at_init="m",
        note="Only winners of the data are used. Every item costs a rollout of the lagging policy.",
    ),
    "npo": Preset(
        Reversed(), Softplus(),
        formula="sp(z): DPO with the sides exchanged", paper="Diffusion-NPO, arXiv 2505.11245", at_init="log 2",
        note="Trains what people dislike. Sample with t2i-align generate --negative-model.",
    ),
    "self_npo": Preset(
        NoLogit(), NoLink(), latents=TruncatedRollout(), error=CleanError(), anchor=WinnerError(),
        formula="pseudo-Huber(x0_hat - x0 of K unconditional steps)", paper="Self-NPO, arXiv 2505.11777",
        at_init="depends on the model",
        note="No preference: a negative model that ignores its prompt. Sample with generate --negative-model.",
    ),
    "rethinking_dpo": Preset(
        Full(), Softplus(), timestep=Geometric(weighting=NoiseLevel()), reference=Guarded(),
        formula="sp(-lambda(t) z), t towards high noise, against a reference that follows while it stays near",
        paper="Rethinking DPO in diffusion models, arXiv 2505.18736", at_init="log 2",
        note="lambda(t) averages above 1: compare with dpo at a beta scaled by it.",
    ),
}
# fmt: on
