"""From a batch of step-level pairs to a per-pair loss: the counterpart of ``training.step.PairStep``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.objectives import Objective, ObjectiveOutput, PairErrors, snr_table
from t2i_align.stepwise.batch import StepBatch, StepPairs
from t2i_align.stepwise.denoiser import GuidedDenoiser
from t2i_align.stepwise.step_loss import StepErrors, check_objective, clip_ratios, separate_errors, shared_errors
from t2i_align.stepwise.transition import GaussianTransition, TransitionKernel


class TransitionStep:
    """Measures how likely policy and reference find the successors of a batch, and asks the objective for its loss.

    Winner and loser have one parent, so one guided pass of the policy and one of the reference serve both: 4 rows
    forward and 2 backward per pair, where the published code runs 8 and 4. ``shared_pass=False`` runs those, for
    comparison.

    Args:
        backbone: what is denoised.
        objective: the resolved objective; its beta multiplies log-density ratios per dimension.
        denoiser, kernel: the sampler of the rollouts, with their guidance and eta.
        shared_pass: see above.
        ratio_clip: see :func:`~t2i_align.stepwise.step_loss.clip_ratios`; None: no bound.
        max_steps: optimiser steps, for schedules over training.
        accelerator: device and gathering over processes.

    Raises:
        UserError: the objective cannot be used with a rollout.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        denoiser: GuidedDenoiser,
        kernel: TransitionKernel,
        shared_pass: bool,
        ratio_clip: float | None,
        max_steps: int,
        accelerator: Accelerator,
    ) -> None:
        check_objective(objective)
        self._backbone, self._objective, self._denoiser, self._kernel = backbone, objective, denoiser, kernel
        self._shared_pass, self._ratio_clip = shared_pass, ratio_clip
        self._max_steps, self._accelerator = max_steps, accelerator
        self._snr = snr_table(backbone.alphas_cumprod).to(accelerator.device)

    def loss(self, batch: StepBatch, draws: Any, step: int) -> tuple[ObjectiveOutput, Tensor]:
        """Per-pair loss with its graph, and each parent's timestep as a share of the schedule ``[N]``.

        Args:
            batch: N > 0 pairs.
            draws: not read: the rollout has made all random choices.
            step: optimiser steps made so far.
        """
        with self._denoiser.purpose("train"):
            errors = self._errors(batch)
        if self._ratio_clip is not None:
            errors = clip_ratios(errors, self._ratio_clip)
        output = self._objective(self._record(errors, batch, step))
        metrics = {name: value.float() for name, value in output.metrics.items()}
        metrics |= self._metrics(batch.pairs, step)
        timesteps = batch.pairs.parents.to(self._accelerator.device) / self._backbone.num_train_timesteps
        return ObjectiveOutput(output.loss.float(), metrics), timesteps

    def validation_users(self, guided: bool) -> list[tuple[str, AbstractContextManager[None]]]:
        """Pictures are made for nobody in particular."""
        return [("", nullcontext())]

    def state(self) -> dict[str, Tensor]:
        """Nothing: the pairs that wait are the provider's."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take."""

    def _errors(self, batch: StepBatch) -> StepErrors:
        winner, loser = batch.pairs.winner, batch.pairs.loser
        if self._shared_pass:
            return shared_errors(self._transition(batch), self._reference_transition(batch), winner, loser)
        policy = self._transition(batch), self._transition(batch)
        first, second = self._reference_transition(batch), self._reference_transition(batch)
        return separate_errors(policy, None if first is None or second is None else (first, second), winner, loser)

    def _transition(self, batch: StepBatch) -> GaussianTransition:
        """From the parents, by whichever policy the backbone currently is."""
        pairs = batch.pairs
        output = self._denoiser(pairs.parent, pairs.parents, batch.prompt, batch.time_ids)
        return self._kernel.transition(output, pairs.parent, pairs.parents, pairs.children)

    def _reference_transition(self, batch: StepBatch) -> GaussianTransition | None:
        if not self._objective.needs_reference:
            return None
        with torch.no_grad(), self._backbone.reference():
            return self._transition(batch)

    def _record(self, errors: StepErrors, batch: StepBatch, step: int) -> PairErrors:
        pairs, device = batch.pairs, self._accelerator.device
        gap = (pairs.score_winner - pairs.score_loser).to(device)
        return PairErrors(
            policy_winner=errors.policy_winner,
            policy_loser=errors.policy_loser,
            reference_winner=errors.reference_winner,
            reference_loser=errors.reference_loser,
            timesteps=pairs.parents.to(device),
            weights=batch.weights,
            margins={"score": gap},
            labels=torch.sigmoid(gap),
            snr=self._snr,
            prediction_type=self._backbone.prediction_type,
            num_timesteps=self._backbone.num_train_timesteps,
            step=step,
            max_steps=self._max_steps,
            gather=self._accelerator.gather if self._accelerator.num_processes > 1 else None,
        )

    def _metrics(self, pairs: StepPairs, step: int) -> dict[str, Tensor]:
        """``[N]`` score gap of the pairs that are trained on, and how old their policy is."""
        device = self._accelerator.device
        return {
            "rollout/trained_score_gap": (pairs.score_winner - pairs.score_loser).to(device),
            "rollout/staleness": (step - pairs.version).float().to(device),
        }
