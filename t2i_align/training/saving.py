"""What of a run goes into a checkpoint, and how it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from t2i_align.config.schema import RunConfig
from t2i_align.objectives import Objective
from t2i_align.training.checkpoints import TrainState, Writers, load_checkpoint, save_checkpoint
from t2i_align.training.ema import Ema
from t2i_align.training.identity import settings_identity
from t2i_align.training.loop import Loop
from t2i_align.training.parts import Parts
from t2i_align.training.resume_rules import PAIRS
from t2i_align.training.rows import is_divided


class Saver:
    """Checkpoints of one run.

    Args:
        config, objective: with the pairs they say which runs may resume from which checkpoints.
        accelerator: one process writes, or all where weights are divided; all meet afterwards.
        parts: of the run; provider and step may have states of their own.
        trainable: name -> parameter that is trained.
        ema: its average, or None.
        loop: holds optimiser, schedule and step.
    """

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        accelerator: Accelerator,
        parts: Parts,
        trainable: dict[str, torch.nn.Parameter],
        ema: Ema | None,
        loop: Loop,
    ) -> None:
        self._config, self._accelerator, self._parts, self._loop = config, accelerator, parts, loop
        self._objective, self._trainable, self._ema = objective, trainable, ema

    def save(self, step: int) -> None:
        """Write ``checkpoint-<step>``; every process must call it, since a rollout gathers the pairs that wait."""
        state, here = self._state(), self._accelerator
        writers = Writers()
        if any(map(is_divided, self._trainable.values())):
            writers = Writers(here.process_index, here.num_processes, here.wait_for_everyone)
        if here.is_main_process or writers.count > 1:
            limit = self._config.training.checkpoints_total_limit
            save_checkpoint(Path(self._config.output_dir), step, state, self._identity(), limit, writers)
        here.wait_for_everyone()

    def restore(self, checkpoint: Path) -> None:
        """Bring everything to where a checkpoint left it.

        Raises:
            UserError: see :func:`~t2i_align.training.checkpoints.load_checkpoint`.
        """
        state = self._state()
        self._loop.finished_steps = load_checkpoint(checkpoint, state, self._identity())
        self._loop.train_seconds = state.train_seconds
        for part, owner in (("provider.", self._parts.provider), ("step.", self._parts.step)):
            kept = {name.removeprefix(part): value for name, value in state.provider.items() if name.startswith(part)}
            owner.restore(kept)
        if self._ema is not None:
            self._ema.step = state.ema_step

    def _state(self) -> TrainState:
        owned = {"provider": self._parts.provider.state(), "step": self._parts.step.state()}
        return TrainState(
            trainable=self._trainable,
            optimizer=self._loop.optimizer,
            scheduler=self._loop.scheduler,
            ema=None if self._ema is None else self._ema.weights,
            ema_step=0 if self._ema is None else self._ema.step,
            scaler=self._accelerator.scaler,
            train_seconds=self._loop.train_seconds,
            provider={f"{owner}.{name}": value for owner, kept in owned.items() for name, value in kept.items()},
        )

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that resumes it."""
        settings = settings_identity(self._config, self._objective, self._accelerator.num_processes)
        return settings | {PAIRS: self._parts.provider.fingerprint}
