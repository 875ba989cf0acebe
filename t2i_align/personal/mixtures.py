"""Mixtures of users, and the users that training leaves out.

Tokens are mixed linearly: E = sum_i w_i E_i. The null user is zeros, so a weight on it, or weights that sum to less
than 1, move towards the base model, and weights beyond 1 exaggerate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.randomness import addressed_uniform


def mix(tokens: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of users ``[M, W]``; weights need not sum to 1. A null user may have fewer tokens than the others.

    Raises:
        UserError: no users, lengths that differ, or users of different shapes.
    """
    if not tokens or len(tokens) != len(weights):
        raise UserError("A mixture needs one weight per user.", f"{len(tokens)} users, {len(weights)} weights")
    present = [(user, weight) for user, weight in zip(tokens, weights, strict=True) if user.any()]
    if len({user.shape for user, _ in present}) > 1:
        shapes = ", ".join(str(list(user.shape)) for user, _ in present)
        raise UserError("Users of one mixture need tokens of one shape.", shapes)
    return torch.stack([weight * user for user, weight in present]).sum(0) if present else tokens[0]


def interpolate(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """``[steps, M, W]`` from `first` to `second`, both included: (1 - a) E_1 + a E_2. One may be the null user.

    Raises:
        UserError: fewer than 2 steps, or shapes that differ.
    """
    if not first.any():
        first = torch.zeros_like(second)
    elif not second.any():
        second = torch.zeros_like(first)
    if steps < 2 or first.shape != second.shape:
        found = f"{steps} steps, {list(first.shape)} and {list(second.shape)}"
        raise UserError("Interpolation needs two users of one shape and 2 steps or more.", found)
    share = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)[:, None, None]
    return (1 - share) * first + share * second


def drop_users(tokens: Tensor, ids: Sequence[str], epochs: Sequence[int], probability: float, seed: int) -> Tensor:
    """Replace users by the null user with `probability`, decided by (seed, epoch, pair id) alone.

    Pairs of the null user have the loss of the base and no gradient; what dropout does is take that share of the
    pairs away from every user, anew each epoch.

    Args:
        tokens: ``[B, M, W]``.
        ids: of the pairs.
        epochs: of the pairs.
        probability: in [0, 1).
        seed: of the run.
    """
    kept = [
        addressed_uniform(seed, "user_dropout", epoch, pair_id) >= probability
        for pair_id, epoch in zip(ids, epochs, strict=True)
    ]
    mask = torch.tensor(kept, dtype=tokens.dtype, device=tokens.device)
    return tokens * mask[:, None, None]
