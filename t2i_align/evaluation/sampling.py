"""Drawing pictures from a diffusers pipeline so that each depends on its prompt and seed alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i_align.errors import UserError

Pipeline = Any  # a diffusers DiffusionPipeline; its classes are too many to name


@torch.no_grad()
def sample_images(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Sample one picture per prompt.

    Picture i starts from ``torch.Generator("cpu").manual_seed(seeds[i])``, exactly as a call of the plain
    pipeline with that generator would, so it does not depend on the batch it is drawn in (up to
    floating-point order).

    The pipeline is left as it was found: training flags, scheduler state, progress bar setting and the global random
    stream. So it may share its modules with a training run.

    Args:
        pipeline: a text-to-image pipeline with ``vae`` and ``unet`` or ``transformer``.
        prompts, seeds: same length.
        height, width: in pixels; None is the pipeline's own size.
        negative_prompt: that the pictures are guided away from; None is what the pipeline takes by itself, which is not
            the empty text in SDXL.
        on_batch: called with the number of pictures finished since the last call.

    Returns:
        RGB pictures in the order of the prompts.

    Raises:
        UserError: a negative prompt without guidance.
    """
    check_negative_prompt(negative_prompt, guidance_scale, pipeline)
    if len(prompts) != len(seeds):
        raise ValueError(f"one seed per prompt: got {len(prompts)} prompts and {len(seeds)} seeds")
    images: list[Image.Image] = []
    with _untouched(pipeline):
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            with _mixed_precision(pipeline):
                latents = pipeline(
                    prompt=list(prompts[rows]),
                    negative_prompt=_for_each(negative_prompt, prompts[rows]),
                    generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[rows]],
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    height=height,
                    width=width,
                    output_type="latent",
                ).images
            images += decode_latents(pipeline, latents)
            if on_batch is not None:
                on_batch(len(latents))
    return images


@torch.no_grad()
def continue_images(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    images: Sequence[Image.Image],
    *,
    strength: float,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    negative_prompt: str | None = None,
) -> list[Image.Image]:
    """Bring pictures part of the way back to noise and denoise them again, all in one batch.

    Args:
        strength: share of the steps that is done again; at 1 nothing of the picture is left.
        negative_prompt: see ``sample_images``.

    Returns:
        RGB pictures in the order given; the pipeline is left as it was found.
    """
    from diffusers import AutoPipelineForImage2Image

    with _untouched(pipeline):
        again = AutoPipelineForImage2Image.from_pipe(pipeline)
        again.set_progress_bar_config(disable=True)
        with _mixed_precision(pipeline):
            latents = again(
                prompt=list(prompts),
                negative_prompt=_for_each(negative_prompt, prompts),
                image=list(images),
                strength=strength,
                generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                output_type="latent",
            ).images
        return decode_latents(pipeline, latents)


def check_negative_prompt(negative_prompt: str | None, guidance_scale: float, pipeline: Pipeline | None = None) -> None:
    """A negative prompt acts through guidance alone, which must be on.

    Args:
        pipeline: None while it is not loaded; a UNet that is told the guidance scale (a latent consistency model) makes
            no second pass for it.

    Raises:
        UserError: guidance is off.
    """
    if negative_prompt is None:
        return
    unet = getattr(pipeline, "unet", None)
    found = f"guidance_scale {guidance_scale:g}"
    if unet is not None and unet.config.get("time_cond_proj_dim") is not None:
        raise UserError("This model is guided without a negative prompt.", found, "leave the negative prompt out")
    if guidance_scale <= 1.0:
        raise UserError(
            "A negative prompt acts through guidance, which is off.",
            found,
            "use a guidance scale above 1, or no negative prompt",
        )


def _for_each(negative_prompt: str | None, prompts: Sequence[str]) -> list[str] | None:
    return None if negative_prompt is None else [negative_prompt] * len(prompts)


@torch.no_grad()
def decode_latents(pipeline: Pipeline, latents: Tensor) -> list[Image.Image]:
    """Scaled latents ``[B, C, h, w]`` -> B pictures, in float32 where the VAE overflows in fp16.

    Done here and not by the pipeline because a training pipeline mixes precisions, which its own decoding
    does not expect.
    """
    vae = pipeline.vae
    stored = vae.dtype
    upcast = stored == torch.float16 and vae.config.get("force_upcast", False)
    if upcast:
        torch.nn.Module.to(vae, torch.float32)  # exact in both directions
    try:
        latents = latents.to(device=vae.device, dtype=vae.dtype)
        mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is not None and std is not None:
            latents = latents * latents.new_tensor(std).view(1, -1, 1, 1) / vae.config.scaling_factor
            latents = latents + latents.new_tensor(mean).view(1, -1, 1, 1)
        else:
            latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pixels = vae.decode(latents).sample
    finally:
        if upcast:
            torch.nn.Module.to(vae, stored)
    return pipeline.image_processor.postprocess(pixels.float(), output_type="pil")


@contextlib.contextmanager
def _untouched(pipeline: Pipeline) -> Iterator[None]:
    """Evaluation mode, a scheduler of its own and a quiet progress bar; everything is put back."""
    components = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    flags = [(module, module.training) for part in components for module in part.modules()]
    scheduler = pipeline.scheduler
    bar = getattr(pipeline, "_progress_bar_config", None)
    pipeline.scheduler = copy.deepcopy(scheduler)
    pipeline.set_progress_bar_config(disable=True)
    for part in components:
        part.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in flags:
            module.training = training
        pipeline.scheduler = scheduler
        if bar is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = bar


def _mixed_precision(pipeline: Pipeline) -> contextlib.AbstractContextManager:
    """Autocast where denoiser and text encoders differ in precision (a float32 policy being trained)."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    lower = {part.dtype for part in encoders} - {torch.float32}
    if not lower or lower == {denoiser.dtype}:
        return contextlib.nullcontext()
    return torch.autocast(denoiser.device.type, dtype=lower.pop())
