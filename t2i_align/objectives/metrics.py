"""What every objective logs, computed on the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_align.objectives.logits import Terms
from t2i_align.objectives.types import PairErrors


def pair_metrics(inputs: PairErrors, terms: Terms, layout: str) -> dict[str, Tensor]:
    """Detached ``[B]`` metrics of whatever errors and rewards are there.

    ``e_*, r_*, d_* = e - r``: raw errors, before any timestep weight (groups: the mean; ranked lists: best
    and worst picture). ``margin``: d_l - d_w, or e_l - e_w without a reference; in units of mean squared
    error. ``logit``: z. ``implicit_accuracy``: 1 where the margin favours the winner, 1/2 on a tie.
    ``rewards/...``: trl's names, in logit units. d_w far above 0 while the margin grows is likelihood displacement.
    """
    with torch.no_grad():
        e_w, e_l, r_w, r_l = _two_sides(inputs, layout)
        metrics: dict[str, Tensor | None] = {"e_w": e_w, "e_l": e_l, "r_w": r_w, "r_l": r_l}
        d_w = None if e_w is None or r_w is None else e_w - r_w
        d_l = None if e_l is None or r_l is None else e_l - r_l
        metrics |= {"d_w": d_w, "d_l": d_l}
        if e_w is not None and e_l is not None:
            margin = e_l - e_w if d_w is None or d_l is None else d_l - d_w
            metrics |= {"margin": margin, "implicit_accuracy": ranking_accuracy(margin)}
        if terms.winner is not None:
            metrics |= _reward_metrics(terms, terms.winner)
        return {name: value.detach() for name, value in metrics.items() if value is not None}


def ranking_accuracy(margin: Tensor) -> Tensor:
    """1 where the margin is positive, 1/2 where it is zero, 0 elsewhere; same shape."""
    return 0.5 * (torch.sign(margin) + 1.0)


def _reward_metrics(terms: Terms, winner: Tensor) -> dict[str, Tensor | None]:
    chosen = _per_item(winner)
    if terms.loser is None:
        return {"rewards/chosen": chosen}
    accuracy = ranking_accuracy(winner - terms.loser)
    if terms.pair_weights is None:
        accuracy = _per_item(accuracy)
    else:  # a pair of equal scores has weight 0 and no right answer
        counted = (terms.pair_weights > 0).to(accuracy)
        accuracy = ((accuracy - 0.5) * counted).sum(-1) / counted.sum(-1).clamp(min=1.0) + 0.5
    rejected = _per_item(terms.loser)
    return {
        "logit": _per_item(terms.logit),
        "implicit_accuracy": accuracy,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": accuracy,
        "rewards/margins": chosen - rejected,
    }


def _per_item(value: Tensor) -> Tensor:
    return value if value.dim() == 1 else value.mean(-1)


def _two_sides(inputs: PairErrors, layout: str) -> list[Tensor | None]:
    """e_w, e_l, r_w, r_l as ``[B]``, None where the record has nothing."""
    if layout == "ranked" and inputs.scores is not None:
        best, worst = (pick(inputs.scores, -1, keepdim=True) for pick in (torch.argmax, torch.argmin))
        e, r = inputs.policy_winner, inputs.reference_winner
        sides = [e.gather(1, best), e.gather(1, worst)]
        sides += [None, None] if r is None else [r.gather(1, best), r.gather(1, worst)]
        return [None if side is None else side[:, 0] for side in sides]
    errors = (inputs.policy_winner, inputs.policy_loser, inputs.reference_winner, inputs.reference_loser)
    return [None if error is None else _per_item(error) for error in errors]
