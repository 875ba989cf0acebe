"""The logit slot, :data:`LOGITS`."""

from t2i_align.objectives.logits.base import Logit, Terms
from t2i_align.objectives.logits.grouped import GroupMean, PerSample, Ranked
from t2i_align.objectives.logits.pairwise import (
    Divergence,
    Full,
    MultiObjective,
    Reversed,
    Shifted,
    SmoothedByScore,
)
from t2i_align.objectives.logits.reference_free import Likelihood, NoLogit, ReferenceFree

LOGITS: dict[str, type[Logit]] = {
    "full": Full,
    "reversed": Reversed,
    "shifted": Shifted,
    "divergence": Divergence,
    "smoothed_by_score": SmoothedByScore,
    "multi_objective": MultiObjective,
    "reference_free": ReferenceFree,
    "likelihood": Likelihood,
    "per_sample": PerSample,
    "group_mean": GroupMean,
    "ranked": Ranked,
    "none": NoLogit,
}

__all__ = ["LOGITS", "Logit", "Terms"]
