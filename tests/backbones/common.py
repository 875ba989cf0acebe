"""Helpers shared by the backbone tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_align.backbones import Backbone, load_backbone
from t2i_align.config.schema import ModelConfig

PROMPTS = ["a red star", "nothing much"]


def load(path: Path, dtype: torch.dtype = torch.float32, needs_reference: bool = True, **model: Any) -> Backbone:
    """A backbone from a tiny folder, with the same adapter initialisation every time."""
    torch.manual_seed(0)
    config = ModelConfig(pretrained_model_name_or_path=str(path), **model)
    return load_backbone(config, "cpu", dtype, needs_reference=needs_reference)


def inputs(backbone: Backbone, seed: int = 0) -> dict[str, Any]:
    """Arguments of `predict` for two rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = backbone.time_ids((64, 64), (0, 4), (64, 64))
    return {
        "noisy": torch.randn(2, backbone.latent_channels, 16, 16, generator=generator),
        "timesteps": torch.tensor([3, 801]),
        "prompt": backbone.encode_prompt(PROMPTS),
        "time_ids": None if ids is None else ids.repeat(2, 1),
    }


def reference_prediction(backbone: Backbone, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad(), backbone.reference():
        return backbone.predict(**arguments)


def perturb(backbone: Backbone, scale: float = 0.05) -> None:
    """Move every trained weight a little, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
