"""From a batch to a per-item loss: addressed draws, noised latents, policy and reference errors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.batch import ListBatch, PairBatch
from t2i_align.objectives import Objective
from t2i_align.objectives.error_metrics import Denoised
from t2i_align.objectives.latents import LatentRequest, Latents, NoisyLatents, SharedNoise
from t2i_align.objectives.types import ObjectiveOutput, PairErrors, snr_table
from t2i_align.randomness import address_hash
from t2i_align.training.following import Followers
from t2i_align.training.items import LAYOUTS, Items, as_pairs, sides
from t2i_align.transfer import send


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
    """What the denoiser is asked, for G * N pictures; ``extra_noise`` only where errors take a random reverse step.

    ``prompt`` as in `Items`.
    """

    latents: NoisyLatents
    prompt: PromptEmbeddings
    time_ids: Tensor | None
    extra_noise: Tensor | None


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

    Attributes:
        reference_errors: gives r ``[G * N]`` of a batch where it was measured before; None: measure it.
    """

    def __init__(
        self, backbone: Backbone, objective: Objective, seed: int, max_steps: int, accelerator: Accelerator
    ) -> None:
        self._backbone, self._objective, self._seed = backbone, objective, seed
        self._max_steps, self._accelerator = max_steps, accelerator
        self._layout = LAYOUTS[objective.layout]
        self._snr = snr_table(backbone.alphas_cumprod).to(accelerator.device)
        self._followers = Followers(backbone, objective, accelerator)
        self.reference_errors: Callable[[PairBatch | ListBatch], Tensor] | None = None

    def loss(self, batch: PairBatch | ListBatch, draws: Draws, step: int) -> tuple[ObjectiveOutput, Tensor]:
        """Per-item loss with its graph, and each item's timestep as a share of the schedule ``[N]``."""
        items, needs_reference = self._layout(batch), self._objective.needs_reference
        self._followers.before_step(step)
        inputs = self._inputs(items, draws, self._objective.latents)
        # A reference that the policy's errors may move comes after them; else first, while no graph is held.
        early = None if self._followers.guards or not needs_reference else self._reference(batch, inputs)
        policy = self._errors(inputs)
        divergence = self._followers.after_policy(
            step, policy[: len(items)], lambda: self._reference_errors(inputs, self._backbone.reference())[: len(items)]
        )
        reference = self._reference(batch, inputs) if self._followers.guards else early
        output = self._objective(self._pair_errors(items, inputs, policy, reference, step))
        if divergence is not None:
            output.metrics["reference_divergence"] = divergence
        return output, inputs.latents.timesteps[: len(items)] / self._backbone.num_train_timesteps

    def probe_errors(
        self, batch: PairBatch, draws: Draws, network: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> tuple[Tensor, Tensor]:
        """e_w and e_l ``[B]`` of the current weights, or of the network lent inside `network`; the link plays no part.

        Noise that the policy itself decides would change between probes: those get random noise.
        """
        latents = self._objective.latents
        inputs = self._inputs(as_pairs(batch), draws, SharedNoise() if latents.asks_policy else latents)
        with network():
            errors = self._errors(inputs)
        return errors[: len(batch)], errors[len(batch) :]

    def errors_under(self, batch: PairBatch | ListBatch, draws: Draws, network: AbstractContextManager[Any]) -> Tensor:
        """Errors ``[G * N]`` of a batch as training would measure them, of the network lent inside `network`."""
        return self._reference_errors(self._inputs(self._layout(batch), draws, self._objective.latents), network)

    def validation_users(self, guided: bool) -> list[tuple[str, AbstractContextManager[None]]]:
        """Pictures are made for nobody in particular."""
        return [("", nullcontext())]

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond weights and data."""
        return self._followers.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        self._followers.restore(state)

    def _pair_errors(
        self, items: Items, inputs: NetworkInputs, policy: Tensor, reference: Tensor | None, step: int
    ) -> PairErrors:
        layout, count = self._objective.layout, len(items)
        winner, loser = sides(policy, count, layout)
        r_winner, r_loser = (None, None) if reference is None else sides(reference, count, layout)
        return PairErrors(
            policy_winner=winner,
            policy_loser=loser,
            reference_winner=r_winner,
            reference_loser=r_loser,
            timesteps=inputs.latents.timesteps[:count],
            weights=items.weights,
            snr=self._snr,
            prediction_type=self._objective.error.measured_in(self._backbone.prediction_type),
            num_timesteps=self._backbone.num_train_timesteps,
            step=step,
            max_steps=self._max_steps,
            gather=self._accelerator.gather if self._accelerator.num_processes > 1 else None,
            process_index=self._accelerator.process_index,
            **items.columns,
        )

    def _reference(self, batch: PairBatch | ListBatch, inputs: NetworkInputs) -> Tensor:
        if self.reference_errors is not None:
            return self.reference_errors(batch)
        moving = self._followers.reference
        chosen = self._backbone.reference() if moving is None else self._backbone.inference(moving)
        return self._reference_errors(inputs, chosen)

    def _reference_errors(self, inputs: NetworkInputs, network: AbstractContextManager[Any]) -> Tensor:
        with torch.no_grad(), network:
            return self._errors(inputs)

    def _errors(self, inputs: NetworkInputs) -> Tensor:
        """Float32 errors ``[G * N]`` of whichever policy the backbone currently is."""
        latents, backbone = inputs.latents, self._backbone

        def features(noisy: Tensor, timesteps: Tensor) -> list[Tensor]:
            return backbone.features(noisy, timesteps, inputs.prompt.for_pictures(len(noisy)), inputs.time_ids)

        return self._objective.error(
            Denoised(
                prediction=backbone.predict(latents.noisy, latents.timesteps, inputs.prompt, inputs.time_ids),
                target=latents.target,
                timesteps=latents.timesteps,
                prediction_type=backbone.prediction_type,
                snr=self._snr,
                noisy=latents.noisy,
                features=features,
                extra_noise=inputs.extra_noise,
            )
        )

    def _inputs(self, items: Items, draws: Draws, latents: Latents) -> NetworkInputs:
        seed = address_hash(self._seed, draws.purpose)
        timesteps = self._objective.timestep.sample(
            items.ids, items.epochs, draws.draw, seed, self._backbone.num_train_timesteps
        )
        request = LatentRequest(
            latents=items.latents,
            timesteps=send(timesteps, items.latents.device),
            ids=items.ids,
            epochs=items.epochs,
            draw=draws.draw,
            seed=seed,
            prompt=items.prompt.for_pictures(len(items.latents)) if latents.asks_policy else items.prompt,
            time_ids=items.time_ids,
        )
        extra = None
        if self._objective.error.needs_features:
            extra = request.noise("reverse_step").repeat(request.images, 1, 1, 1)
        return NetworkInputs(latents(self._backbone, request), items.prompt, items.time_ids, extra)
