"""A new user of a table, as a combination of the users of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_align.errors import UserError


@dataclass(frozen=True)
class FittedUser:
    """Result of `fit_user`.

    Attributes:
        tokens: ``[M, W]``.
        coefficients: ``[U]`` weights of the users of training; they need not be positive or sum to 1.
        losses: of every step, without the penalty.
    """

    tokens: Tensor
    coefficients: Tensor
    losses: list[float]


def fit_user(
    table: Tensor, loss: Callable[[Tensor], Tensor], steps: int = 200, learning_rate: float = 0.02, ridge: float = 1.0
) -> FittedUser:
    """Find the combination of known users that explains a new one's pairs best (after arXiv 2603.20725).

    Minimises ``loss(sum_u c_u E_u) + ridge/2 |c - 1/U|^2`` with Adam from the average user c = 1/U. From a few pairs, U
    numbers are better found than M x W; `ridge` keeps directions without evidence at the average.

    Args:
        table: ``[U, M, W]`` tokens of the users of training.
        loss: of tokens ``[M, W]``, a scalar: the objective on the new user's pairs, everything else frozen.
        steps: of Adam.
        learning_rate: of the coefficients.
        ridge: see above.

    Raises:
        UserError: a loss that does not depend on the user, as without pairs, or is not finite.
    """
    table = table.detach()
    start = torch.full((len(table),), 1 / len(table), device=table.device)
    coefficients = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([coefficients], lr=learning_rate)
    losses = []
    for _ in range(steps):
        value = loss(torch.einsum("u,umw->mw", coefficients, table))
        if not value.requires_grad or not torch.isfinite(value):
            raise UserError(
                "The user cannot be fitted: the loss must be finite and depend on the user.",
                f"loss {value.item()}, gradient: {value.requires_grad}",
                "give the user's pairs; without any, use the null user",
            )
        losses.append(value.item())
        optimiser.zero_grad()
        (value + 0.5 * ridge * (coefficients - start).square().sum()).backward()
        optimiser.step()
    final = coefficients.detach()
    return FittedUser(torch.einsum("u,umw->mw", final, table), final, losses)
