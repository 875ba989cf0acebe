"""From a table to the pairs of one run: hold-out, ties, list weights, limit and the shuffled-label control.

Coins are addressed by (seed, purpose, pair id), so they do not depend on the order or the number of pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from t2i_align.config.schema import DataConfig
from t2i_align.data.captions import perturb
from t2i_align.data.pair_source import PairSource
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError
from t2i_align.randomness import addressed_uniform

Which = Literal["train", "heldout"]


def select(
    table: PairTable, config: DataConfig, which: Which, seed: int, other_prompts: frozenset[str] = frozenset()
) -> PairSource:
    """The pairs of one side of the hold-out split.

    Args:
        table: all pairs.
        config: ties, hold-out, limit, control.
        which: training or held-out pairs. Only training pairs are limited or shuffled.
        seed: of the coins.
        other_prompts: normalised prompts of the other side; pairs with one of them are left out.

    Raises:
        UserError: rows cannot be trained on, or nothing is left.
    """
    table.raise_problems()
    chosen = _Selection.everything(table)
    _hold_out(chosen, config.heldout_fraction, which)
    if other_prompts:
        own = [normalise(caption) not in other_prompts for caption in chosen.captions()]
        chosen.keep(np.array(own, dtype=bool), "prompt is in the training set")
    _settle_ties(chosen, config.ties, seed)
    if table.columns.lists is not None:
        chosen.weights = _balance_lists(table.columns.lists[chosen.rows], chosen.weights)
    if which == "train" and config.max_pairs is not None:
        chosen.keep(np.arange(len(chosen.rows)) < config.max_pairs, "beyond max_pairs")
    if which == "train" and config.shuffle_labels:
        # The same confidences, nothing to learn.
        chosen.labels = np.where(chosen.coins("shuffle_labels", seed), chosen.labels, 1.0 - chosen.labels)
    if len(chosen.rows) == 0:
        raise _nothing_left(chosen, which)
    captioner = loser_captioner(config, which)
    return PairSource(table, chosen.rows, chosen.labels, chosen.weights, chosen.left_out, captioner)


def loser_captioner(config: DataConfig, which: Which) -> Callable[[str], str] | None:
    """What makes the losers' captions, ``data.loser_captions``; None where they stay as they are."""
    if which == "heldout" or config.loser_captions == "as_given":  # held-out pairs are judged as they are
        return None
    return partial(perturb, strength=config.loser_captions)


def normalise(caption: str) -> str:
    """What two captions share when they are the same prompt: case and white space do not count."""
    return " ".join(caption.casefold().split())


@dataclass
class _Selection:
    """Rows still in, with their labels and weights, and why the others are out."""

    table: PairTable
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def everything(cls, table: PairTable) -> _Selection:
        columns = table.columns
        weights = np.ones(len(table)) if columns.weights is None else columns.weights
        return cls(table, np.arange(len(table)), columns.labels, weights, dict(columns.skipped))

    def captions(self) -> list[str]:
        return [self.table.columns.captions[row] for row in self.rows.tolist()]

    def keep(self, mask: np.ndarray, reason: str) -> None:
        """Leave out the rows where ``mask`` is false."""
        if not mask.all():
            self.left_out[reason] = int((~mask).sum())
        self.rows, self.labels, self.weights = self.rows[mask], self.labels[mask], self.weights[mask]

    def coins(self, purpose: str, seed: int) -> np.ndarray:
        """``[N]`` bool: a fair coin per pair, addressed by its id."""
        ids = self.table.columns.pair_ids
        heads = [addressed_uniform(seed, purpose, ids[row]) < 0.5 for row in self.rows.tolist()]
        return np.array(heads, dtype=bool)


def _hold_out(chosen: _Selection, fraction: float, which: Which) -> None:
    """Keep one side. The prompts with the smallest hashes are held out: no prompt is on both, whatever the seed.

    Raises:
        UserError: there are too few prompts to split.
    """
    if fraction == 0.0:
        return
    prompts = [normalise(caption) for caption in chosen.captions()]
    by_hash = sorted(set(prompts), key=lambda prompt: hashlib.blake2b(prompt.encode(), digest_size=16).digest())
    count = math.ceil(fraction * len(by_hash))
    if len(by_hash) < 2 or count >= len(by_hash):
        raise UserError(
            "Too few different prompts to hold some out.",
            f"{len(by_hash)} prompts, data.heldout_fraction={fraction}",
            "use a smaller data.heldout_fraction (0 holds out nothing), or data.heldout_source",
        )
    held_out = set(by_hash[:count])
    inside = np.array([prompt in held_out for prompt in prompts], dtype=bool)
    if which == "train":
        chosen.keep(~inside, "held out")
    else:
        chosen.keep(inside, "in the training set")


def _settle_ties(chosen: _Selection, treatment: str, seed: int) -> None:
    """Apply ``data.ties`` to labels of exactly 0.5; ``soft`` leaves them as they are."""
    ties = chosen.labels == 0.5
    if treatment == "drop":
        chosen.keep(~ties, "tie")
    elif treatment == "zero_weight":
        chosen.weights = np.where(ties, 0.0, chosen.weights)
    elif treatment == "coin" and ties.any():
        chosen.labels = np.where(ties, chosen.coins("tie", seed).astype(np.float64), chosen.labels)


def _balance_lists(lists: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights under which every list counts the same, however many pairs it makes; a pair's mean weight
    stays.

    Pairs that count nothing do not take part, so a list with ties counts as much as one without.
    """
    counting = weights > 0
    if not counting.any():
        return weights
    _, inverse = np.unique(lists, return_inverse=True)
    pairs_of_list = np.bincount(inverse, weights=counting)
    balanced = np.where(counting, weights / np.maximum(pairs_of_list[inverse], 1), 0.0)
    return balanced * (weights[counting].mean() / balanced[counting].mean())


def _nothing_left(chosen: _Selection, which: Which) -> UserError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in chosen.left_out.items()) or "no rows"
    name = "training" if which == "train" else "held-out"
    return UserError(
        f"{chosen.table.address} has no usable {name} pairs.",
        reasons,
        "check data.source and data.ties; t2i-align data check describes the data",
    )
