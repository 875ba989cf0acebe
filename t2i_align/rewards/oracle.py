"""The judge of the shapes world behind the face of a reward model."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reward_models.errors import RewardModelError, unknown_name
from reward_models.images import ImageSource, decode_image
from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer, Prepared, Prompts, expand_prompts
from t2i_align.shapes.measure import to_array
from t2i_align.shapes.oracle import DIMENSIONS, Oracle
from t2i_align.shapes.world import IMAGE_SIZE

# The oracle is not fitted to anybody's choices; at this scale its smallest difference that counts (0.01) is a
# preference of 55 %, and one of 0.1 is 88 %.
PREFERENCE_SCALE = 20.0


class OraclePicture(Preprocessor):
    """The 64-pixel RGB picture that the oracle measures, uint8 [64, 64, 3]."""

    def __init__(self) -> None:
        # A pipeline of its own, without CLIP's normalisation, so the base class's check of names does not apply.
        object.__setattr__(self, "name", "shapes_oracle")
        object.__setattr__(self, "size", IMAGE_SIZE)

    def __call__(self, source: ImageSource) -> Tensor:
        return torch.from_numpy(to_array([decode_image(source)])[0].astype(np.uint8))

    def tensor(self, pixels: Tensor) -> Tensor:
        raise RewardModelError("the oracle is not differentiable", fix="use a trained head for gradients")


class OracleScorer(BaseScorer):
    """`t2i_align.shapes.oracle.Oracle` in one dimension; scores in [0, 1].

    Args:
        dimension: overall, semantic, aesthetic or detail.
    """

    preference_scale = PREFERENCE_SCALE

    def __init__(self, dimension: str = "overall") -> None:
        known = ("overall", *DIMENSIONS)
        if dimension not in known:
            raise unknown_name("dimension of the oracle", dimension, known)
        self.dimension, self.version = dimension, Oracle.version
        self.name = "oracle" if dimension == "overall" else f"oracle:{dimension}"
        self.device = torch.device("cpu")

    @property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (OraclePicture(),)

    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        pictures = [Image.fromarray(picture) for picture in prepared[self.preprocessing].numpy()]
        scores = Oracle().score(expand_prompts(prompts, len(pictures)), pictures)
        return torch.from_numpy(scores[self.dimension])

    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor:
        raise RewardModelError("the oracle is not differentiable", fix="use a trained head for gradients")
