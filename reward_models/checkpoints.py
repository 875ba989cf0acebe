"""Writing trainable scorers in the layouts `load` reads, and starting new ones from random weights.

pickscore           config.json, model.safetensors (transformers CLIP names), tokenizer files
hps_v1, hpsv2(.1)   model_config.json, model.safetensors (open_clip names), tokenizer files if not
open_clip's mps                 clip_config.json, cross_config.json, model.safetensors (official names),
tokenizer files
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.clip_like import ClipLikeScorer
from reward_models.errors import RewardModelError, unknown_name
from reward_models.files import share
from reward_models.hf_clip import clip_tokenise, clip_tower
from reward_models.hps import MODEL_CONFIG_FILE, hps_tokenise, open_clip_tower
from reward_models.mps import (
    CLIP_CONFIG_FILE,
    FUSION_CONFIG_FILE,
    MPSNetwork,
    MPSScorer,
    mps_network,
    network_configs,
)
from reward_models.network import NetworkScorer
from reward_models.tokenizers import ClipTokenise, Tokenise
from reward_models.towers import HFClipTower, OpenClipTower

TRAINABLE = ("pickscore", "hps_v1", "hpsv2", "hpsv2.1", "mps")


def save_scorer(scorer: NetworkScorer, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a trainable scorer to `folder`, complete or not at all; returns the folder.

    Raises:
        RewardModelError: a scorer that is not one of `TRAINABLE`, or the folder holds something already.
    """
    if not isinstance(scorer, (ClipLikeScorer, MPSScorer)):
        options = ", ".join(TRAINABLE)
        raise RewardModelError("this scorer cannot be saved", found=scorer.name, fix=f"choose from: {options}")
    return write_network(scorer.model, scorer.tokenise, Path(folder), dtype)


def write_random(
    name: str,
    folder: str | Path,
    model_config: str | Path | Mapping[str, Any],
    tokenizer: str | Path | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint with random weights, the start of a training run or a stand-in for a real one.

    Args:
        name: one of `TRAINABLE`.
        folder: new or empty folder.
        model_config: the configuration in the scorer's own form (CLIP config, open_clip config, `clip` +
            `cross`).
        tokenizer: folder or hub id; HPS models with open_clip's vocabulary need none.
        seed: of the random weights; torch's global generator is left untouched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "pickscore":
            network: nn.Module = clip_tower(model_config)
        elif name == "mps":
            network = mps_network(*network_configs(Path(), model_config))
        elif name in TRAINABLE:
            network = open_clip_tower(model_config)
        else:
            raise unknown_name("trainable scorer", name, TRAINABLE)
    return write_network(network, _tokenise(network, tokenizer), Path(folder), dtype)


def _tokenise(network: nn.Module, tokenizer: str | Path | None) -> Tokenise:
    if isinstance(network, OpenClipTower):
        return hps_tokenise(tokenizer, network)
    tower = network.tower if isinstance(network, MPSNetwork) else network
    assert isinstance(tower, HFClipTower)
    if tokenizer is None:
        raise RewardModelError("a new model needs a tokenizer", fix="pass tokenizer=FOLDER")
    return clip_tokenise(tokenizer, str(tokenizer), tower)


def write_network(network: nn.Module, tokenise: Tokenise | None, folder: Path, dtype: torch.dtype) -> Path:
    """Write weights, configuration and tokenizer under a temporary name, then rename."""
    if folder.exists() and any(folder.iterdir()):
        raise RewardModelError("the output folder is not empty", found=str(folder), fix="choose a new folder")
    state, configs = network_contents(network)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in configs.items():
        (partial / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(
        {name: _stored(value, dtype) for name, value in state.items()},
        partial / "model.safetensors",
        metadata={"format": "pt"},
    )
    if isinstance(tokenise, ClipTokenise):
        tokenise.tokenizer.save_pretrained(partial)
    if folder.exists():
        folder.rmdir()
    share(partial)
    os.replace(partial, folder)
    return folder


def network_contents(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict under its published names, and the configuration files by name."""
    if isinstance(network, OpenClipTower):
        return dict(network.clip.state_dict()), {MODEL_CONFIG_FILE: network.config}
    if isinstance(network, HFClipTower):
        return dict(network.clip.state_dict()), {"config.json": network.config.to_dict()}
    assert isinstance(network, MPSNetwork)
    state = {f"model.{name}": value for name, value in network.tower.clip.state_dict().items()}
    state.update({f"cross_model.{name}": value for name, value in network.cross_model.state_dict().items()})
    return state, {
        CLIP_CONFIG_FILE: network.tower.config.to_dict(),
        FUSION_CONFIG_FILE: asdict(network.fusion)
        | {"mask_threshold": network.mask_threshold}
        | ({"conditions": network.conditions} if network.conditions else {}),
    }


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    return (value.to(dtype) if value.is_floating_point() else value).contiguous().clone()
