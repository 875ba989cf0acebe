"""Noisy latents from a lagging copy of the policy: its own samples instead of data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.latents.base import LAGGING, Denoiser, Lag, LatentRequest, Latents, NoisyLatents, ask
from t2i_align.objectives.latents.noise import IndependentNoise
from t2i_align.objectives.parametrisation import at_level, clean_and_noise
from t2i_align.randomness import addressed_uniform

if TYPE_CHECKING:
    from t2i_align.backbones.embeddings import PromptEmbeddings


class PolicyRollout(Latents):
    """Winners from the data; in the losers' place states of the model's own sampling, with what it predicted there.

    The samples come from a copy that lags behind: right after the copy was taken, a policy equals it and its error on
    them, with its gradient, is 0.
    """

    formula = "winner: x_t = alpha_t x_0 + sigma_t n; loser: x_t of the lagging policy's sampling, y what it predicts"
    paper = "Diffusion-DRO, arXiv 2510.18353"
    layouts = frozenset({"pair"})
    asks_policy = True
    replaces_loser = True
    name: Literal["policy_rollout"] = "policy_rollout"
    num_inference_steps: int = Field(default=20, ge=1, description="DDIM steps from pure noise to timestep 0")
    sync_steps: int = Field(default=4, ge=1, description="optimiser steps after which the lagging copy is renewed")

    @property
    def lag(self) -> Lag:
        return Lag(self.sync_steps)

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        _refuse_noise_from_noise("policy_rollout", snr, prediction_type)

    @torch.no_grad()
    def __call__(self, backbone: Denoiser, request: LatentRequest) -> NoisyLatents:
        data = IndependentNoise()(backbone, request)
        count = len(request.ids)
        timesteps = data.timesteps[count:]
        prompt = request.prompts.index(slice(count, None))
        ids = None if request.time_ids is None else request.time_ids[count:]
        with backbone.inference(LAGGING):
            state = self._sample(backbone, request, timesteps, prompt, ids)
            predicted = backbone.predict(state, timesteps, prompt, ids)
        return NoisyLatents(
            torch.cat([data.noisy[:count], state.to(data.noisy)]),
            data.timesteps,
            torch.cat([data.target[:count], predicted.to(data.target)]),
        )

    def _sample(
        self,
        backbone: Denoiser,
        request: LatentRequest,
        timesteps: Tensor,
        prompt: PromptEmbeddings,
        ids: Tensor | None,
    ) -> Tensor:
        """States ``[B, C, h, w]`` at the items' own timesteps, from pure noise downwards without guidance."""
        table, last = backbone.alphas_cumprod.to(request.latents), backbone.num_train_timesteps - 1
        state = request.noise("rollout_start")
        levels = torch.linspace(last, 0, self.num_inference_steps + 1).round().long().tolist()
        for start, end in zip(levels[:-1], levels[1:], strict=True):
            rows = (timesteps < start).nonzero()[:, 0]
            if len(rows) == 0:
                break
            prediction = ask(backbone, state, torch.full_like(timesteps, start), prompt, ids, rows)
            signal = table[start].expand(len(rows))
            clean, noise = clean_and_noise(prediction, state[rows], signal, backbone.prediction_type)
            state[rows] = at_level(clean, noise, table[timesteps[rows].clamp(min=end)])
        return state


class TruncatedRollout(Latents):
    """A few steps of the unguided, unconditional model down from a noised picture: what to regress on without prompts.

    The target is the clean picture those steps end at; the state they end in is noised again to a random level at or
    above its own. A conditional model trained on it becomes a copy that ignores its prompt: a negative model, without
    any preference.
    """

    formula = "x_s from K unconditional steps of the averaged policy, noised again; y from their last estimate of x_0"
    paper = "Self-NPO, arXiv 2505.11777 (released code)"
    layouts = frozenset({"single"})
    asks_policy = True
    name: Literal["truncated_rollout"] = "truncated_rollout"
    steps: int = Field(default=5, ge=1, description="denoising steps K")
    grid_steps: int = Field(default=25, ge=1, description="steps of the whole schedule, whose length one step has")
    decay: float = Field(default=0.999, ge=0, lt=1, description="of the averaged policy that takes the steps")

    @property
    def lag(self) -> Lag:
        return Lag(1, self.decay)

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        _refuse_noise_from_noise("truncated_rollout", snr, prediction_type)

    @torch.no_grad()
    def __call__(self, backbone: Denoiser, request: LatentRequest) -> NoisyLatents:
        start = request.timesteps.to(request.latents.device)
        state = backbone.add_noise(request.latents, request.noise("noise"), start)
        empty = backbone.empty_prompt(len(request.ids))
        with backbone.inference(LAGGING):
            clean, state, reached = self._descend(backbone, state, start, empty, request.time_ids)
        table = backbone.alphas_cumprod.to(state)
        later = self._later(request, reached, backbone.num_train_timesteps)
        kept = (table[later] / table[reached]).clamp(max=1.0)
        noisy = at_level(state, request.noise("renoise"), kept)
        signal = table[later].reshape(-1, 1, 1, 1)
        noise = (noisy - signal.sqrt() * clean) / (1.0 - signal).sqrt()
        return NoisyLatents(noisy, later, backbone.target(clean, noise, later))

    def _descend(
        self, backbone: Denoiser, state: Tensor, level: Tensor, empty: PromptEmbeddings, ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Last estimate of x_0, the state reached, and its timestep ``[B]``."""
        table = backbone.alphas_cumprod.to(state)
        stride = max(1, backbone.num_train_timesteps // self.grid_steps)
        clean = state
        for _ in range(self.steps):
            prediction = backbone.predict(state, level, empty, ids)
            clean, noise = clean_and_noise(prediction, state, table[level], backbone.prediction_type)
            level = (level - stride).clamp(min=0)
            state = at_level(clean, noise, table[level])
        return clean, state, level

    def _later(self, request: LatentRequest, reached: Tensor, num_timesteps: int) -> Tensor:
        """``[B]`` timesteps, uniform from the reached one up."""
        uniforms = [
            addressed_uniform(request.seed, "later", epoch, item, request.draw)
            for item, epoch in zip(request.ids, request.epochs, strict=True)
        ]
        return reached + (torch.tensor(uniforms, device=reached.device) * (num_timesteps - reached)).long()


def _refuse_noise_from_noise(name: str, snr: Tensor, prediction_type: str) -> None:
    """Sampling with a network that names noise divides by the signal, wherever it starts."""
    if prediction_type == "epsilon" and not bool((snr > 0).all()):
        raise UserError(
            f"latents {name!r} sample from a state without any signal, which a noise prediction says nothing about",
            found="epsilon prediction with a zero-terminal-SNR schedule",
            fix="use the v-prediction checkpoint that belongs to this schedule, or latents: shared_noise",
        )
