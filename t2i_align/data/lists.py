"""Whole lists instead of pairs: K ranked pictures of one prompt, or two groups of M.

A list knows its pictures as (pair, side), so that readers, caches, hold-out and checks of pairs serve lists too. Ties
that were left out lose nothing: only a list in which all pictures tie has no untied pair, and its loss would be 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch

from t2i_align.data.derived import check_unit_interval
from t2i_align.data.pair_source import PairSource
from t2i_align.data.ranked import RankedPairs
from t2i_align.data.selection import normalise
from t2i_align.errors import UserError
from t2i_align.randomness import addressed_generator

Layout = Literal["ranked", "group"]
Place = tuple[int, int]  # index of a pair, and which of its pictures


@dataclass(frozen=True)
class PictureList:
    """Pictures of one prompt.

    Attributes:
        list_id: address of the list's random draws.
        pictures: where each is; a group's winners first.
        scores: of each, in [0, 1]; larger is better.
        weight: of the list's loss.
    """

    list_id: str
    pictures: tuple[Place, ...]
    scores: tuple[float, ...]
    weight: float

    def best_and_worst(self, size: int) -> PictureList:
        """The ``size / 2`` best pictures and then the ``size / 2`` worst."""
        order = np.argsort(-np.array(self.scores), kind="stable").tolist()
        return self._only(order[: size // 2] + order[len(order) - size // 2 :])

    def subset(self, size: int, seed: int, epoch: int) -> PictureList:
        """``size`` of the pictures, another draw in every epoch."""
        if size == len(self.pictures):
            return self
        generator = addressed_generator(seed, "list_subset", epoch, self.list_id)
        return self._only(torch.randperm(len(self.pictures), generator=generator)[:size].tolist())

    def _only(self, chosen: Iterable[int]) -> PictureList:
        kept = list(chosen)
        pictures = tuple(self.pictures[index] for index in kept)
        return PictureList(self.list_id, pictures, tuple(self.scores[index] for index in kept), self.weight)


@dataclass(frozen=True)
class Lists:
    """The lists of a run.

    Attributes:
        items: in the order of the source.
        size: pictures of a list in a batch.
        left_out: lists of the source that are shorter.
    """

    items: list[PictureList]
    size: int
    left_out: int


def open_lists(source: PairSource, layout: Layout, size: int | None, shuffle: bool, seed: int) -> Lists:
    """The lists behind the pairs of a source.

    Ranked lists are taken as they are; their scores, or the share of the other pictures each one beats. A pair is a
    list of two, with its label as scores; for groups, pairs of one prompt are put together.

    Args:
        source: the training pairs.
        layout: what the objective takes.
        size: ``data.list_size``; None takes whole lists.
        shuffle: the control, scores in random order (pairs come with shuffled labels already).
        seed: of the shuffle.

    Raises:
        UserError: the source has no lists of that size.
    """
    if layout == "group" and size is not None and size % 2:
        raise UserError("Groups need as many winners as losers.", f"data.list_size: {size}", "give an even list_size")
    if isinstance(source.table, RankedPairs):
        found = list(_ranked(source, source.table))
        if shuffle:
            found = [_shuffled(one, seed) for one in found]
    elif layout == "ranked":
        found = _pairs_as_lists(source, size)
    else:
        found = _groups_of_pairs(source, size)
    lists = _of_one_size(found, source, layout, size)
    if layout == "group" and isinstance(source.table, RankedPairs):
        lists = Lists([one.best_and_worst(lists.size) for one in lists.items], lists.size, lists.left_out)
    return lists


def _ranked(source: PairSource, table: RankedPairs) -> Iterable[PictureList]:
    """Every ranked list whose pictures are all there; ``max_pairs`` may have cut the last one."""
    scores = [_scores_of(table, index) for index in range(len(table.lists))]
    places: dict[int, dict[int, Place]] = {}
    members = table.members[source.rows].tolist()
    for both_new in (True, False):  # pairs of two new pictures first: fewer pairs are decoded
        for pair, (index, *pictures) in enumerate(members):
            known = places.setdefault(index, {})
            new = [side for side, picture in enumerate(pictures) if picture not in known]
            if len(new) == 2 or (new and not both_new):
                known.update({pictures[side]: (pair, side) for side in new})
    for index, known in places.items():
        if len(known) == len(scores[index]):
            pictures = tuple(known[picture] for picture in range(len(known)))
            yield PictureList(table.lists.list_ids[index], pictures, scores[index], table.lists.weights[index])


def _scores_of(table: RankedPairs, index: int) -> tuple[float, ...]:
    """Scores as given, or the share of the other pictures that each one beats (ties count half)."""
    given, ranks = table.lists.scores[index], table.lists.ranks[index]
    if given is not None:
        check_unit_interval(np.array(given), f"{table.lists.file.name} line {table.lists.lines[index]}")
        return given
    beats = [sum(0.5 + 0.5 * np.sign(other - rank) for other in ranks) - 0.5 for rank in ranks]
    return tuple(float(count) / (len(ranks) - 1) for count in beats)


def _pairs_as_lists(source: PairSource, size: int | None) -> list[PictureList]:
    if size not in (None, 2):
        raise UserError(
            "The source holds pairs, which are lists of two.",
            f"data.list_size: {size}",
            "remove data.list_size, or give ranked lists (docs/data.md)",
        )
    ids, labels, weights = source.pair_ids(), source.labels().tolist(), source.weights().tolist()
    return [
        PictureList(name, ((index, 0), (index, 1)), (label, 1.0 - label), weight)
        for index, (name, label, weight) in enumerate(zip(ids, labels, weights, strict=True))
    ]


def _groups_of_pairs(source: PairSource, size: int | None) -> list[PictureList]:
    """M pairs of one prompt: their winners against their losers. A tie belongs to no group."""
    if size is None:
        raise UserError(
            "The objective compares groups, and the source holds single pairs.",
            f"{len(source)} pairs of {source.table.address}",
            "set data.list_size: 4 to put two pairs of one prompt together (2 compares single pictures), or give "
            "ranked lists",
        )
    by_prompt: dict[str, list[int]] = {}
    labels, weights, ids = source.labels(), source.weights(), source.pair_ids()
    for index, caption in enumerate(source.captions()):
        if labels[index] != 0.5:
            by_prompt.setdefault(normalise(caption), []).append(index)
    groups = []
    for pairs in by_prompt.values():
        rest = iter(pairs)
        while len(chosen := list(islice(rest, size // 2))) == size // 2:
            winners = tuple((index, int(labels[index] < 0.5)) for index in chosen)
            losers = tuple((index, int(labels[index] > 0.5)) for index in chosen)
            scores = (1.0,) * len(chosen) + (0.0,) * len(chosen)
            groups.append(PictureList(ids[chosen[0]], winners + losers, scores, float(weights[chosen].mean())))
    return groups


def _of_one_size(found: list[PictureList], source: PairSource, layout: Layout, size: int | None) -> Lists:
    """Lists that fill a batch: all of one length, or at least ``size`` long."""
    lengths = sorted({len(one.pictures) for one in found})
    if size is None and (len(lengths) > 1 or (layout == "group" and lengths and lengths[0] % 2)):
        raise UserError(
            "The lists of a batch must have one length" + (", an even one for groups." if layout == "group" else "."),
            f"lists of {', '.join(map(str, lengths))} pictures in {source.table.address}",
            "set data.list_size; longer lists give that many pictures, shorter ones are left out",
        )
    size = size or (lengths[0] if lengths else 0)
    kept = [one for one in found if len(one.pictures) >= size]
    if not kept:
        raise UserError(
            f"{source.table.address} has no list of {size} pictures." if size else "There is no list to train on.",
            f"{len(source)} pairs, lists of {', '.join(map(str, lengths)) or 'no'} pictures",
            "lower data.list_size, or give pairs with several pairs a prompt or ranked lists",
        )
    return Lists(kept, size, len(found) - len(kept))


def _shuffled(one: PictureList, seed: int) -> PictureList:
    """The same pictures with their scores dealt out at random."""
    generator = addressed_generator(seed, "shuffle_labels", one.list_id)
    order = torch.randperm(len(one.scores), generator=generator).tolist()
    return PictureList(one.list_id, one.pictures, tuple(one.scores[index] for index in order), one.weight)
