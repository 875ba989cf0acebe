"""Noisy latents that the policy itself would denoise to the picture: inversion instead of random noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i_align.objectives.latents.base import Denoiser, LatentRequest, Latents, NoisyLatents, ask
from t2i_align.objectives.parametrisation import at_level, clean_and_noise

STEPS_OFFSET = 1  # of the inversion grid, as in every Stable Diffusion checkpoint
CLEAN = -1  # level of latents without noise


class DdimInversion(Latents):
    """Steps from the picture up to t with the policy's own noise; what they amount to is the target.

    ``grid: exact`` goes up the grid and with a last, shorter step to t itself. ``released`` is what the published runs
    did (diffusers 0.20): whole grid steps to the first level at or above t, capped at the last, with the network asked
    at the level each step leaves, the first one below 0; the state is then taken for one at t.
    """

    formula = "x_t by DDIM inversion of x_0 with the policy; n = (x_t - sqrt(A_t) x_0) / sqrt(1 - A_t)"
    paper = "DDIM-InPO, arXiv 2503.18454; with renoise 1: SmPO-Diffusion, arXiv 2506.02698"
    asks_policy = True
    name: Literal["ddim_inversion"] = "ddim_inversion"
    steps: int = Field(default=10, ge=1, description="grid points over the whole schedule")
    renoise: int = Field(default=0, ge=0, description="corrections per step: noise averaged with that at the result")
    eta: float = Field(default=0.0, ge=0, le=1, description="random noise per step, as a share of the step's own")
    grid: Literal["exact", "released"] = Field(default="exact", description="end at t, or as the published code did")

    @torch.no_grad()
    def __call__(self, backbone: Denoiser, request: LatentRequest) -> NoisyLatents:
        latents = request.latents
        timesteps = request.timesteps.to(latents.device).repeat(request.images)
        with backbone.inference():
            noisy = self._invert(backbone, request, timesteps)
        signal = backbone.alphas_cumprod.to(noisy)[timesteps].reshape(-1, *[1] * (latents.dim() - 1))
        noise = (noisy - signal.sqrt() * latents) / (1.0 - signal).sqrt()
        return NoisyLatents(noisy, timesteps, backbone.target(latents, noise, timesteps))

    def _invert(self, backbone: Denoiser, request: LatentRequest, timesteps: Tensor) -> Tensor:
        """x_t of every picture; each takes only the steps below its own t."""
        state = request.latents.clone()
        for number, (start, end, asked) in enumerate(self._plan(timesteps, backbone.num_train_timesteps)):
            rows = (start < timesteps).nonzero()[:, 0]
            if len(rows) == 0:
                break
            state[rows] = self._step(backbone, request, state, rows, start, end, asked)
            if self.eta > 0:
                state[rows] += self._random(backbone, request, number, rows, start, end)
        return state

    def _plan(self, timesteps: Tensor, num_timesteps: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(level left, level reached ``[N]``, time the network is told ``[N]``) of every step, upwards."""
        stride = num_timesteps // self.steps
        levels = [min(STEPS_OFFSET + index * stride, num_timesteps - 1) for index in range(self.steps)]
        if self.grid == "released":
            for level in levels:
                start = level - stride
                yield start, torch.full_like(timesteps, level), torch.full_like(timesteps, start)
            return
        for start, level in zip([CLEAN, *levels], [*levels, num_timesteps - 1], strict=True):
            end = timesteps.clamp(max=level)
            yield start, end, end

    def _step(
        self,
        backbone: Denoiser,
        request: LatentRequest,
        state: Tensor,
        rows: Tensor,
        start: int,
        end: Tensor,
        asked: Tensor,
    ) -> Tensor:
        before, level = self._signal(backbone, start, rows, state), backbone.alphas_cumprod.to(state)[end[rows]]
        estimates: list[Tensor] = []
        current = state
        for _ in range(self.renoise + 1):
            # Asked at the state reached so far; read as the noise of the state the step leaves.
            prediction = ask(backbone, current, asked, request.prompts, request.time_ids, rows)
            told = before if current is state else level
            estimates.append(clean_and_noise(prediction, current[rows], told, backbone.prediction_type)[1])
            noise = torch.stack(estimates).mean(0)
            clean = (state[rows] - (1.0 - before).sqrt().reshape(-1, 1, 1, 1) * noise) / before.sqrt().reshape(
                -1, 1, 1, 1
            )
            result = at_level(clean, noise, level)
            current = state.clone()
            current[rows] = result
        return result

    def _signal(self, backbone: Denoiser, start: int, rows: Tensor, like: Tensor) -> Tensor:
        """A of the level a step leaves; below the schedule it is 1, or A_0 in the released code."""
        table = backbone.alphas_cumprod.to(like)
        if start >= 0:
            value = table[start]
        else:
            value = table[0] if self.grid == "released" else torch.ones((), dtype=like.dtype, device=like.device)
        return value.expand(len(rows))

    def _random(
        self, backbone: Denoiser, request: LatentRequest, number: int, rows: Tensor, start: int, end: Tensor
    ) -> Tensor:
        """``eta`` times the standard deviation of the ancestral step between the two levels."""
        before = self._signal(backbone, start, rows, request.latents)
        level = backbone.alphas_cumprod.to(before)[end[rows]]
        deviation = ((1.0 - before) / (1.0 - level) * (1.0 - level / before)).clamp(min=0.0).sqrt()
        noise = torch.cat([request.noise("inversion", image, number) for image in range(request.images)])
        return self.eta * deviation.reshape(-1, 1, 1, 1) * noise[rows]
