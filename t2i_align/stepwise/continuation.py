"""Which candidate a rollout goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from t2i_align.stepwise.brancher import RolloutAddress
from t2i_align.stepwise.selector import Selection

ContinuationName = Literal["random", "winner", "loser"]
Continuation = Callable[[Selection, RolloutAddress, int, int], Tensor]


def _random(selection: Selection, address: RolloutAddress, step: int, candidates: int) -> Tensor:
    return address.choice(step, candidates)


def _winner(selection: Selection, address: RolloutAddress, step: int, candidates: int) -> Tensor:
    return selection.winner


def _loser(selection: Selection, address: RolloutAddress, step: int, candidates: int) -> Tensor:
    return selection.loser


# Each takes (selection, address, step, K) and returns candidate indices [N]. Random keeps the states those of
# the policy; SPO's ablation found winner and loser to ruin its training, TailorPO goes on from the winner.
CONTINUATIONS: dict[str, Continuation] = {"random": _random, "winner": _winner, "loser": _loser}
