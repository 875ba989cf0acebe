"""From a batch of pairs to a per-pair loss: addressed draws, noised latents, policy and reference errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.batch import PairBatch
from t2i_align.errors import UserError
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
class Items:
    """A batch laid out as the objective's items: G pictures each, picture-major (all winners, then all losers).

    Attributes:
        ids, epochs: address of each of the N items' draws.
        latents: ``[G * N, C, h, w]``. prompt, time_ids: of the same G * N pictures.
        labels, weights: ``[N]``.
    """

    ids: list[str]
    epochs: list[int]
    latents: Tensor
    prompt: PromptEmbeddings
    time_ids: Tensor | None
    labels: Tensor
    weights: Tensor


def winners_only(batch: PairBatch) -> Items:
    """One item per pair, its winner."""
    labels, weights = batch.preferred, batch.weights
    return Items(batch.ids, batch.epochs, batch.winner, batch.prompt, batch.time_ids_winner, labels, weights)


def as_pairs(batch: PairBatch) -> Items:
    """One item per pair, with both pictures."""
    time_ids = batch.time_ids_winner
    return Items(
        ids=batch.ids,
        epochs=batch.epochs,
        latents=torch.cat([batch.winner, batch.loser]),
        prompt=batch.prompt.cat(batch.prompt_loser or batch.prompt),
        time_ids=None if time_ids is None else torch.cat([time_ids, batch.time_ids_loser]),
        labels=batch.preferred,
        weights=batch.weights,
    )


def as_labelled(batch: PairBatch) -> Items:
    """Two items per pair, each with draws of its own: the winner, desirable with its probability, and the loser."""
    pairs = as_pairs(batch)
    return Items(
        ids=[f"{pair}/{side}" for side in ("winner", "loser") for pair in batch.ids],
        epochs=batch.epochs * 2,
        latents=pairs.latents,
        prompt=pairs.prompt,
        time_ids=pairs.time_ids,
        labels=torch.cat([batch.preferred, 1.0 - batch.preferred]),
        weights=batch.weights.repeat(2),
    )


LAYOUTS: dict[str, Callable[[PairBatch], Items]] = {
    "single": winners_only,
    "pair": as_pairs,
    "labelled": as_labelled,
}


def check_layout(objective: Objective) -> None:
    """Refuse an objective whose items the loop cannot lay out from pairs.

    Raises:
        UserError: it takes groups or ranked lists.
    """
    if objective.layout not in LAYOUTS:
        raise UserError(
            f"objective.preset: {objective.name} takes items of layout {objective.layout!r}, and training reads pairs.",
            f"layouts that train: {', '.join(LAYOUTS)}",
            "choose a pairwise preset (t2i-align objectives list); objectives.build computes this one from errors",
        )


def check_data_needs(objective: Objective, margin_names: Sequence[str]) -> None:
    """Refuse an objective that reads columns the data set does not have.

    Raises:
        UserError: names what is missing.
    """
    given = {"labels"} | ({"margins"} if margin_names else set())
    missing = sorted(objective.data_needs - given)
    if missing:
        raise UserError(
            f"objective.preset: {objective.name} reads {', '.join(missing)}, which the pairs do not carry.",
            f"reward margins in the data: {', '.join(margin_names) or 'none'}",
            "add margins to the pairs (docs/data.md), or choose a preset that reads labels only",
        )


@dataclass(frozen=True)
class NetworkInputs:
    """What the denoiser is asked, for G * N pictures."""

    latents: NoisyLatents
    prompt: PromptEmbeddings
    time_ids: Tensor | None


class PairStep:
    """Measures e and r of a batch and asks the objective for its loss.

    All pictures of an item go through the network in one pass, and the reference sees the very same inputs. Latents,
    errors and timesteps are the objective's slots; this class only carries tensors between them and the backbone.

    Args:
        backbone: what is denoised.
        objective: the resolved objective.
        seed: of the run.
        max_steps: optimiser steps, for schedules over training.
        accelerator: device and gathering over processes.
    """

    def __init__(
        self, backbone: Backbone, objective: Objective, seed: int, max_steps: int, accelerator: Accelerator
    ) -> None:
        self._backbone, self._objective, self._seed = backbone, objective, seed
        self._max_steps, self._accelerator = max_steps, accelerator
        self._layout = LAYOUTS[objective.layout]
        self._snr = snr_table(backbone.alphas_cumprod).to(accelerator.device)
        objective.check_model(backbone.num_train_timesteps, self._snr)

    def loss(self, batch: PairBatch, draws: Draws, step: int) -> tuple[ObjectiveOutput, Tensor]:
        """Per-item loss with its graph, and each item's timestep as a share of the schedule ``[N]``."""
        items = self._layout(batch)
        inputs = self._inputs(items, draws)
        policy = self._errors(inputs)
        reference = None
        if self._objective.needs_reference:
            with torch.no_grad(), self._backbone.reference():
                reference = self._errors(inputs)
        errors = self._pair_errors(items, batch.margins, inputs, policy, reference, step)
        timesteps = inputs.latents.timesteps[: len(items.ids)]
        return self._objective(errors), timesteps / self._backbone.num_train_timesteps

    def policy_errors(self, batch: PairBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """e_w and e_l ``[B]`` of the current weights, for probes; the link plays no part."""
        errors = self._errors(self._inputs(as_pairs(batch), draws))
        return errors[: len(batch)], errors[len(batch) :]

    def _pair_errors(
        self,
        items: Items,
        margins: dict[str, Tensor],
        inputs: NetworkInputs,
        policy: Tensor,
        reference: Tensor | None,
        step: int,
    ) -> PairErrors:
        count = len(items.ids)
        both = self._objective.needs_loser
        return PairErrors(
            policy_winner=policy[:count],
            policy_loser=policy[count:] if both else None,
            reference_winner=None if reference is None else reference[:count],
            reference_loser=reference[count:] if reference is not None and both else None,
            timesteps=inputs.latents.timesteps[:count],
            weights=items.weights,
            margins=margins if margins and self._objective.layout == "pair" else None,
            labels=items.labels,
            snr=self._snr,
            prediction_type=self._objective.error.measured_in(self._backbone.prediction_type),
            num_timesteps=self._backbone.num_train_timesteps,
            step=step,
            max_steps=self._max_steps,
            gather=self._accelerator.gather if self._accelerator.num_processes > 1 else None,
            process_index=self._accelerator.process_index,
        )

    def _errors(self, inputs: NetworkInputs) -> Tensor:
        """Float32 errors ``[G * N]`` of whichever policy the backbone currently is."""
        latents = inputs.latents
        prediction = self._backbone.predict(latents.noisy, latents.timesteps, inputs.prompt, inputs.time_ids)
        return self._objective.error(
            Denoised(prediction, latents.target, latents.timesteps, self._backbone.prediction_type, self._snr)
        )

    def _inputs(self, items: Items, draws: Draws) -> NetworkInputs:
        seed = address_hash(self._seed, draws.purpose)
        timesteps = self._objective.timestep.sample(
            items.ids, items.epochs, draws.draw, seed, self._backbone.num_train_timesteps
        )
        request = LatentRequest(
            items.latents, timesteps.to(items.latents.device), items.ids, items.epochs, draws.draw, seed
        )
        return NetworkInputs(self._objective.latents(self._backbone, request), items.prompt, items.time_ids)
