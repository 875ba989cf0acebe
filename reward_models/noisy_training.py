"""The loop that trains noise-aware reward models: one optimiser, one schedule, checkpoints that resume bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.files import complete_file, remove_leftovers
from reward_models.latent_loss import preference_loss, prompt_weights
from reward_models.noisy_pairs import NoisyBatch, agreement

Progress = Callable[[int, int, dict[str, float]], None]
BatchLoss = Callable[[int], tuple[Tensor, float]]


@dataclass(frozen=True)
class NoisyTrainingConfig:
    """One run; the defaults are the published recipe of LRM-1.5 but for its batch of 128 on eight devices.

    Attributes:
        max_train_steps, train_batch_size: optimiser steps, pairs in each.
        learning_rate, weight_decay, lr_warmup_steps, max_grad_norm: of AdamW, constant after a linear warm-up.
        timesteps: training timesteps are drawn uniformly from these; None: from all of the schedule.
        shared_noise: one noise for both pictures of a pair (less label noise) instead of one each (as published).
        train_text_encoders: published recipes do; without, the model may lean on its base's (``text_encoders="base"``).
        weight_by_prompt: every prompt counts alike, however many pairs it has.
        mixed_precision: autocast type of the network, or no.
        seed: of everything random.
    """

    max_train_steps: int = 4000
    train_batch_size: int = 16
    learning_rate: float = 1e-5
    weight_decay: float = 0.3
    lr_warmup_steps: int = 500
    max_grad_norm: float = 1.0
    timesteps: tuple[int, ...] | None = tuple(range(1, 952, 50))
    shared_noise: bool = False
    train_text_encoders: bool = True
    weight_by_prompt: bool = True
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixed_precision not in ("no", "bf16"):
            raise RewardModelError("unknown mixed_precision", found=self.mixed_precision, fix="use no or bf16")

    def levels(self, alphas_cumprod: Tensor) -> Tensor:
        """The timesteps that are drawn from, long.

        Raises:
            RewardModelError: one of them lies outside the schedule.
        """
        total = len(alphas_cumprod)
        outside = [t for t in self.timesteps or () if not 0 <= t < total]
        if outside:
            raise RewardModelError(
                "training timesteps must lie in the noise schedule", found=f"{outside[:5]} of {total} timesteps"
            )
        return torch.arange(total) if self.timesteps is None else torch.tensor(self.timesteps)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its latest state, and how often it is written.

    Attributes:
        path: a file; what is there is resumed from.
        every: steps.
    """

    path: Path
    every: int

    def save(self, step: int, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Write the state after ``step`` steps, completely or not at all."""
        weights = [parameter.detach().cpu() for parameter in parameters]
        with complete_file(self.path) as temporary, temporary.open("wb") as stream:
            torch.save({"step": step, "weights": weights, "optimizer": optimizer.state_dict()}, stream)

    def restore(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Take the state where there is one; the number of steps it has seen.

        Raises:
            RewardModelError: it belongs to another model.
        """
        remove_leftovers(self.path.parent)  # of kills while a state was written, which is large
        if not self.path.is_file():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        shapes = [tuple(value.shape) for value in state["weights"]]
        if shapes != [tuple(parameter.shape) for parameter in parameters]:
            raise RewardModelError(
                "the checkpoint belongs to another model", found=str(self.path), fix="use a new output_dir"
            )
        with torch.no_grad():
            for parameter, value in zip(parameters, state["weights"], strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def fit(
    parameters: Sequence[nn.Parameter],
    config: NoisyTrainingConfig,
    batch_loss: BatchLoss,
    scale: Callable[[], Tensor],
    after_step: Callable[[], None],
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """AdamW with a linear warm-up and then a constant rate.

    Args:
        parameters: that are trained.
        config: how long and how.
        batch_loss: step -> (loss with its graph, accuracy of the batch); a function of the step and the weights.
        scale: exp(logit_scale), for the log.
        after_step: called after every update.
        progress: called after every step with (step, steps, metrics).
        checkpoint: resumed from, and written to.

    Raises:
        RewardModelError: a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    first = 0 if checkpoint is None else checkpoint.restore(parameters, optimizer)
    for step in range(first, config.max_train_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(config.lr_warmup_steps, 1))
        loss, accuracy = batch_loss(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RewardModelError(f"the loss is not finite at step {step + 1}", fix="lower learning_rate")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step()
        if checkpoint is not None and ((step + 1) % checkpoint.every == 0 or step + 1 == config.max_train_steps):
            checkpoint.save(step + 1, parameters, optimizer)
        if progress is not None:
            metrics = {"loss": value, "accuracy": accuracy, "scale": float(scale().detach()), "grad_norm": float(norm)}
            progress(step + 1, config.max_train_steps, metrics)


def pair_loss(
    visual: Tensor, words: Tensor, scale: Tensor, batch: NoisyBatch, counts: Tensor | None
) -> tuple[Tensor, float]:
    """Weighted loss of a batch with its graph, and the share of decided pairs that are ranked right.

    Args:
        visual: ``[2 B, D]`` unit vectors of pictures 0, then of pictures 1.
        words: ``[B, D]`` of the prompts.
        scale: exp(logit_scale).
        batch: its labels.
        counts: ``[B]`` rows of the data set with each prompt, for prompt weights; None: equal weights.
    """
    image_0, image_1 = visual.chunk(2)
    label = batch.label_0
    losses = preference_loss(image_0, image_1, words, scale, label.to(words.device))
    weights = torch.full_like(label, 1.0 / len(label)) if counts is None else prompt_weights(counts)
    margin = ((image_0 - image_1) * words).sum(-1).detach().cpu()
    decided = label != 0.5
    correct = float(agreement(margin, label)[decided].mean()) if decided.any() else 0.5
    return (losses * weights.to(losses.device)).sum(), correct
