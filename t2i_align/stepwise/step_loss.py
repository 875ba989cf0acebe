"""From transitions of a pair to the record that every objective takes.

With ``e = mean(((x' - mu) / sigma)^2)``, the squared error of a successor standardised by its step, a
log-density per dimension is ``-e/2`` plus a number that policy and reference share. So errors of transitions
are errors like any other, ``k [(r_w - e_w) - (r_l - e_l)]`` with ``k = beta/2`` equals ``beta [log ratio_w -
log ratio_l]``, and the step-level loss of SPO and LPO is the ``dpo`` objective with their beta. Every link,
weight and anchor works on them unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.objectives.error_metrics import PredictionError
from t2i_align.objectives.latents import SharedNoise
from t2i_align.objectives.references import Initial, NoReference
from t2i_align.objectives.timestep_weights import NoTimestepWeight
from t2i_align.objectives.timesteps import Uniform
from t2i_align.stepwise.transition import GaussianTransition

READABLE = frozenset({"labels", "margins"})


@dataclass(frozen=True, eq=False)
class StepErrors:
    """Standardised errors of N pairs, each ``[N]`` float64; reference errors carry no gradient."""

    policy_winner: Tensor
    policy_loser: Tensor
    reference_winner: Tensor | None = None
    reference_loser: Tensor | None = None


def shared_errors(
    policy: GaussianTransition, reference: GaussianTransition | None, winner: Tensor, loser: Tensor
) -> StepErrors:
    """Errors of two successors of one parent: one transition of each network serves both.

    Args:
        policy, reference: of the parents ``[N, C, h, w]``; no reference for objectives that have none.
        winner, loser: successors ``[N, C, h, w]``.
    """
    return separate_errors((policy, policy), None if reference is None else (reference, reference), winner, loser)


def separate_errors(
    policy: tuple[GaussianTransition, GaussianTransition],
    reference: tuple[GaussianTransition, GaussianTransition] | None,
    winner: Tensor,
    loser: Tensor,
) -> StepErrors:
    """The same from a transition for each side, winner first: what parents of their own would need."""
    policy_winner, policy_loser = policy[0].squared_error(winner), policy[1].squared_error(loser)
    if reference is None:
        return StepErrors(policy_winner, policy_loser)
    with torch.no_grad():
        reference_winner, reference_loser = reference[0].squared_error(winner), reference[1].squared_error(loser)
    return StepErrors(policy_winner, policy_loser, reference_winner, reference_loser)


def clip_ratios(errors: StepErrors, clip: float) -> StepErrors:
    """Keep each side's probability ratio ``exp((r - e) / 2)`` within ``[1 - clip, 1 + clip]``, as D3PO, SPO
    and LPO do.

    Outside the interval a side gets no gradient. At beta = 500 the bound is far beyond where a logistic loss
    saturates; at SPO's beta = 10 it caps the logit at 2.007.

    Args:
        errors: of policy and reference.
        clip: in (0, 1).
    """
    low, high = math.log1p(-clip), math.log1p(clip)

    def clipped(policy: Tensor, reference: Tensor | None) -> Tensor:
        if reference is None:
            raise UserError(
                "rollout.ratio_clip bounds the ratio of policy and reference, and this objective has no reference.",
                f"ratio_clip: {clip}",
                "set rollout.ratio_clip to null",
            )
        return reference - 2.0 * ((reference - policy) / 2.0).clamp(low, high)

    return StepErrors(
        clipped(errors.policy_winner, errors.reference_winner),
        clipped(errors.policy_loser, errors.reference_loser),
        errors.reference_winner,
        errors.reference_loser,
    )


def check_objective(objective: Objective) -> None:
    """Raise UserError when the objective has slots that a step-level batch cannot honour.

    The rollout decides timesteps and noisy states and the transition measures the errors, so those three
    slots must be left at their defaults; the data must not be asked for more than a scorer gives.
    """
    slots = objective.slots
    plain = {
        "latents": isinstance(slots.latents, SharedNoise),
        "error": isinstance(slots.error, PredictionError),
        "timestep": isinstance(slots.timestep, Uniform) and isinstance(slots.timestep.weighting, NoTimestepWeight),
    }
    changed = [name for name, is_default in plain.items() if not is_default]
    if changed:
        raise UserError(
            "With a rollout, noisy states, timesteps and errors come from the sampler's transitions.",
            "; ".join(f"objective.{name}: {getattr(slots, name).model_dump()}" for name in changed),
            "leave these slots out; rollout.lowest_timestep and highest_timestep choose the steps that are trained",
        )
    if not isinstance(slots.reference, Initial | NoReference):
        raise UserError(
            "With a rollout the reference is the initial model.",
            f"objective.reference: {slots.reference.model_dump()}",
            "leave reference out",
        )
    if objective.layout != "pair":
        raise UserError(
            "With a rollout the objective must compare pairs.",
            f"objective {objective.name!r} takes the layout {objective.layout!r}",
            "use a pairwise objective such as dpo",
        )
    lacking = objective.data_needs - READABLE
    if lacking:
        raise UserError(
            f"A rollout does not provide {', '.join(sorted(lacking))}, which objective {objective.name!r} reads.",
            f"a rollout provides {', '.join(sorted(READABLE))}",
            "choose an objective that does not read them",
        )
