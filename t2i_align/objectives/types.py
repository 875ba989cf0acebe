"""What an objective takes and gives: per-item errors in, per-item loss out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from t2i_align.errors import UserError

Gather = Callable[[Tensor], Tensor]
ERROR_FIELDS = ("policy_winner", "policy_loser", "reference_winner", "reference_loser")
PER_ITEM_FIELDS = ("timesteps", "weights", "labels", "frequencies", "difficulty", "user_shares")  # [B]


@dataclass(frozen=True, eq=False)
class PairErrors:
    """Mean squared errors of one batch, and what the data say about each item.

    Shapes by layout (``Objective.layout``); B is the number of items of this process:

    * ``pair``: every error ``[B]``, one winner and one loser per prompt;
    * ``single``: ``policy_winner`` ``[B]`` only (supervised fine-tuning);
    * ``labelled``: ``policy_winner`` and ``reference_winner`` ``[B]`` hold unpaired images, ``labels`` is 1
      for a desirable and 0 for an undesirable one;
    * ``group``: every error ``[B, M]``, M winners and M losers per prompt;
    * ``ranked``: ``policy_winner`` and ``reference_winner`` ``[B, K]`` hold K images per prompt, ``scores``
      ``[B, K]``.

    Errors are means over all non-batch dimensions in float32 (float64 is kept, for checks); half precision is
    refused because its rounding alone moves a logit by more than 0.1 at beta = 5000.

    Attributes:
        policy_winner: e_w, carries the gradient. policy_loser: e_l.
        reference_winner: r_w, no gradient. reference_loser: r_l.
        timesteps: ``[B]`` long, shared inside an item.
        weights: ``[B]`` non-negative weights from the data; they multiply the loss of every objective.
        margins: reward(winner) - reward(loser), ``[B]``, or several by name.
        labels: ``[B]`` in [0, 1], probability that the winner is preferred (0.5 is a tie); see ``labelled``
            above.
        scores: ``[B, 2]`` rewards of (winner, loser), or ``[B, K]`` of the ranked images.
        frequencies: ``[B]`` in (0, 1], estimated share of the data whose scores look like this pair's.
        difficulty: ``[B]`` in [0, 1], quantile of the pair's reward gap in the data set; 0 is the widest gap.
        user_shares: ``[B]`` positive, pairs of the item's user over the mean number of pairs of a user.
        snr: ``[T]`` signal-to-noise ratio of each training timestep, see :func:`snr_table`.
        prediction_type: parametrisation the errors are measured in (diffusers spelling).
        num_timesteps: T of the training schedule.
        step, max_steps: optimiser step and budget, for schedules over training.
        gather: ``[B] -> [P * B]`` over the P processes, for statistics that cross the batch; None with one
            process. Every process must hold the same B.
        process_index: which B of the gathered ones are this process's.
    """

    policy_winner: Tensor
    policy_loser: Tensor | None = None
    reference_winner: Tensor | None = None
    reference_loser: Tensor | None = None
    timesteps: Tensor | None = None
    weights: Tensor | None = None
    margins: Tensor | Mapping[str, Tensor] | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    frequencies: Tensor | None = None
    difficulty: Tensor | None = None
    user_shares: Tensor | None = None
    snr: Tensor | None = None
    prediction_type: str = "epsilon"
    num_timesteps: int = 1000
    step: int = 0
    max_steps: int | None = None
    gather: Gather | None = None
    process_index: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError on half-precision errors or on per-item tensors that do not match
        ``policy_winner``."""
        first = self.policy_winner
        for name in ERROR_FIELDS:
            value = getattr(self, name)
            if value is None:
                continue
            if value.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} must be float32 (reduce squared errors in float32), got {value.dtype}")
            if value.dim() not in (1, 2) or value.shape != first.shape:
                raise ValueError(f"{name} must be [B] or [B, K] like policy_winner, got {list(value.shape)}")
        for name in PER_ITEM_FIELDS:
            self._check_per_item(name, getattr(self, name))
        if isinstance(self.margins, Mapping):
            for name, value in self.margins.items():
                self._check_per_item(f"margins[{name!r}]", value)
        else:
            self._check_per_item("margins", self.margins)
        columns = first.shape[1] if first.dim() == 2 else 2
        if self.scores is not None and tuple(self.scores.shape) != (self.batch_size, columns):
            raise ValueError(f"scores must be [{self.batch_size}, {columns}], got {list(self.scores.shape)}")

    def _check_per_item(self, name: str, value: Tensor | None) -> None:
        if value is not None and tuple(value.shape) != (self.batch_size,):
            raise ValueError(f"{name} must be [{self.batch_size}], got {list(value.shape)}")

    @property
    def batch_size(self) -> int:
        """B, the number of items of this process."""
        return self.policy_winner.shape[0]

    def required(self, name: str) -> Tensor:
        """The tensor field ``name``; ValueError when the record does not hold it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"the record holds no {name}")
        return value

    def margin(self, name: str | None = None) -> Tensor:
        """The reward margin called ``name``, or the only one there is, ``[B]``.

        Raises:
            UserError: no such margin, or several and no name.
        """
        margins = self.margins
        if margins is None or (isinstance(margins, Tensor) and name is not None):
            found = "no margins" if margins is None else "one margin without a name"
            raise UserError(f"the objective reads the reward margin {name or ''!r}", found, "add it to the data")
        if isinstance(margins, Tensor):
            return margins.to(self.policy_winner.dtype)
        if name is None and len(margins) == 1:
            return next(iter(margins.values())).to(self.policy_winner.dtype)
        if name is None or name not in margins:
            raise UserError(
                "the objective must be told which reward margin to read" if name is None else "unknown reward margin",
                found=f"{name!r}; the data hold: {', '.join(margins) or 'none'}",
                fix="name one of them in the slot that reads margins",
            )
        return margins[name].to(self.policy_winner.dtype)

    @property
    def e_w(self) -> Tensor:
        """Policy error of the winner."""
        return self.policy_winner

    @property
    def e_l(self) -> Tensor:
        """Policy error of the loser."""
        return self.required("policy_loser")

    @property
    def r_w(self) -> Tensor:
        """Reference error of the winner."""
        return self.required("reference_winner")

    @property
    def r_l(self) -> Tensor:
        """Reference error of the loser."""
        return self.required("reference_loser")

    def scaled(self, factor: Tensor | None) -> PairErrors:
        """The same record with every error multiplied by ``factor`` ``[B]``; itself when factor is None."""
        if factor is None:
            return self
        shape = (-1,) + (1,) * (self.policy_winner.dim() - 1)
        factor = factor.to(self.policy_winner).reshape(shape)
        errors = {name: getattr(self, name) for name in ERROR_FIELDS}
        return replace(self, **{name: value * factor for name, value in errors.items() if value is not None})

    def over_processes(self, value: Tensor) -> Tensor:
        """Detached ``[B] -> [P * B]``: every process's values, in the same order on every process."""
        value = value.detach()
        return value if self.gather is None else self.gather(value)

    def select(self, index: Tensor) -> PairErrors:
        """The items at ``index`` (long or bool), everything per item included."""
        per_item = {*ERROR_FIELDS, *PER_ITEM_FIELDS, "scores"}
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in per_item and value is not None:
                changes[field.name] = value[index]
        if isinstance(self.margins, Mapping):
            changes["margins"] = {name: value[index] for name, value in self.margins.items()}
        elif self.margins is not None:
            changes["margins"] = self.margins[index]
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class ObjectiveOutput:
    """Per-item loss and what to log.

    Attributes:
        loss: ``[B]``, the loss of each item; the caller takes the mean.
        metrics: detached tensors, ``[B]`` per item or ``[]`` for a statistic of the whole (global) batch.
            Averaging each over items and processes is right for all of them.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def snr_table(alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio A / (1 - A) of each timestep, ``[T]``, from the scheduler's cumulative alphas."""
    return alphas_cumprod / (1.0 - alphas_cumprod)
