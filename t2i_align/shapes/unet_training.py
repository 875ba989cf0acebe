"""The denoiser of the shapes world and its two text encoders, trained jointly on latents encoded once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from reward_models.files import complete_file

from .fitting import FitConfig, fit
from .vae_training import encode
from .world import IMAGE_SIZE, Scene, caption, sample_keep, sample_scene

logger = logging.getLogger(__name__)

TIME_IDS = (IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE)  # original size, crop corner, target size


class UnetPhase(BaseModel):
    """One stage of the denoiser's training; a phase begins with the averaged weights of the one before."""

    model_config = ConfigDict(extra="forbid")

    max_noise_weight: float = Field(
        default=1.0,
        ge=1,
        description="bound of the weight 1 / alpha_bar(t) on the noise error; 1 weighs all timesteps alike, more makes "
        "the noisiest steps, which decide the layout, count",
    )
    fit: FitConfig


class UnetConfig(BaseModel):
    """Architecture of the denoiser and its text encoders, noise schedule, caption dropping and training."""

    model_config = ConfigDict(extra="forbid")

    block_out_channels: tuple[int, ...] = (64, 96, 96)
    layers_per_block: int = Field(default=1, ge=1)
    attention_head_dim: int = Field(default=32, ge=1, description="channels per attention head")
    addition_time_embed_dim: int = Field(default=32, ge=2)
    text_hidden_size: int = Field(default=64, ge=8)
    text_layers: tuple[int, int] = (2, 3)
    beta_start: float = Field(default=0.00085, gt=0)
    beta_end: float = Field(
        default=0.02, gt=0, description="above SDXL's 0.012: 16 x 16 latents need more noise to forget their mean"
    )
    empty_caption_rate: float = Field(default=0.1, ge=0, le=1, description="captions replaced by the empty string")
    max_attribute_drop: float = Field(default=0.6, ge=0, le=1, description="highest rate of leaving attributes out")
    phases: list[UnetPhase] = Field(min_length=1)


@dataclass
class Denoiser:
    """The four parts that turn a caption and noisy latents into a noise estimate."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    unet: UNet2DConditionModel

    def modules(self) -> nn.ModuleDict:
        """The trainable parts under one roof."""
        parts = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2, "unet": self.unet}
        return nn.ModuleDict(parts)

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """What `StableDiffusionXLPipeline` feeds the UNet: hidden states `[B, L, D]` and pooled `[B, P]`."""
        tokenized = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        first = self.text_encoder(tokenized.input_ids, output_hidden_states=True)
        second = self.text_encoder_2(tokenized.input_ids, output_hidden_states=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return hidden, second.text_embeds

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        """Noise estimate `[B, C, h, w]` for latents at integer `timesteps` `[B]`."""
        hidden, pooled = self.encode_prompts(prompts)
        time_ids = torch.tensor([TIME_IDS], dtype=noisy.dtype).expand(len(prompts), -1)
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(noisy, timesteps, hidden, added_cond_kwargs=conditions).sample


def build_denoiser(config: UnetConfig, tokenizer: CLIPTokenizer, latent_channels: int, latent_size: int) -> Denoiser:
    """An untrained denoiser in the shape of SDXL's: attention everywhere but at the highest resolution."""

    def text_config(layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_hidden_size,
            intermediate_size=4 * config.text_hidden_size,
            projection_dim=config.text_hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=max(1, config.text_hidden_size // 16),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    deeper = len(config.block_out_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        # diffusers reads this argument as the number of heads per block, whatever its name says
        attention_head_dim=tuple(channels // config.attention_head_dim for channels in config.block_out_channels),
        cross_attention_dim=2 * config.text_hidden_size,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=config.text_hidden_size + 6 * config.addition_time_embed_dim,
    )
    first, second = config.text_layers
    return Denoiser(
        tokenizer, CLIPTextModel(text_config(first)), CLIPTextModelWithProjection(text_config(second)), unet
    )


def training_prompts(scenes: list[Scene], rng: np.random.Generator, config: UnetConfig) -> list[str]:
    """A caption per scene: some empty (the unconditional of guidance), the others with attributes left out."""
    prompts = []
    for scene in scenes:
        if rng.random() < config.empty_caption_rate:
            prompts.append("")
        else:
            prompts.append(caption(scene, sample_keep(rng, rng.uniform(0.0, config.max_attribute_drop))))
    return prompts


def encoded_scenes(
    vae: AutoencoderKL, count: int, seed: int, flaw_rate: float, cache: Path
) -> tuple[list[Scene], Tensor]:
    """`count` scenes and their scaled latents, float32 `[count, C, h, w]`; encoded once and kept in `cache`."""
    rng = np.random.default_rng([seed, 2])
    scenes = [sample_scene(rng, flaw_rate) for _ in range(count)]
    if cache.exists():
        latents = torch.load(cache, weights_only=True)
    else:
        logger.info("encoding %d renders", count)
        latents = encode(vae, scenes).half()
        with complete_file(cache) as temporary, temporary.open("wb") as stream:
            torch.save(latents, stream)
    return scenes, latents.float() * vae.config.scaling_factor


def train_denoiser(
    denoiser: Denoiser,
    config: UnetConfig,
    scenes: list[Scene],
    latents: Tensor,
    folder: Path,
    seed: int,
    resume: bool,
) -> None:
    """Train the denoiser in place, phase by phase, on `latents` scaled as the UNet reads them."""
    for number, phase in enumerate(config.phases, start=1):
        _train_phase(denoiser, config, phase, number, scenes, latents, folder, seed, resume)


def _train_phase(
    denoiser: Denoiser,
    config: UnetConfig,
    phase: UnetPhase,
    number: int,
    scenes: list[Scene],
    latents: Tensor,
    folder: Path,
    seed: int,
    resume: bool,
) -> None:
    """Minimise the squared error of the noise (Ho et al. 2020, equation 14) times min(1 / alpha_bar, bound).

    1 / alpha_bar is the weight that makes it the error of the velocity (Salimans and Ho 2022).
    """
    schedule = DDPMScheduler(
        beta_start=config.beta_start, beta_end=config.beta_end, beta_schedule="scaled_linear", clip_sample=False
    )
    weights = (1 / schedule.alphas_cumprod).clamp(max=phase.max_noise_weight)

    def losses(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, 3, number, step])
        generator = torch.Generator().manual_seed((seed * 100 + number) * 1_000_003 + step)
        chosen = rng.integers(len(scenes), size=phase.fit.batch_size)
        prompts = training_prompts([scenes[i] for i in chosen], rng, config)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(len(weights), (len(clean),), generator=generator)
        predicted = denoiser.predict(schedule.add_noise(clean, noise, timesteps), timesteps, prompts)
        errors = (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3))
        return {"loss": (weights[timesteps] * errors).mean(), "noise_error": errors.mean()}

    fit(denoiser.modules(), losses, phase.fit, folder / f"unet-{number}.ckpt", resume)
