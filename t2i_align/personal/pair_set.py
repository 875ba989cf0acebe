"""A user as a set of answered comparisons, in frozen features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_align.errors import UserError

logger = logging.getLogger(__name__)

UserPairs = tuple[Tensor, Tensor, Tensor]  # winners [S, F], losers [S, F], captions [S, C]


@dataclass(frozen=True)
class PairSet:
    """B users with S comparisons at most, padded with zeros.

    Attributes:
        winner: ``[B, S, F]`` features of the preferred pictures.
        loser: ``[B, S, F]``.
        caption: ``[B, S, C]``.
        mask: ``[B, S]`` bool, true where there is a comparison.
    """

    winner: Tensor
    loser: Tensor
    caption: Tensor
    mask: Tensor

    @classmethod
    def of_users(cls, users: Sequence[UserPairs]) -> PairSet:
        """Clean each user's comparisons (`distinct_pairs`) and pad them to a batch.

        Raises:
            UserError: a user without comparisons, shapes that do not fit, or nothing left of contradictory answers.
        """
        if not users:
            raise UserError("There is no user to encode.", fix="take the null user for the base model")
        return cls.padded([distinct_pairs(*(part.float() for part in user)) for user in users])

    @classmethod
    def padded(cls, users: Sequence[UserPairs]) -> PairSet:
        """The same without cleaning, for comparisons that are known to be distinct and finite."""
        longest = max(len(winner) for winner, _, _ in users)
        winner, loser, caption = (
            torch.nn.utils.rnn.pad_sequence([user[part] for user in users], batch_first=True) for part in range(3)
        )
        counts = torch.tensor([len(user[0]) for user in users])
        return cls(winner, loser, caption, torch.arange(longest)[None] < counts[:, None])

    def __len__(self) -> int:
        return len(self.mask)

    def to(self, device: torch.device | str) -> PairSet:
        """On another device."""
        return PairSet(*(part.to(device) for part in (self.winner, self.loser, self.caption, self.mask)))


def distinct_pairs(winner: Tensor, loser: Tensor, caption: Tensor) -> UserPairs:
    """One user's comparisons, each once: repeats are merged, answers that cancel each other are left out, both logged.

    A pair answered a times one way and b times the other stays once if a > b, turned the way of the majority.

    Raises:
        UserError: no comparison, shapes or values that make no sense, or nothing left.
    """
    _check(winner, loser, caption)
    sides = torch.stack([torch.cat([winner, caption], 1), torch.cat([loser, caption], 1)], 1)  # [S, 2, F + C]
    _, item = torch.unique(sides.flatten(0, 1), dim=0, return_inverse=True)
    item = item.view(-1, 2)
    keys, group = torch.unique(item.sort(dim=1).values, dim=0, return_inverse=True)
    direction = torch.sign(item[:, 1] - item[:, 0])  # +1 where the winner is the item with the smaller number
    votes = torch.zeros(len(keys), dtype=torch.long).index_add_(0, group, direction)
    kept = [int(((group == key) & (direction == votes[key].sign())).nonzero()[0]) for key in votes.nonzero()[:, 0]]
    cancelled = len(keys) - len(kept)
    if not kept:
        raise UserError(
            "The user's answers cancel each other: there is no taste in them.",
            f"{len(winner)} answers to {len(keys)} pairs, each as often one way as the other",
            "ask about other pairs, or use the null user",
        )
    if len(kept) < len(winner):
        logger.warning("of %d answers %d distinct pairs remain; %d cancelled", len(winner), len(kept), cancelled)
    rows = torch.tensor(sorted(kept))
    return winner[rows], loser[rows], caption[rows]


def _check(winner: Tensor, loser: Tensor, caption: Tensor) -> None:
    shapes = f"winners {list(winner.shape)}, losers {list(loser.shape)}, captions {list(caption.shape)}"
    if winner.ndim != 2 or winner.shape != loser.shape or caption.ndim != 2 or len(caption) != len(winner):
        raise UserError("Comparisons are winners [S, F], losers [S, F] and captions [S, C].", shapes)
    if len(winner) == 0:
        raise UserError(
            "The user has no comparisons.", shapes, "show a few pairs, or use the null user for the base model"
        )
    if not all(torch.isfinite(part).all() for part in (winner, loser, caption)):
        raise UserError("Features of comparisons must be finite.", shapes)
