"""What one person's answers are worth: repetitions count once, contradictions count for as much as they agree.

A Laplace covariance takes every row for an independent answer. The same pair shown ten times is not ten answers, and
"A over B" with "B over A" is not certainty of indifference. So answers to the same two items are merged into one:

    label  = mean of the answers (oriented alike)
    weight = 1                                            if no two answers oppose each other
           = |mean(2 y - 1)| / mean |2 y - 1|  in [0, 1)   otherwise

With weight 0 the pair teaches nothing and the covariance stays as wide as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.personal.records import PreferencePairs


@dataclass(frozen=True)
class Evidence:
    """Answers of one user, each two items at most once.

    Attributes:
        pairs: Q merged comparisons of different items.
        weight: ``[Q]`` float64 in [0, 1].
        answers: answers before merging.
        notes: sentences on what was odd, for the user to read.
    """

    pairs: PreferencePairs
    weight: Tensor
    answers: int
    notes: tuple[str, ...]


def weigh(pairs: PreferencePairs) -> Evidence:
    """Merge the answers of one user, as stated above.

    Raises:
        RewardModelError: answers of several users.
    """
    if len(pairs.users) > 1:
        found = f"{len(pairs.users)} users"
        raise RewardModelError("evidence is one user's", found=found, fix="take pairs.of_user(name)")
    if len(pairs) == 0:
        note = "no comparisons: this is the population's taste with its full spread"
        return Evidence(pairs, torch.zeros(0, dtype=torch.float64), 0, (note,))
    used, local = torch.unique(pairs.index, return_inverse=True)
    _, item = torch.unique(pairs.features[used], dim=0, return_inverse=True)
    index = item[local]
    swapped = index[:, 0] > index[:, 1]
    label = torch.where(swapped, 1 - pairs.label, pairs.label)
    first_rows, merged, weight, repeated, opposed = [], [], [], 0, 0
    keys, group = torch.unique(index.sort(dim=1).values, dim=0, return_inverse=True)
    for number in range(len(keys)):
        rows = (group == number).nonzero()[:, 0]
        if keys[number, 0] == keys[number, 1]:
            continue
        answer = 2 * label[rows] - 1
        contradictory = bool((answer > 0).any() and (answer < 0).any())
        repeated += len(rows) - 1
        opposed += contradictory
        mean = answer.mean()
        weight.append((mean.abs() / answer.abs().mean()).item() if contradictory else 1.0)
        merged.append(((1 + (-mean if swapped[rows[0]] else mean)) / 2).item())
        first_rows.append(int(rows[0]))
    kept = pairs.select(torch.tensor(first_rows, dtype=torch.long))
    final = PreferencePairs(kept.features, kept.index, torch.tensor(merged).double(), kept.user, kept.users)
    notes = _notes(len(pairs), len(keys) - len(first_rows), repeated, opposed, sum(weight))
    return Evidence(final, torch.tensor(weight, dtype=torch.float64), len(pairs), notes)


def _notes(answers: int, alike: int, repeated: int, opposed: int, total: float) -> tuple[str, ...]:
    notes = []
    if alike:
        notes.append(f"{alike} comparison(s) of an item with itself teach nothing")
    if repeated:
        notes.append(f"{repeated} of {answers} answers repeat a pair asked before and were merged with it")
    if opposed:
        notes.append(f"{opposed} pair(s) were answered both ways; they count for what remains of the majority")
    if total == 0:
        notes.append("nothing was learned: this is the population's taste with its full spread")
    return tuple(notes)
