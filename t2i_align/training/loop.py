"""The loop: batch, errors, objective, update; the same for every objective, backbone and source of pairs."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives.types import ObjectiveOutput
from t2i_align.randomness import address_hash
from t2i_align.training.ema import Ema
from t2i_align.training.rows import is_divided, whole
from t2i_align.training.step import Draws
from t2i_align.training.summary import StepSummary

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """The run was asked to stop and has written a checkpoint."""


class BatchProvider(Protocol):
    """Fills batches: a dataset, or for on-policy methods a rollout of the current policy.

    Batches are asked for in order, once each. All processes get batches of one length; within an optimiser step all
    are empty (there is nothing to learn from, and no update is made) or none.
    """

    def batch(self, step: int, micro_step: int) -> Sized: ...

    def metrics(self) -> dict[str, float]:
        """What there is to log about the batches since the last call; averaged over logged steps."""
        ...


class StepMaker(Protocol):
    """Turns a batch of its provider into per-item losses and each item's timestep as a share of the schedule."""

    def loss(self, batch: Any, draws: Draws, step: int) -> tuple[ObjectiveOutput, torch.Tensor]: ...


@dataclass
class Hooks:
    """What happens around a step; the loop itself only decides when.

    Each is called on every process with the number of finished steps.
    """

    log: Callable[[int, StepSummary], None]
    checkpoint: Callable[[int], None]
    validate: Callable[[int], None]


@dataclass
class Loop:
    """One optimiser step after another until ``max_train_steps``.

    Args:
        config: the run.
        accelerator: devices, precision, gradient reduction.
        step: turns a batch into a per-pair loss.
        provider: fills batches; a dataset or, for on-policy methods, a rollout.
        policy: the prepared (possibly wrapped) denoiser.
        parameters: what is trained; their gradients are clipped together.
        optimizer, scheduler: prepared optimiser; schedule in optimiser steps.
        hooks: logging, checkpoints, validation.
        ema: the average that follows, or None.
        finished_steps, train_seconds: where a resumed run goes on.
    """

    config: RunConfig
    accelerator: Accelerator
    step: StepMaker
    provider: BatchProvider
    policy: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    hooks: Hooks
    ema: Ema | None = None
    finished_steps: int = 0
    train_seconds: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Train to the end.

        Raises:
            UserError: the loss is not finite; the weights are those before the failing update.
            Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written at the step boundary.
        """
        training = self.config.training
        summary = StepSummary(self.accelerator)
        with _stop_on_signal(self._stop):
            while self.finished_steps < training.max_train_steps:
                started = time.perf_counter()
                stop = self._optimise(summary)
                self.finished_steps += 1
                self.train_seconds += time.perf_counter() - started
                self._after_step(summary, stop)

    def _optimise(self, summary: StepSummary) -> bool:
        """One optimiser step; returns whether any process wants to stop."""
        accumulation = self.config.training.gradient_accumulation_steps
        total, empty = torch.zeros((), device=self.accelerator.device), False
        for micro_step in range(accumulation):
            self._seed_dropout(micro_step)
            batch = self.provider.batch(self.finished_steps, micro_step)
            empty = len(batch) == 0
            if empty:
                continue
            exchanges = micro_step == accumulation - 1 or self._divided
            with contextlib.nullcontext() if exchanges else self.accelerator.no_sync(self.policy):
                output, timesteps = self.step.loss(batch, Draws("train", 0), self.finished_steps)
                loss = output.loss.mean() / accumulation
                self.accelerator.backward(loss)
            total += loss.detach()
            summary.add(output, timesteps)
        stop = self._agree(total)
        for name, value in self.provider.metrics().items():
            summary.add_scalar(name, value)
        if empty:
            return stop
        summary.add_scalar("grad_norm", self._clip())
        summary.add_scalar("lr", self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        if (
            not self.accelerator.optimizer_step_was_skipped
        ):  # fp16 overflow: the scaler tries again, so does the schedule
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        return stop

    def _seed_dropout(self, micro_step: int) -> None:
        """Dropout is the one draw torch makes by itself; addressing its seed makes a resumed run exact."""
        rank = self.accelerator.process_index
        torch.manual_seed(address_hash(self.config.seed, "dropout", self.finished_steps, micro_step, rank))

    def _agree(self, loss: torch.Tensor) -> bool:
        """One collective: the mean loss must be finite on every process, and a stop is everybody's stop."""
        flags = torch.stack([loss, torch.tensor(float(self._stop.is_set()), device=loss.device)])
        loss_mean, stop = self.accelerator.reduce(flags, reduction="mean").tolist()
        if not torch.isfinite(torch.tensor(loss_mean)):
            raise UserError(
                f"The loss became {loss_mean} at step {self.finished_steps + 1}; no update was made with it.",
                f"learning rate {self.scheduler.get_last_lr()[0]:.3g}, mixed_precision "
                f"{self.config.training.mixed_precision}, last checkpoint in {self.config.output_dir}",
                "lower training.learning_rate or objective.beta, use bf16 or no mixed precision instead of fp16, "
                "or look at the data with t2i-align data check",
            )
        return stop > 0

    @property
    def _divided(self) -> bool:
        """Whether gradients are divided among processes: then every micro-step's are, lest they pile up whole."""
        return is_divided(self.parameters[0])

    def _clip(self) -> torch.Tensor:
        """Clip in place by the norm over all processes; the norm before clipping."""
        return whole(self.accelerator.clip_grad_norm_(self.parameters, self.config.training.max_grad_norm))

    def _after_step(self, summary: StepSummary, stop: bool) -> None:
        training, validation = self.config.training, self.config.validation
        done = self.finished_steps == training.max_train_steps
        if self.finished_steps % training.logging_steps == 0 or done:
            self.hooks.log(self.finished_steps, summary)
        if stop or self.finished_steps % training.checkpointing_steps == 0 or done:
            self.hooks.checkpoint(self.finished_steps)
        if stop and not done:
            raise Interrupted(f"{Path(self.config.output_dir) / f'checkpoint-{self.finished_steps}'}")
        every = validation.validation_steps
        if done or (every is not None and self.finished_steps % every == 0):
            self.hooks.validate(self.finished_steps)


@contextlib.contextmanager
def _stop_on_signal(stop: threading.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM finish the step; the second acts as usual. Only the main thread may do this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}

    def request(number: int, frame: object) -> None:
        stop.set()
        logger.warning("Stopping after this step; a checkpoint will be written.")
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
