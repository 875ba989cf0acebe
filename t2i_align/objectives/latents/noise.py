"""Noisy latents from random noise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2i_align.objectives.latents.base import LatentRequest, Latents, Noiser, NoisyLatents


class _RandomNoise(Latents):
    def noise(self, request: LatentRequest) -> Tensor:
        raise NotImplementedError

    def __call__(self, backbone: Noiser, request: LatentRequest) -> NoisyLatents:
        latents, noise = request.latents, self.noise(request)
        timesteps = request.timesteps.to(latents.device).repeat(request.images)
        noisy = backbone.add_noise(latents, noise, timesteps)
        return NoisyLatents(noisy, timesteps, backbone.target(latents, noise, timesteps))


class SharedNoise(_RandomNoise):
    """One noise per item for all its images: what differs between them is the images alone."""

    formula = "x_t = alpha_t x_0 + sigma_t n, one n per item"
    paper = "Diffusion-DPO, arXiv 2311.12908 (released code)"
    name: Literal["shared_noise"] = "shared_noise"

    def noise(self, request: LatentRequest) -> Tensor:
        return request.noise("noise").repeat(request.images, *[1] * (request.latents.dim() - 1))


class IndependentNoise(_RandomNoise):
    """A noise per image; the timestep stays shared inside an item."""

    formula = "x_t = alpha_t x_0 + sigma_t n_i, one n_i per image"
    paper = "Diffusion-KTO, arXiv 2404.04465; RankDPO, arXiv 2410.18013"
    name: Literal["independent_noise"] = "independent_noise"

    def noise(self, request: LatentRequest) -> Tensor:
        return torch.cat([request.noise("noise", image) for image in range(request.images)])
