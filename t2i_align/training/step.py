"""From a batch of pairs to a per-pair loss: addressed draws, noised latents, policy and reference errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.batch import PairBatch
from t2i_align.objectives import Objective
from t2i_align.objectives.error_metrics import Denoised
from t2i_align.objectives.latents import LatentRequest, NoisyLatents
from t2i_align.objectives.types import ObjectiveOutput, PairErrors, snr_table
from t2i_align.randomness import address_hash


@dataclass(frozen=True)
class Draws:
    """Which random numbers a pass uses: the same address gives the same timestep and noise, always and everywhere.

    Attributes:
        purpose: train, heldout, ...
        draw: index among several draws per pair and epoch.
    """

    purpose: str
    draw: int


@dataclass(frozen=True)
class NetworkInputs:
    """What the denoiser is asked for a batch, winners first: ``[2B, ...]``, or ``[B, ...]`` without losers."""

    latents: NoisyLatents
    prompt: PromptEmbeddings
    time_ids: Tensor | None


class PairStep:
    """Measures e and r of a batch and asks the objective for its loss.

    Winner and loser go through the network in one pass, and the reference sees the very same inputs. Latents, errors and
    timesteps are the objective's slots; this class only carries tensors between them and the backbone.

    Args:
        backbone: what is denoised.
        objective: the resolved objective.
        seed: of the run.
        max_steps: optimiser steps, for schedules over training.
        accelerator: autocast and gathering over processes.
    """

    def __init__(
        self, backbone: Backbone, objective: Objective, seed: int, max_steps: int, accelerator: Accelerator
    ) -> None:
        self._backbone, self._objective, self._seed = backbone, objective, seed
        self._max_steps, self._accelerator = max_steps, accelerator
        self._snr = snr_table(backbone.alphas_cumprod).to(accelerator.device)

    def loss(self, batch: PairBatch, draws: Draws, step: int) -> tuple[ObjectiveOutput, Tensor]:
        """Per-pair loss with its graph, and each pair's timestep as a share of the schedule ``[B]``."""
        inputs = self._inputs(batch, draws, self._objective.needs_loser)
        policy = self._errors(inputs)
        reference = None
        if self._objective.needs_reference:
            with torch.no_grad(), self._backbone.reference():
                reference = self._errors(inputs)
        errors = self._pair_errors(batch, inputs, policy, reference, step)
        return self._objective(errors), errors.timesteps / self._backbone.num_train_timesteps

    def policy_errors(self, batch: PairBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """e_w and e_l ``[B]`` of the current weights, for probes; the link plays no part."""
        errors = self._errors(self._inputs(batch, draws, with_loser=True))
        return errors[: len(batch)], errors[len(batch) :]

    def _pair_errors(
        self, batch: PairBatch, inputs: NetworkInputs, policy: Tensor, reference: Tensor | None, step: int
    ) -> PairErrors:
        count = len(batch)
        with_loser = self._objective.needs_loser
        return PairErrors(
            policy_winner=policy[:count],
            policy_loser=policy[count:] if with_loser else None,
            reference_winner=None if reference is None else reference[:count],
            reference_loser=reference[count:] if reference is not None and with_loser else None,
            timesteps=inputs.latents.timesteps[:count],
            weights=batch.weights,
            margins=batch.margins or None,
            labels=batch.preferred,
            snr=self._snr,
            prediction_type=self._objective.error.measured_in(self._backbone.prediction_type),
            num_timesteps=self._backbone.num_train_timesteps,
            step=step,
            max_steps=self._max_steps,
            gather=self._accelerator.gather if self._accelerator.num_processes > 1 else None,
        )

    def _errors(self, inputs: NetworkInputs) -> Tensor:
        """``[2B]`` float32 errors of whichever policy the backbone currently is."""
        latents = inputs.latents
        with self._accelerator.autocast():
            prediction = self._backbone.predict(latents.noisy, latents.timesteps, inputs.prompt, inputs.time_ids)
        return self._objective.error(
            Denoised(prediction, latents.target, latents.timesteps, self._backbone.prediction_type, self._snr)
        )

    def _inputs(self, batch: PairBatch, draws: Draws, with_loser: bool) -> NetworkInputs:
        latents, prompt, time_ids = batch.winner, batch.prompt, batch.time_ids_winner
        if with_loser:
            latents = torch.cat([batch.winner, batch.loser])
            prompt = PromptEmbeddings.cat([batch.prompt, batch.prompt_loser or batch.prompt])
            if time_ids is not None:
                time_ids = torch.cat([time_ids, batch.time_ids_loser])
        seed = address_hash(self._seed, draws.purpose)
        timesteps = self._objective.timestep.sample(
            batch.ids, batch.epochs, draws.draw, seed, self._backbone.num_train_timesteps
        )
        request = LatentRequest(latents, timesteps.to(latents.device), batch.ids, batch.epochs, draws.draw, seed)
        return NetworkInputs(self._objective.latents(self._backbone, request), prompt, time_ids)
