"""The latents slot, :data:`LATENTS`: from clean latents to noisy ones and their regression target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.randomness import addressed_normal


class Noiser(Protocol):
    """The part of a backbone this slot needs so far."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class LatentRequest:
    """Clean latents of B items with G images each, image-major: all winners first, then all losers.

    Attributes:
        latents: ``[G * B, C, h, w]``, scaled.
        timesteps: ``[B]`` long, shared inside an item.
        ids: B item ids. epochs: B epoch numbers. draw: which repeat of the item. seed: of the run.
    """

    latents: Tensor
    timesteps: Tensor
    ids: Sequence[str | int]
    epochs: Sequence[int]
    draw: int
    seed: int

    @property
    def images(self) -> int:
        """G, the number of images per item."""
        return self.latents.shape[0] // len(self.ids)


@dataclass(frozen=True, eq=False)
class NoisyLatents:
    """What the network is asked: noisy latents, their timesteps ``[G * B]``, and the right answer."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


class Latents(Choice):
    """Base of the slot."""

    def __call__(self, backbone: Noiser, request: LatentRequest) -> NoisyLatents:
        raise NotImplementedError


class _RandomNoise(Latents):
    def noise(self, request: LatentRequest) -> Tensor:
        raise NotImplementedError

    def __call__(self, backbone: Noiser, request: LatentRequest) -> NoisyLatents:
        latents = request.latents
        noise = self.noise(request).to(device=latents.device, dtype=latents.dtype)
        timesteps = request.timesteps.to(latents.device).repeat(request.images)
        noisy = backbone.add_noise(latents, noise, timesteps)
        return NoisyLatents(noisy, timesteps, backbone.target(latents, noise, timesteps))


class SharedNoise(_RandomNoise):
    """One noise per item for all its images: what differs between them is the images alone."""

    formula = "x_t = alpha_t x_0 + sigma_t n, one n per item"
    paper = "Diffusion-DPO, arXiv 2311.12908 (released code)"
    name: Literal["shared_noise"] = "shared_noise"

    def noise(self, request: LatentRequest) -> Tensor:
        return _noise(request, image=None).repeat(request.images, *[1] * (request.latents.dim() - 1))


class IndependentNoise(_RandomNoise):
    """A noise per image; the timestep stays shared inside an item."""

    formula = "x_t = alpha_t x_0 + sigma_t n_i, one n_i per image"
    paper = "Diffusion-KTO, arXiv 2404.04465; RankDPO, arXiv 2410.18013"
    name: Literal["independent_noise"] = "independent_noise"

    def noise(self, request: LatentRequest) -> Tensor:
        return torch.cat([_noise(request, image) for image in range(request.images)])


def _noise(request: LatentRequest, image: int | None) -> Tensor:
    """``[B, C, h, w]`` float32 noise; each item's is addressed by its epoch, id, draw and, if given,
    image."""
    which = () if image is None else (image,)
    shape = request.latents.shape[1:]
    return torch.stack(
        [
            addressed_normal(shape, request.seed, "noise", epoch, item, request.draw, *which)
            for item, epoch in zip(request.ids, request.epochs, strict=True)
        ]
    )


LATENTS: dict[str, type[Latents]] = {"shared_noise": SharedNoise, "independent_noise": IndependentNoise}
