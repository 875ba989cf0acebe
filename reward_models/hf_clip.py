"""Loading a transformers CLIP folder: configuration, weights, tokenizer, each checked against the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reward_models.errors import RewardModelError
from reward_models.loading import (
    fit_state_dict,
    folder_weights,
    read_json,
    read_state_dict,
    resolve_folder,
    weights_digest,
)
from reward_models.tokenizers import ClipTokenise, has_tokenizer, load_hf_tokenizer
from reward_models.towers import HFClipTower, freeze, without_memory


def load_clip_folder(
    checkpoint: str | Path,
    model_config: str | Path | Mapping[str, Any] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[HFClipTower, str, Path]:
    """Tower, version digest and folder of a CLIP model in the transformers layout (folder or hub id)."""
    folder = resolve_folder(checkpoint)
    weights = folder_weights(folder)
    tower = build_clip_tower(folder / "config.json" if model_config is None else model_config)
    fit_state_dict(tower.clip, read_state_dict(weights), weights, dtype)
    freeze(tower, device)
    return tower, weights_digest([weights]), folder


def clip_tower(config: str | Path | Mapping[str, Any]) -> HFClipTower:
    """A tower with random weights from a CLIP `config.json`."""
    from transformers import CLIPConfig

    content = read_json(config)
    if "text_config" not in content or "vision_config" not in content:
        raise RewardModelError(
            "not a CLIP configuration",
            found=f"{sorted(content)[:8]}",
            fix="it needs text_config and vision_config",
        )
    return HFClipTower(CLIPConfig.from_dict(content))


def build_clip_tower(config: str | Path | Mapping[str, Any]) -> HFClipTower:
    """The same without memory, to be filled from a state dict."""
    with without_memory():
        return clip_tower(config)


def clip_tokenise(tokenizer: str | Path | None, folder: Path | str, tower: HFClipTower) -> ClipTokenise:
    """The tokenizer given by the user, else the folder's own, checked against the text tower."""
    if tokenizer is None and isinstance(folder, Path) and not has_tokenizer(folder):
        raise RewardModelError(
            "the checkpoint folder holds no tokenizer",
            found=str(folder),
            fix="pass tokenizer=FOLDER or a hub id",
        )
    tokenise = ClipTokenise(load_hf_tokenizer(folder if tokenizer is None else tokenizer), tower.context_length)
    tokenise.check(tower.vocab_size, int(tower.config.text_config.eos_token_id))
    return tokenise
