"""Which of a user's pairs are shown to a model that looks at pictures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from reward_models.errors import nearest_of_many
from t2i_align.data.pair_source import PairSource
from t2i_align.data.selection import normalise
from t2i_align.errors import UserError
from t2i_align.personal.config import NULL_USER
from t2i_align.personal.crowd import Pairs, pairs_by_user
from t2i_align.randomness import addressed_generator

Pictures = tuple[bytes, bytes]  # of a pair, in an order that does not depend on the sides


@dataclass(frozen=True)
class Support:
    """The pairs that are shown of one user.

    Attributes:
        rows: of the source, in the order in which they are shown.
        first_wins: whether the user preferred picture 0 of each.
        seen: ids of every pair of the user with these pictures, answered again or the other way too.
    """

    rows: list[int]
    first_wins: list[bool]
    seen: list[str]


def chosen_users(source: PairSource, user: str | None, shots: int) -> Pairs:
    """Rows of decided pairs by user.

    Raises:
        UserError: no such user, a user called null, or nobody with as many decided pairs as are shown.
    """
    labels = source.labels()
    everyone = pairs_by_user(source)
    if user is not None and user not in everyone:
        raise UserError("This user gave no answer.", user, nearest_of_many(user, everyone))
    if NULL_USER in everyone:
        raise UserError(f"'{NULL_USER}' is the name of the built-in null user.", source.table.address, "rename it")
    pairs = {
        name: [row for row in rows if labels[row] != 0.5]
        for name, rows in everyone.items()
        if user is None or name == user
    }
    if max(map(len, pairs.values())) < shots:
        raise nobody(source.table.address, len(pairs), shots)
    return pairs


def choose(source: PairSource, user: str, rows: list[int], shots: int, seed: int) -> Support | None:
    """Pairs to show of one user, of as many different prompts as there are; None where there are too few."""
    distinct = majorities(source, rows)
    if len(distinct) < shots:
        return None
    generator = addressed_generator(seed, "extract", user)
    order = [list(distinct)[place] for place in torch.randperm(len(distinct), generator=generator).tolist()]
    chosen = _of_many_prompts(order, [source.describe(row).caption for row in order])[:shots]
    wins = [source.describe(row).label_0 > 0.5 for row in chosen]
    return Support(chosen, wins, [source.describe(other).pair_id for row in chosen for other in distinct[row]])


def majorities(source: PairSource, rows: list[int]) -> dict[int, list[int]]:
    """Decided rows of one user, each pair of pictures once -> all rows of the same pictures.

    Pictures that were compared several times are there as most of the answers have it, and not at all where the answers
    cancel each other.
    """
    votes: dict[Pictures, list[tuple[int, int]]] = defaultdict(list)  # of every pair of pictures, (row, sign)
    for row in rows:
        first, second = source.images(row)
        key, sign = ((first, second), 1) if first <= second else ((second, first), -1)
        if first != second:
            votes[key].append((row, sign if source.describe(row).label_0 > 0.5 else -sign))
    found = {}
    for answers in votes.values():
        total = sum(sign for _, sign in answers)
        if total:
            found[next(row for row, sign in answers if sign * total > 0)] = [row for row, _ in answers]
    return found


def _of_many_prompts(order: list[int], captions: list[str]) -> list[int]:
    """The first pair of every prompt, then the second of every prompt, and so on."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for caption in captions:
        turns.append(seen[normalise(caption)])
        seen[normalise(caption)] += 1
    return [order[place] for place in sorted(range(len(order)), key=lambda place: turns[place])]


def nobody(address: str, users: int, shots: int) -> UserError:
    """The complaint about users who answered too little."""
    return UserError(
        "No user has enough comparisons to be shown.",
        f"{address}: {users} users, none with {shots} decided pairs of pictures",
        "use fewer --shots, or data with more pairs per user",
    )
