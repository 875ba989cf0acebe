"""Whose pairs are whose: users of training, users held out, and an order in which every user has the same say."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from t2i_align.data.pair_source import PairSource
from t2i_align.data.selection import normalise
from t2i_align.errors import UserError
from t2i_align.randomness import addressed_generator

Pairs = dict[str, list[int]]  # user -> rows of the source, in its order


def pairs_by_user(source: PairSource) -> Pairs:
    """Rows of each user, users in the order of their names.

    Raises:
        UserError: pairs of nobody.
    """
    found: dict[str, list[int]] = defaultdict(list)
    nobody = 0
    for row, user in enumerate(source.users()):
        if user is None or user == "":
            nobody += 1
        else:
            found[user].append(row)
    if nobody:
        raise UserError(
            "A personal run needs to know who answered.",
            f"{nobody} of {len(source)} pairs of {source.table.address} have no user_id",
            "fill in user_id, remove these rows, or train without the personal section",
        )
    return {user: found[user] for user in sorted(found)}


def split_users(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """Users of training, and users held out: those with the smallest hashes, whatever the seed.

    Raises:
        UserError: too few users to hold some out.
    """
    count = int(np.ceil(share * len(pairs)))
    if share > 0 and (len(pairs) < 2 or count >= len(pairs)):
        raise UserError(
            "Too few users to hold some out.",
            f"{len(pairs)} users, personal.heldout_users={share:g}",
            "use a smaller share, or data.heldout_source",
        )
    by_hash = sorted(pairs, key=lambda user: hashlib.blake2b(user.encode(), digest_size=16).digest())
    held = set(by_hash[:count])
    training = {user: rows for user, rows in pairs.items() if user not in held}
    return training, {user: rows for user, rows in pairs.items() if user in held}


def with_other_prompts(pairs: Pairs, source: PairSource) -> Pairs:
    """The users who answered decided pairs of two prompts at least: a pair can be shown with one of another prompt."""
    captions, labels = source.captions(), source.labels()
    return {
        user: rows
        for user, rows in pairs.items()
        if len({normalise(captions[row]) for row in rows if labels[row] != 0.5}) > 1
    }


@dataclass(frozen=True)
class BalancedOrder:
    """Positions 0, 1, 2 ... of a run to pairs: every U positions visit each of the U users once.

    Users of few pairs come back to them sooner: a pair's epoch counts the passes over its user's pairs. A function of
    the position and the seed alone, so resuming is arithmetic.

    Attributes:
        pairs: rows per user.
        seed: of the run.
    """

    pairs: Pairs
    seed: int

    def at(self, position: int) -> tuple[int, int]:
        """Row and epoch at a position."""
        visit, place = divmod(position, len(self._users))
        user = self._users[_permutation(self.seed, "users", visit, len(self._users))[place]]
        rows = self.pairs[user]
        epoch, number = divmod(visit, len(rows))
        return rows[_permutation(self.seed, f"pairs of {user}", epoch, len(rows))[number]], epoch

    @cached_property
    def _users(self) -> list[str]:
        return list(self.pairs)


@lru_cache(maxsize=4096)
def _permutation(seed: int, what: str, epoch: int, count: int) -> tuple[int, ...]:
    order = torch.randperm(count, generator=addressed_generator(seed, "user_order", what, epoch))
    return tuple(order.tolist())
