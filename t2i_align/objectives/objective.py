"""The objective: one choice per slot, applied to a batch of errors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.anchors import Anchor, NoAnchor
from t2i_align.objectives.base import SLOT_NAMES, Choice
from t2i_align.objectives.error_metrics import ErrorMetric
from t2i_align.objectives.latents import Latents
from t2i_align.objectives.links import Link
from t2i_align.objectives.logits import Logit
from t2i_align.objectives.metrics import pair_metrics
from t2i_align.objectives.references import NoReference, Reference
from t2i_align.objectives.timesteps import Timestep
from t2i_align.objectives.types import ObjectiveOutput, PairErrors
from t2i_align.objectives.weights import Weight

# Fields of the record that come from the data set; the others the loop knows by itself.
DATA_FIELDS = frozenset({"margins", "labels", "scores", "frequencies", "difficulty", "user_shares"})
# captions (a caption per picture) is a need of the data too, but no field: it acts through the prompts.
EXPECTED_DIMS = {"pair": 1, "single": 1, "labelled": 1, "group": 2, "ranked": 2}


@dataclass(frozen=True)
class Slots:
    """One choice per slot of the algebra."""

    latents: Latents
    error: ErrorMetric
    timestep: Timestep
    logit: Logit
    link: Link
    weight: Weight
    anchor: Anchor
    reference: Reference


@dataclass(frozen=True)
class Objective:
    """A callable from per-item errors to per-item losses: ``weight * (link(logit) + anchor)``.

    The loop asks it what to compute (``needs_reference``, ``needs_loser``, ``layout``, ``needs``), lets
    ``latents``, ``error`` and ``timestep`` do their part on the backbone, and calls it; it never looks at
    ``name``.
    """

    name: str
    slots: Slots
    formula: str
    paper: str
    at_init: str
    note: str = ""
    preset_needs: frozenset[str] = frozenset()

    @property
    def latents(self) -> Latents:
        return self.slots.latents

    @property
    def error(self) -> ErrorMetric:
        return self.slots.error

    @property
    def timestep(self) -> Timestep:
        return self.slots.timestep

    @property
    def reference(self) -> Reference:
        return self.slots.reference

    @property
    def layout(self) -> str:
        """Layout of the record it takes: pair, single, labelled, group or ranked (see PairErrors)."""
        return self.slots.logit.input_layout

    @property
    def needs_reference(self) -> bool:
        """Whether reference errors must be computed."""
        return not isinstance(self.slots.reference, NoReference)

    @property
    def needs_loser(self) -> bool:
        """Whether the losers must go through the network."""
        return self.layout in ("pair", "group")

    @property
    def logit_scale(self) -> float:
        """k, what multiplies a mean squared error to give a reward."""
        return self.slots.logit.scale

    @cached_property
    def needs(self) -> frozenset[str]:
        """Fields of PairErrors, beyond the errors, that must be there."""
        choices: list[Choice] = [getattr(self.slots, slot) for slot in SLOT_NAMES]
        return frozenset().union(*(choice.needs for choice in choices))

    @property
    def data_needs(self) -> frozenset[str]:
        """The part of ``needs`` that the data set must provide."""
        return (self.needs & DATA_FIELDS) | self.preset_needs

    @property
    def margin(self) -> str | None:
        """The reward that a slot reads by name; None where there is only one, or none is read."""
        named = [getattr(getattr(self.slots, slot), "margin", None) for slot in ("weight", "logit")]
        return next((name for name in named if isinstance(name, str)), None)

    @property
    def config(self) -> dict[str, Any]:
        """Every slot with every option; ``resolve(objective.config)`` gives the same objective."""
        return {"preset": self.name} | {slot: getattr(self.slots, slot).model_dump(mode="json") for slot in SLOT_NAMES}

    @cached_property
    def value_at_init(self) -> float | None:
        """Loss when policy == reference, where that depends on the configuration alone; else None (see
        ``at_init``)."""
        if not self.needs_reference or self.needs & DATA_FIELDS or not isinstance(self.slots.anchor, NoAnchor):
            return None
        shape = (1,) if EXPECTED_DIMS[self.layout] == 1 else (1, 2)
        error = torch.full(shape, 0.1, dtype=torch.float64)
        loser = error if self.needs_loser else None
        snr = torch.tensor([1.0, 2.0], dtype=torch.float64)
        timesteps = torch.zeros(1, dtype=torch.long)
        record = PairErrors(error, loser, error, loser, timesteps=timesteps, snr=snr, max_steps=1)
        return float(self(record).loss[0])

    def check_model(self, num_timesteps: int, snr: Tensor, prediction_type: str = "epsilon") -> None:
        """Raise UserError when the checkpoint's schedule (T timesteps, SNR ``[T]``) or parametrisation does not suit
        the timestep, error and latents slots; timesteps that are never drawn do not count."""
        self.timestep.check_range(num_timesteps)
        self.timestep.weighting.check_schedule(snr)
        self.timestep.weighting.check_error(self.error.measured_in(prediction_type))
        drawn = self.timestep.drawn(num_timesteps)
        self.error.check_schedule(snr if self.latents.asks_policy else snr[drawn], prediction_type)
        self.latents.check_schedule(snr, prediction_type)

    def __call__(self, inputs: PairErrors) -> ObjectiveOutput:
        """Loss ``[B]`` and metrics of one batch.

        Raises:
            UserError: the record lacks something the objective reads.
            ValueError: the errors do not have the layout's shape.
        """
        self._check(inputs)
        slots = self.slots
        scaled = inputs.scaled(slots.timestep.weights(inputs))
        terms = slots.logit(scaled)
        loss = slots.link(terms, scaled)
        if terms.pair_weights is not None:
            loss = (terms.pair_weights * loss).sum(-1)
        anchor, weight = slots.anchor(scaled, self.layout), slots.weight(scaled)
        loss = loss if anchor is None else loss + anchor
        loss = loss if weight is None else weight.to(loss) * loss
        loss = loss if inputs.weights is None else inputs.weights.to(loss) * loss
        metrics = pair_metrics(inputs, terms, self.layout) | slots.link.metrics(terms, scaled)
        return ObjectiveOutput(loss, metrics)

    def _check(self, inputs: PairErrors) -> None:
        wanted = {"policy_loser": self.needs_loser, "reference_winner": self.needs_reference}
        wanted["reference_loser"] = self.needs_reference and self.needs_loser
        missing = [name for name, wants in wanted.items() if wants and getattr(inputs, name) is None]
        missing += sorted(name for name in self.needs if getattr(inputs, name) is None)
        if missing:
            given = [field.name for field in fields(inputs) if getattr(inputs, field.name) is not None]
            raise UserError(
                f"objective {self.name!r} needs {', '.join(missing)}",
                found=f"a record with {', '.join(given)}",
                fix="provide them with the data, or choose an objective that does not read them",
            )
        if inputs.policy_winner.dim() != EXPECTED_DIMS[self.layout]:
            raise ValueError(
                f"objective {self.name!r} takes the layout {self.layout!r}, "
                f"got errors of shape {list(inputs.policy_winner.shape)}"
            )
