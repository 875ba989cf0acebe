"""The judges of the shapes world behind the face of a reward model: the oracle, and its users."""

from __future__ import annotations

import re

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reward_models.errors import RewardModelError, unknown_name
from reward_models.images import ImageSource, decode_image
from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer, Prepared, Prompts, expand_prompts
from t2i_align.errors import UserError
from t2i_align.shapes.measure import to_array
from t2i_align.shapes.oracle import DIMENSIONS as PARTS
from t2i_align.shapes.oracle import Oracle
from t2i_align.shapes.users import TASTES, make_user, taste_score
from t2i_align.shapes.world import IMAGE_SIZE

# The oracle is not fitted to anybody's choices; at this scale its smallest difference that counts (0.01) is a
# preference of 55 %, and one of 0.1 is 88 %.
PREFERENCE_SCALE = 20.0
DIMENSIONS = ("overall", *PARTS)


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


class _PictureJudge(BaseScorer):
    """What both judges share: they measure 64-pixel pictures."""

    differentiable = False

    @property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (OraclePicture(),)

    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor:
        raise RewardModelError(f"{self.name} is not differentiable", fix="use a trained head for gradients")

    def _pictures(self, prepared: Prepared) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in prepared[self.preprocessing].numpy()]


class OracleScorer(_PictureJudge):
    """`t2i_align.shapes.oracle.Oracle` in one dimension; scores in [0, 1].

    Args:
        dimension: overall, semantic, aesthetic or detail.
    """

    preference_scale = PREFERENCE_SCALE

    def __init__(self, dimension: str = "overall") -> None:
        if dimension not in DIMENSIONS:
            raise unknown_name("dimension of the oracle", dimension, DIMENSIONS)
        self.dimension, self.version = dimension, Oracle.version
        self.name = "oracle" if dimension == "overall" else f"oracle:{dimension}"
        self.device = torch.device("cpu")

    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        pictures = self._pictures(prepared)
        scores = Oracle().score(expand_prompts(prompts, len(pictures)), pictures)
        return torch.from_numpy(scores[self.dimension])


class TasteScorer(_PictureJudge):
    """A synthetic user: `t2i_align.shapes.users.make_user`; scores in [0, 1], captions play no part.

    Args:
        who: ``ID[@POPULATION][:TASTE+TASTE]``. ``1000003`` cares about colour and brightness, ``1000003:brightness`` is
            one of ``shapes:user-pairs``.

    Raises:
        UserError: nobody is written like that, or has such a taste.
    """

    preference_scale = PREFERENCE_SCALE
    version = "1"

    def __init__(self, who: str) -> None:
        found = re.fullmatch(r"(\d+)(?:@(\d+))?(?::([a-z+]+))?", who)
        if found is None:
            fix = "for example taste:1000003, or taste:1000003:brightness"
            raise UserError("A taste is that of a numbered user.", f"taste:{who}", fix)
        tastes = tuple(found[3].split("+")) if found[3] else ("colour", "brightness")
        if unknown := sorted(set(tastes) - set(TASTES)):
            raise UserError(
                "Nobody has this taste.", f"{', '.join(unknown)} in taste:{who}", f"use {', '.join(TASTES)}"
            )
        self._user, self.name = make_user(int(found[1]), int(found[2] or 0), tastes), f"taste:{who}"
        self.device = torch.device("cpu")

    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        return torch.from_numpy(taste_score(self._user, self._pictures(prepared)))
