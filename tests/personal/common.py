"""Tiny networks with user adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from t2i_align.personal.adapter import UserAdapter, add_user_adapter
from t2i_align.personal.config import PersonalConfig

TABLE = PersonalConfig("table", num_tokens=3, token_width=8, names=("anna", "ben"))
PAIRS = PersonalConfig("pair_set", num_tokens=3, token_width=8, features=6, caption_features=5, hidden=16)


def load(folder: Path, kind: str) -> DiffusionPipeline:
    """A plain pipeline."""
    pipelines: dict[str, Any] = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    pipe = pipelines[kind].from_pretrained(folder, safety_checker=None) if kind == "sd" else None
    pipe = pipe or pipelines[kind].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet_inputs(pipe: DiffusionPipeline, rows: int = 2) -> dict[str, Any]:
    """Arguments of a UNet call."""
    generator = torch.Generator().manual_seed(0)
    config = pipe.unet.config
    inputs: dict[str, Any] = {
        "sample": torch.randn(rows, config.in_channels, 8, 8, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(rows, 7, config.cross_attention_dim, generator=generator),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, pooled, generator=generator),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(rows, 1),
        }
    return inputs


def open_up(adapter: UserAdapter, seed: int = 0, size: float = 3.0) -> None:
    """Random values where training starts at zero, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapter.attention.values():
            layer.value.weight.normal_(0, size, generator=generator)
            if layer.gate is not None:
                layer.gate.fill_(1.0)


def picture(pipe: DiffusionPipeline, guidance_scale: float = 4.0, **kwargs: Any) -> Tensor:
    """Latents of two steps."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "num_inference_steps": 2,
        "guidance_scale": guidance_scale,
        "generator": generator,
        "output_type": "latent",
    }
    return pipe(kwargs.pop("prompt", "a red circle"), **given, **kwargs).images


def add_adapter(folder: Path, config: PersonalConfig) -> UserAdapter:
    """A new adapter in the denoiser of a pipeline folder, nothing else loaded."""
    torch.manual_seed(0)
    return add_user_adapter(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"), config)
