"""What a preference pair is to this package; any source can produce it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reward_models.errors import RewardModelError
from reward_models.images import ImageSource


@dataclass(frozen=True)
class PreferenceRecord:
    """Two pictures of one prompt and who won.

    Attributes:
        prompt: the text both pictures were made for.
        image_a, image_b: anything `reward_models.images.decode_image` reads; decoded only when used.
        label_a: probability that a is preferred: 1 a won, 0 b won, 0.5 a tie, anything between a soft label.
        dimension_labels: the same per dimension (`semantic`, `aesthetic` ...); a missing one is unknown.
        weight: weight of the pair in the loss, at least 0.
    """

    prompt: str
    image_a: ImageSource
    image_b: ImageSource
    label_a: float
    dimension_labels: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        labels = {"label_a": self.label_a, **self.dimension_labels}
        for name, label in labels.items():
            if not 0 <= label <= 1:  # also catches NaN
                raise RewardModelError("a label must lie in [0, 1]", found=f"{name} = {label}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise RewardModelError("a weight must be finite and at least 0", found=str(self.weight))

    def label(self, dimension: str) -> float:
        """Label of a dimension; `overall` is `label_a` unless given; NaN where unknown."""
        if dimension == "overall":
            return self.dimension_labels.get("overall", self.label_a)
        return self.dimension_labels.get(dimension, math.nan)


def prompt_weights(prompts: Iterable[str]) -> list[float]:
    """1 / (number of pairs of the same prompt) for every pair, PickScore's weighting of repeated prompts."""
    prompts = list(prompts)
    counts = Counter(prompts)
    return [1 / counts[prompt] for prompt in prompts]
