"""The scorer that is a function of one cosine: CLIPScore, PickScore, HPS v1, v2 and v2.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reward_models.errors import unknown_name
from reward_models.network import NetworkScorer, TextFeatures
from reward_models.preprocess import Preprocessor
from reward_models.scorer import wide
from reward_models.tokenizers import Tokenise
from reward_models.towers import ClipTower, unit

SCALES = ("cosine", "logit_scale")


class ClipLikeScorer(NetworkScorer):
    """score = scale * cos(text, image), where scale is 1 or exp(logit_scale).

    Args:
        name, version: identity of the weights and settings.
        tower: text and image network.
        tokenise: prompts to ids.
        preprocessor: pictures to inputs of the image tower.
        scale: `cosine` for the bare cosine, `logit_scale` for the trained logit.
        device: where to run.
    """

    model: nn.Module

    def __init__(
        self,
        name: str,
        version: str,
        tower: ClipTower,
        tokenise: Tokenise,
        preprocessor: Preprocessor,
        scale: str,
        device: torch.device,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise unknown_name("scale", scale, SCALES)
        assert isinstance(tower, nn.Module)
        self.name, self.version = name, version
        self.tower, self.model, self.tokenise = tower, tower, tokenise
        self.preprocessor, self.scale, self.device = preprocessor, scale, device

    @property
    def preference_scale(self) -> float:  # type: ignore[override]
        """exp(logit_scale) where the score is a bare cosine: preferences were trained on scaled logits."""
        return 1.0 if self.scale == "logit_scale" else float(self.tower.logit_scale.detach().exp())

    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Unit text features, one tensor [P, D]."""
        return (unit(self.tower.encode_text(self.tokenise(prompts).to(self.device))),)

    def encode_inputs(self, inputs: Tensor) -> Tensor:
        """Unit image features [N, D] of preprocessed pictures [N, 3, S, S]."""
        return unit(self.tower.encode_image(inputs))

    def score_features(self, text: TextFeatures, inputs: Tensor) -> Tensor:
        similarity = (text[0] * self.encode_inputs(inputs)).sum(-1)
        return self.transform(similarity)

    def transform(self, similarity: Tensor) -> Tensor:
        """From cosine [N] to score [N]."""
        if self.scale == "logit_scale":
            return wide(self.tower.logit_scale).exp() * similarity
        return similarity
