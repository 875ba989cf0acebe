"""PickScore (Kirstain et al. 2023): CLIP ViT-H/14 fine-tuned on Pick-a-Pic.

score(p, x) = exp(logit_scale) * cos(text(p), image(x)), about 18 to 24 as published; the probability
that x is picked among several is the softmax of their scores. `scale="cosine"` gives the raw cosine (0.18 to
0.24), which some training codes use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reward_models.clip_like import ClipLikeScorer
from reward_models.hf_clip import clip_tokenise, load_clip_folder
from reward_models.preprocess import Preprocessor
from reward_models.scorer import version_string


def load_pickscore(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    scale: str = "logit_scale",
) -> ClipLikeScorer:
    """Load PickScore from a transformers CLIP folder or hub id (default `yuvalkirstain/PickScore_v1`)."""
    tower, digest, folder = load_clip_folder(checkpoint or "yuvalkirstain/PickScore_v1", model_config, device, dtype)
    return ClipLikeScorer(
        "pickscore",
        version_string(digest, scale=None if scale == "logit_scale" else scale),
        tower,
        clip_tokenise(tokenizer, folder, tower),
        Preprocessor("clip_pil", tower.image_size),
        scale,
        device,
    )
