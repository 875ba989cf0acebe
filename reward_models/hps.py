"""HPS v1, v2 and v2.1 (Wu et al. 2023): CLIP fine-tuned on human preferences.

score(p, x) = cos(text(p), image(x)), without the logit scale; tables print 100 times that. v2 spans about
0.23-0.29, v2.1 0.14-0.34, and the two are not comparable. `scale="logit_scale"` gives the logit that training
and the official ranking evaluation use; the order of images does not change.

v1 is OpenAI's ViT-L/14 with OpenAI's preprocessing; v2 and v2.1 are open_clip's ViT-H-14 on pictures whose longest
side is 224 and which are zero-padded before normalisation. Differences from the official v2 code, on purpose: every
picture becomes RGB first (the original crashes on RGBA) and one whose longest side is exactly 224 is padded too (the
original crashes unless it is square).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reward_models.clip_like import ClipLikeScorer
from reward_models.errors import RewardModelError
from reward_models.loading import (
    fit_state_dict,
    folder_weights,
    read_json,
    read_state_dict,
    resolve_file,
    weights_digest,
)
from reward_models.preprocess import Preprocessor
from reward_models.scorer import version_string
from reward_models.tokenizers import (
    ClipTokenise,
    OpenClipTokenise,
    Tokenise,
    has_tokenizer,
    load_hf_tokenizer,
)
from reward_models.towers import OpenClipTower, freeze, open_clip_config, without_memory

MODEL_CONFIG_FILE = "model_config.json"
_OPEN_CLIP_VOCABULARY = 49408


@dataclass(frozen=True)
class _Release:
    """What differs between the published models."""

    architecture: str
    preprocessing: str
    checkpoint: str | None


_RELEASES = {
    "hps_v1": _Release("ViT-L-14-quickgelu", "openai", None),
    "hpsv2": _Release("ViT-H-14", "hpsv2_rgb_first", "xswu/HPSv2:HPS_v2_compressed.pt"),
    "hpsv2.1": _Release("ViT-H-14", "hpsv2_rgb_first", "xswu/HPSv2:HPS_v2.1_compressed.pt"),
}


def load_hps_v1(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    scale: str = "cosine",
) -> ClipLikeScorer:
    """Load HPS v1 from `hpc.pth` (weights under `state_dict`, OpenAI names); no hub copy exists."""
    return _load("hps_v1", checkpoint, device, dtype, tokenizer, model_config, scale, None)


def load_hpsv2(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    scale: str = "cosine",
    preprocessing: str | None = None,
) -> ClipLikeScorer:
    """Load HPS v2: a `.pt` with `state_dict`, full or compressed, safetensors, or a saved folder."""
    return _load("hpsv2", checkpoint, device, dtype, tokenizer, model_config, scale, preprocessing)


def load_hpsv21(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    scale: str = "cosine",
    preprocessing: str | None = None,
) -> ClipLikeScorer:
    """Load HPS v2.1; the layouts are those of `load_hpsv2`."""
    return _load("hpsv2.1", checkpoint, device, dtype, tokenizer, model_config, scale, preprocessing)


def _load(
    name: str,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None,
    model_config: str | Path | Mapping[str, Any] | None,
    scale: str,
    preprocessing: str | None,
) -> ClipLikeScorer:
    release = _RELEASES[name]
    source = checkpoint or release.checkpoint
    if source is None:
        raise RewardModelError(
            f"{name} has no published hub checkpoint",
            fix="pass checkpoint=hpc.pth from the authors' page (github.com/tgxs002/align_sd)",
        )
    folder = Path(source).expanduser() if Path(source).expanduser().is_dir() else None
    weights = folder_weights(folder) if folder else resolve_file(source)
    if model_config is None and folder and (folder / MODEL_CONFIG_FILE).is_file():
        model_config = folder / MODEL_CONFIG_FILE
    if tokenizer is None and folder and has_tokenizer(folder):
        tokenizer = folder
    with without_memory():
        tower = open_clip_tower(release.architecture if model_config is None else model_config)
    fit_state_dict(tower.clip, read_state_dict(weights), weights, dtype)
    freeze(tower, device)
    return ClipLikeScorer(
        name,
        version_string(weights_digest([weights]), scale=None if scale == "cosine" else scale),
        tower,
        hps_tokenise(tokenizer, tower),
        Preprocessor(preprocessing or release.preprocessing, tower.image_size),
        scale,
        device,
    )


def open_clip_tower(config: str | Path | Mapping[str, Any]) -> OpenClipTower:
    """A tower with random weights from a JSON file, a mapping or the name of an open_clip architecture."""
    if isinstance(config, Mapping) or Path(config).suffix == ".json":
        return OpenClipTower(open_clip_config(read_json(config)))
    return OpenClipTower(open_clip_config(str(config)))


def hps_tokenise(tokenizer: str | Path | None, tower: OpenClipTower) -> Tokenise:
    """open_clip's own vocabulary, or a small model's CLIP tokenizer padded with zeros as open_clip pads."""
    if tokenizer is None:
        if tower.vocab_size != _OPEN_CLIP_VOCABULARY:
            raise RewardModelError(
                "this model needs its own tokenizer",
                found=f"a vocabulary of {tower.vocab_size}, open_clip's has {_OPEN_CLIP_VOCABULARY}",
                fix="pass tokenizer=FOLDER",
            )
        return OpenClipTokenise(tower.context_length)
    tokenise = ClipTokenise(load_hf_tokenizer(tokenizer), tower.context_length, pad_id=0)
    tokenise.check(tower.vocab_size, eos_token_id=2)  # open_clip pools at the highest id
    return tokenise
