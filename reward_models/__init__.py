"""Reward models for text-to-image: one way to load, score, compare, train and filter.

    scorer = reward_models.load("pickscore", checkpoint="yuvalkirstain/PickScore_v1", device="cuda")
    scorer.score("a red fox", ["a.png", "b.png"])          # float32 [2]
    scorer.score_tensor("a red fox", pixels)               # differentiable in pixels [N, 3, H, W]
    scorer.compare("a red fox", ["a.png", "b.png"])        # probabilities [2]

Importing the package is light; torch and the model libraries come with the first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reward_models.errors import RewardModelError

if TYPE_CHECKING:
    from reward_models.registry import SCORERS, load
    from reward_models.scorer import Scorer

_LAZY = {
    "load": "reward_models.registry",
    "SCORERS": "reward_models.registry",
    "Scorer": "reward_models.scorer",
}

__all__ = ["SCORERS", "RewardModelError", "Scorer", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'reward_models' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
