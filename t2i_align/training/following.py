"""Copies of the policy that follow it: the model rollouts sample with, and a reference that moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.objectives import Objective
from t2i_align.objectives.latents import LAGGING
from t2i_align.objectives.references import Guarded, Moving

REFERENCE = "reference"  # name of the snapshot that plays a moving reference
STOPPED = "reference_stopped"


class Followers:
    """Keeps the snapshots that an objective asks for, at most once per optimiser step.

    Args:
        backbone: holds them.
        objective: its latents and reference slots say what is kept.
        accelerator: the decision to move a reference is taken by all processes together.
    """

    def __init__(self, backbone: Backbone, objective: Objective, accelerator: Accelerator) -> None:
        self._backbone, self._accelerator = backbone, accelerator
        self._lag = objective.latents.lag
        self._guard = objective.reference if isinstance(objective.reference, Guarded) else None
        self._moving = objective.reference if isinstance(objective.reference, Moving) else None
        self._lagged_at = self._moved_at = -1
        self.stopped = False

    def before_step(self, step: int) -> None:
        """Bring the copies up to date that follow whatever happens; the first ones are the initial model."""
        self._average(step)
        if self._lag is None or self._lagged_at == step:
            return
        self._lagged_at = step
        snapshots = self._backbone.snapshots
        if LAGGING not in snapshots or step % self._lag.every == 0:
            snapshots.take(LAGGING, self._lag.keep)

    def _average(self, step: int) -> None:
        """Mix the policy into a moving reference where it is due."""
        if self._moving is None or self._moved_at == step:
            return
        snapshots = self._backbone.snapshots
        if REFERENCE not in snapshots:
            snapshots.take(REFERENCE)
        elif step % self._moving.every == 0:
            snapshots.take(REFERENCE, 1.0 - self._moving.mix)
        self._moved_at = step

    def after_policy(self, step: int, policy: Tensor, initial: Callable[[], Tensor]) -> Tensor | None:
        """Move the reference to the policy where it is due and the guard allows it.

        Args:
            step: optimiser step from 0.
            policy: ``[N]`` errors of the policy on winners.
            initial: measures the initial model's on the same inputs.

        Returns:
            The divergence from the initial model, where it was measured.
        """
        guard = self._guard
        if guard is None or self.stopped or step == 0 or step % guard.every or self._moved_at == step:
            return None
        self._moved_at = step
        divergence = (policy.detach() - initial()).mean()
        if self._accelerator.num_processes > 1:
            divergence = self._accelerator.reduce(divergence, reduction="mean")
        self.stopped = bool(divergence > guard.limit)
        if not self.stopped:
            self._backbone.snapshots.take(REFERENCE)
        return divergence

    @property
    def guards(self) -> bool:
        """Whether the policy's errors decide which reference a step compares with."""
        return self._guard is not None

    @property
    def reference(self) -> str | None:
        """Snapshot that plays the reference; None while that is the initial model."""
        moves = self._guard is not None or self._moving is not None
        return REFERENCE if moves and REFERENCE in self._backbone.snapshots else None

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs; nothing where nothing follows."""
        if self._lag is None and self._guard is None and self._moving is None:
            return {}
        return {**self._backbone.snapshots.state(), STOPPED: torch.tensor([self.stopped])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        if not state:
            return
        kept = dict(state)
        self.stopped = bool(kept.pop(STOPPED))
        self._backbone.snapshots.restore(kept)
