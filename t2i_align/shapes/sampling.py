"""Sampling the base model, or a tuned one, through plain diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from ..errors import UserError
from .world import IMAGE_SIZE

NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 3.0


def load_pipeline(model: str | Path) -> StableDiffusionXLPipeline:
    """The pipeline in `model`, a local folder, in fp32 on the CPU and without a progress bar."""
    if not (Path(model) / "model_index.json").is_file():
        raise UserError("no diffusers pipeline here", f"{model} has no model_index.json", "name a pipeline folder")
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_inference_steps: int = NUM_INFERENCE_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    batch_size: int = 64,
) -> list[Image.Image]:
    """One picture per prompt; picture i depends on `prompts[i]` and `seeds[i]`; batching may change its last bits."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        images += pipeline(
            prompt=list(prompts[batch]),
            generator=[torch.Generator().manual_seed(int(seed)) for seed in seeds[batch]],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=IMAGE_SIZE,
            width=IMAGE_SIZE,
        ).images
    return images
