"""CLIPScore (Hessel et al. 2021): weight * max(cos(text, image), 0), reference-free.

The paper's form is OpenAI ViT-B/32, weight 2.5, the prefix "A photo depicts " and OpenAI's preprocessing; those are
the defaults. torchmetrics' form is `weight=100, prefix="", preprocessing="clip_pil"`. Always report which. Where the
cosine is negative the score is 0 and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_models.clip_like import ClipLikeScorer
from reward_models.hf_clip import clip_tokenise, load_clip_folder
from reward_models.network import TextFeatures
from reward_models.preprocess import Preprocessor
from reward_models.scorer import version_string

PREFIX = "A photo depicts "
WEIGHT = 2.5


class ClipScore(ClipLikeScorer):
    """See the module docstring."""

    prefix: str = PREFIX
    weight: float = WEIGHT

    @property
    def preference_scale(self) -> float:  # type: ignore[override]
        """CLIP's own logit of a positive cosine; not fitted to human preferences."""
        return float(self.tower.logit_scale.detach().exp()) / self.weight

    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        return super().encode_prompts([f"{self.prefix}{prompt}" for prompt in prompts])

    def transform(self, similarity: Tensor) -> Tensor:
        return self.weight * similarity.clamp(min=0)


def load_clip_score(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    prefix: str = PREFIX,
    weight: float = WEIGHT,
    preprocessing: str = "openai",
) -> ClipScore:
    """Load CLIPScore on any transformers CLIP folder or hub id (default `openai/clip-vit-base-patch32`)."""
    source = checkpoint or "openai/clip-vit-base-patch32"
    tower, digest, folder = load_clip_folder(source, model_config, device, dtype)
    version = version_string(
        digest,
        prefix=None if prefix == PREFIX else repr(prefix),
        weight=None if weight == WEIGHT else weight,
    )
    tokenise = clip_tokenise(tokenizer, folder, tower)
    preprocessor = Preprocessor(preprocessing, tower.image_size)
    scorer = ClipScore("clip_score", version, tower, tokenise, preprocessor, "cosine", device)
    scorer.prefix, scorer.weight = prefix, weight
    return scorer
