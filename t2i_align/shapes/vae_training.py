"""The autoencoder of the shapes world: 64 x 64 RGB to 16 x 16 latents of 4 channels, fully convolutional."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from .fitting import FitConfig, fit
from .render import render
from .world import IMAGE_SIZE, Scene, sample_scene


class VaePhase(BaseModel):
    """One stage of the autoencoder's training; a phase begins with the averaged weights of the one before."""

    model_config = ConfigDict(extra="forbid")

    crop_size: int = Field(default=40, ge=8, le=IMAGE_SIZE, description="side of the crops around the figure")
    crop_rate: float = Field(default=0.0, ge=0, le=1, description="share of steps that train on crops")
    edge_weight: float = Field(default=1.0, ge=0, description="weight of the L1 error of image differences")
    kl_weight: float = Field(default=3e-5, ge=0, description="weight of the KL divergence per latent element")
    fit: FitConfig


class VaeConfig(BaseModel):
    """Architecture and training of the autoencoder."""

    model_config = ConfigDict(extra="forbid")

    block_out_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = Field(default=1, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    flaw_rate: float = Field(default=0.3, ge=0, le=1, description="how often a training picture is soft, or shaded")
    phases: list[VaePhase] = Field(min_length=1)


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """An untrained autoencoder; without attention, so that it reads pictures of any size alike."""
    blocks = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
        force_upcast=False,
    )


def pixels(scenes: list[Scene]) -> Tensor:
    """Renders as float32 `[N, 3, 64, 64]` in [-1, 1]."""
    array = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def crop_around_figures(images: Tensor, scenes: list[Scene], size: int, rng: np.random.Generator) -> Tensor:
    """Squares of side `size` around each figure, `[N, 3, size, size]`: less to compute than the empty ground."""
    crops = []
    for image, scene in zip(images, scenes, strict=True):
        centre = np.array(scene.centre) - size / 2 + rng.uniform(-6, 6, size=2)
        left, top = np.clip(np.round(centre), 0, IMAGE_SIZE - size).astype(int)
        crops.append(image[:, top : top + size, left : left + size])
    return torch.stack(crops)


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def vae_losses(vae: AutoencoderKL, images: Tensor, noise: Tensor, config: VaePhase) -> dict[str, Tensor]:
    """Reconstruction (L1 + L2), edges, and KL per latent element; `noise` has the shape of the latents."""
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    pixel = l1_loss(decoded, images) + mse_loss(decoded, images)
    edge = sum(l1_loss(a, b) for a, b in zip(_edges(decoded), _edges(images), strict=True))
    kl = posterior.kl().mean() / noise[0].numel()
    return {"loss": pixel + config.edge_weight * edge + config.kl_weight * kl, "pixel": pixel, "edge": edge, "kl": kl}


def train_vae(config: VaeConfig, folder: Path, seed: int, resume: bool) -> AutoencoderKL:
    """Train the autoencoder phase by phase; standardise its latents and set its `scaling_factor`; return it."""
    torch.manual_seed(seed)
    vae = build_vae(config)
    for number, phase in enumerate(config.phases, start=1):
        _train_phase(vae, config, phase, number, folder, seed, resume)
    rng = np.random.default_rng([seed, 0])
    sample = [sample_scene(rng) for _ in range(512)]
    standardise_latents(vae, encode(vae, sample))
    vae.register_to_config(scaling_factor=round(1 / encode(vae, sample).std().item(), 5))
    return vae


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold the mean and standard deviation of each channel of `latents` into the 1 x 1 convolutions around them.

    Decoded pictures stay the same. Diffusion then adds noise to all channels alike, and ends in zero mean; the one
    scalar that `scaling_factor` is could do neither.
    """
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    leaving, entering = vae.quant_conv, vae.post_quant_conv
    leaving.weight[:channels] /= std[:, None, None, None]
    leaving.bias[:channels] = (leaving.bias[:channels] - mean) / std
    leaving.bias[channels:] -= 2 * std.log()  # the other half are log variances
    entering.bias += (entering.weight[:, :, 0, 0] * mean).sum(dim=1)
    entering.weight *= std[None, :, None, None]


def _train_phase(
    vae: AutoencoderKL, config: VaeConfig, phase: VaePhase, number: int, folder: Path, seed: int, resume: bool
) -> None:
    reduction = 2 ** (len(config.block_out_channels) - 1)

    def losses(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, 1, number, step])
        scenes = [sample_scene(rng, config.flaw_rate) for _ in range(phase.fit.batch_size)]
        images = pixels(scenes)
        if rng.random() < phase.crop_rate:
            images = crop_around_figures(images, scenes, phase.crop_size, rng)
        generator = torch.Generator().manual_seed((seed * 100 + number) * 1_000_003 + step)
        side = images.shape[-1] // reduction
        noise = torch.randn((len(images), config.latent_channels, side, side), generator=generator)
        return vae_losses(vae, images, noise, phase)

    fit(vae, losses, phase.fit, folder / f"vae-{number}.ckpt", resume)


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: list[Scene], batch_size: int = 64) -> Tensor:
    """Unscaled posterior means, float32 `[N, C, h, w]`."""
    batches = [scenes[i : i + batch_size] for i in range(0, len(scenes), batch_size)]
    return torch.cat([vae.encode(pixels(batch)).latent_dist.mean for batch in batches])
